"""Units of gene expression: the known ones, their spellings, and whether values of a unit are linear.

Known are counts, FPKM, FPKM-UQ, TPM, RPKM, RSEM and CPM, log2(x+1) of each, log2(TPM+0.001), log2(FPKM+0.001) and
z-score. Any other unit is kept as written. Units are never converted.
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"
Z_SCORE = "z-score"
LINEAR = ("counts", "FPKM", "FPKM-UQ", "TPM", "RPKM", "RSEM", "CPM")
LINEAR_WORDS = ("fpkm", "rpkm", "tpm", "cpm", "rsem", "count")
SCALED_WORDS = ("log", "zscore", "vst", "rma")
_SPELLINGS = {
    "counts": "count counts rawcount rawcounts readcount readcounts genecounts htseqcount htseqcounts starcounts",
    "FPKM": "fpkm rsemfpkm htseqfpkm starfpkm",
    "FPKM-UQ": "fpkmuq htseqfpkmuq starfpkmuq",
    "TPM": "tpm tpms rsemtpm startpm",
    "RPKM": "rpkm",
    "RSEM": "rsem rsemv2 normcount normcounts normalizedcount normalizedcounts rsemnormcount rsemnormcounts "
    "rsemnormalizedcount rsemnormalizedcounts expectedcount expectedcounts rsemexpectedcount rsemexpectedcounts",
    "CPM": "cpm",
}
_BASES = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_LOG = re.compile(r"log_?2[\s_(]*(?:(1|0?\.001)\s*\+\s*)?(.*?)(?:\s*\+\s*(1(?:\.0)?|0?\.001))?\s*\)?")


def parse_unit(text: str | None) -> str | None:
    """The known unit of a usual spelling (`log2(fpkm + 1)` -> `log2(FPKM+1)`); None where it is none of them."""
    plain = (text or "").strip().lower()
    if plain == UNKNOWN:
        return UNKNOWN
    if re.fullmatch(r"z[\s_-]?scores?", plain):
        return Z_SCORE
    base = _BASES.get(_letters(plain))
    if base is not None or not plain.startswith("log"):
        return base
    match = _LOG.fullmatch(plain)
    base = _BASES.get(_letters(match[2])) if match else None
    added = (match[1] or match[3]) if match else None
    if base is None or added is None:
        return None
    if added.startswith("1"):
        return f"log2({base}+1)"
    return f"log2({base}+0.001)" if base in ("TPM", "FPKM") else None


def canonical(text: str) -> str:
    """The known unit of a spelling, or the text itself."""
    return parse_unit(text) or text.strip()


def is_linear(unit: str) -> bool:
    """Whether values of the unit may be added and are never negative: one of `LINEAR`."""
    return parse_unit(unit) in LINEAR


def looks_linear(unit: str) -> bool | None:
    """Whether a unit is linear, also one that is not known exactly (`normalised counts, vst`), by the words in it.

    None where no word decides.
    """
    if is_linear(unit):
        return True
    plain = _letters(unit.lower())
    if any(word in plain for word in SCALED_WORDS):
        return False
    return True if any(word in plain for word in LINEAR_WORDS) else None


def _letters(text: str) -> str:
    return re.sub(r"[\s_\-()]+", "", text)
