"""Units of gene expression: the known ones and their spellings, which one holds, and values that contradict it.

Known are counts, FPKM, FPKM-UQ, TPM, RPKM, RSEM and CPM, log2(x+1) of each, log2(TPM+0.001), log2(FPKM+0.001) and
z-score. Any other unit is kept as written. What the content of a file says must agree with the unit declared; what its
name or a file beside it suggests yields to it, aloud. Left out: converting one unit into another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gimp_ray.errors import InputError

UNKNOWN = "unknown"
Z_SCORE = "z-score"
LINEAR = ("counts", "FPKM", "FPKM-UQ", "TPM", "RPKM", "RSEM", "CPM")

# log2 of the largest FPKM or count ever seen is below 30; a z-score is as well
_LARGEST_LOG = 40.0
_ROWS_AT_ONCE = 64

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


@dataclass(frozen=True)
class SaidUnit:
    """What a file says of its unit: `content` is certain, `hint` is its name or a file beside it; None for nothing."""

    path: Path
    content: str | None = None
    hint: str | None = None


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
    """Whether values of the unit may be added and are never negative."""
    return parse_unit(unit) in LINEAR


def resolve_unit(declared: str, said: Sequence[SaidUnit]) -> tuple[str, bool, list[str]]:
    """The unit of the values, whether it is certain (declared, or said by content), and notes.

    Raises:
        InputError: files of different units, or one whose content contradicts the declared unit.
    """
    _refuse_mixture(declared, said)
    notes: list[str] = []
    if parse_unit(declared) != UNKNOWN:
        unit = canonical(declared)
        if parse_unit(unit) is None:
            notes.append(f"the gene unit {unit} is none of the known ones; it is kept as written")
        for file in said:
            if file.content is not None and not _same(file.content, unit):
                raise InputError(
                    "the gene unit declared is not the file's",
                    file=file.path,
                    expected=f"values in {unit}",
                    found=f"the file says {canonical(file.content)}",
                    fix="leave the gene unit out, or choose the file or column of the unit",
                )
            if file.hint is not None and not _same(file.hint, unit):
                hint = canonical(file.hint)
                notes.append(f"the gene unit was declared as {unit}, but {file.path.name} looks like {hint}")
        return unit, True, notes
    content = next((file.content for file in said if file.content), None)
    if content is not None:
        return canonical(content), True, notes
    hinted = next((file for file in said if file.hint), None)
    if hinted is not None and hinted.hint is not None:
        unit = canonical(hinted.hint)
        notes.append(f"the gene unit is {unit}, as {hinted.path.name} is named; say it where that is wrong")
        return unit, False, notes
    return UNKNOWN, False, notes


def check_values(
    values: np.ndarray,
    unit: str,
    certain: bool,
    case_ids: Sequence[str],
    gene_ids: Sequence[str],
    files: Sequence[Path],
) -> list[str]:
    """Notes on values that do not look like their unit; NaN and Inf are not looked at.

    Args:
        values: (n, G); `case_ids` and `files` are those of the rows, `gene_ids` of the columns.
        certain: the unit was declared or is said by the files' content, not by a name.

    Raises:
        InputError: negative values in a certain linear unit, naming the first case and gene.
    """
    low, high, whole = np.inf, -np.inf, True
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block = values[start : start + _ROWS_AT_ONCE]
        finite = block[np.isfinite(block)]
        if not finite.size:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        whole = whole and bool(np.all(finite == np.rint(finite)))
        if low < 0 and certain and is_linear(unit):
            row, gene = np.argwhere(block < 0)[0]
            raise InputError(
                f"there are negative values, but the gene unit is {unit}",
                file=files[start + row],
                case=case_ids[start + row],
                expected=f"values of 0 or more, as {unit} has",
                found=f"{block[row, gene]:g} for gene {gene_ids[gene]}",
                fix="say the unit the values are in, such as z-score or log2(FPKM+1)",
            )
    return value_notes(unit, low, high, whole) if low <= high else []


def value_notes(unit: str, low: float, high: float, whole: bool) -> list[str]:
    """Where values from `low` to `high` do not look like their unit; `whole`: all are whole numbers."""
    known, logged = parse_unit(unit), "log" in unit.lower()
    doubt = None
    if known == UNKNOWN:
        looks = "not logged" if high > _LARGEST_LOG else "logged or standardised"
        doubt = f"values from {low:g} to {high:g} look {looks}. Say it with gene_unit"
        return [f"the gene unit is unknown; {doubt}"]
    if logged and high > _LARGEST_LOG:
        doubt = f"values up to {high:g} do not look logged"
    elif low < 0 and known is not None and (known in LINEAR or known.endswith("+1)")):
        doubt = f"there are negative values down to {low:g}"
    elif known in LINEAR and high <= _LARGEST_LOG:
        doubt = f"no value is above {high:g}: are they logged?"
    elif known == "counts" and not whole:
        doubt = "there are values that are no whole numbers"
    return [] if doubt is None else [f"the gene unit is {unit}, but {doubt}"]


def _refuse_mixture(declared: str, said: Sequence[SaidUnit]) -> None:
    """Refuse files that differ in what they say; a file that says nothing agrees only with a declared unit."""
    units: dict[str, list[SaidUnit]] = {}
    for file in said:
        units.setdefault(_key(file.content or file.hint or UNKNOWN), []).append(file)
    if parse_unit(declared) != UNKNOWN:
        units.pop(UNKNOWN, None)
    if len(units) < 2:
        return
    files = [group[0] for group in units.values()]
    raise InputError(
        "the gene files are of different units",
        file=files[1].path,
        expected="files of one unit",
        found="; ".join(f"{canonical(f.content or f.hint or UNKNOWN)}: {f.path.name}" for f in files),
        fix="give the files of one unit; where some only do not say it, say it with gene_unit",
    )


def _same(one: str, other: str) -> bool:
    return _key(one) == _key(other)


def _key(unit: str) -> str:
    return re.sub(r"\s+", "", canonical(unit)).lower()


def _letters(text: str) -> str:
    return re.sub(r"[\s_\-()]+", "", text)
