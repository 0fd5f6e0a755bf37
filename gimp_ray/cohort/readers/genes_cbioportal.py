"""Expression of cBioPortal studies: `data_mrna_seq_*.txt`, genes by samples, keyed by Hugo_Symbol, with Entrez_Gene_Id.

A gene without a symbol is named by its Entrez id. The unit is said by the meta file beside (`meta_mrna_seq_*.txt`),
else by the name. Left out: reading a whole study folder; give the expression file.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from gimp_ray.cohort.readers import genes_text
from gimp_ray.cohort.readers.genes_columns import ENTREZ, SYMBOL
from gimp_ray.cohort.readers.genes_head import FileHead
from gimp_ray.cohort.readers.matrix import EVERYTHING, RawMatrix, ReadRequest

# in the order they are looked for: the first word found in a name or description
_WORDS = (
    (r"z[ _-]?scores?", "z-score"),
    (r"fpkm[ _-]?uq", "FPKM-UQ"),
    (r"fpkm", "FPKM"),
    (r"rpkm", "RPKM"),
    (r"tpm", "TPM"),
    (r"cpm", "CPM"),
    (r"(read|raw)[ _-]?counts?", "counts"),
    (r"rsem|rna[ _-]?seq[ _-]?v2", "RSEM"),
)


def fits(head: FileHead) -> bool:
    """Whether the header begins as cBioPortal's."""
    return head.is_text and bool({"Hugo_Symbol", "Entrez_Gene_Id"}.intersection(head.fields()[:2]))


def read(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read the samples asked for; InputError where the file is no table of numbers."""
    raw = genes_text.read(path, request)
    beside = dict(raw.gene_columns)
    entrez = beside.get(ENTREZ)
    ids = raw.row_ids
    if entrez is not None:
        ids = [name or number or "" for name, number in zip(raw.row_ids, entrez, strict=True)]
        beside = {SYMBOL: [name or None for name in raw.row_ids], **beside}
    return dataclasses.replace(raw, row_ids=ids, gene_columns=beside, unit_hint=_unit(path))


def _unit(path: Path) -> str | None:
    """The unit by the meta file beside, else by the file's own name."""
    name = path.name.removesuffix(".gz")
    metas = sorted(path.parent.glob("meta_*.txt"))
    for meta in metas:
        try:
            text = meta.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if said.get("data_filename", "").strip() == name:
            if said.get("datatype", "").strip().upper() == "Z-SCORE":
                return "z-score"
            words = " ".join(said.get(key, "") for key in ("profile_name", "profile_description", "stable_id"))
            if unit := _by_words(words):
                return unit
    return _by_words(name)


def _by_words(text: str) -> str | None:
    text = text.lower()
    for pattern, unit in _WORDS:
        if re.search(pattern, text):
            # a log of a unit that nobody says exactly is no unit of ours
            return unit if unit == "z-score" or "log" not in text else None
    return None
