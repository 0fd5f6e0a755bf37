"""The options of reading gene files, and which unit their values have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import field_validator

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.options import Options
from gimp_ray.store.units import LINEAR, UNKNOWN, canonical, is_linear, parse_unit

# log2 of the largest FPKM or count ever seen is below 30; a z-score is as well
_LARGEST_LOG = 40.0
_ROWS_AT_ONCE = 64


class GeneOptions(Options):
    """How gene files become one matrix of cases and genes. Refusals name the options as an ingest does (`gene_names`).

    Args:
        orientation: of matrices: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases`.
        unit: unit of the values, such as `FPKM` or `log2(FPKM+1)`; `unknown` takes what the files say.
        column: which values of a file that has several: a GDC STAR column (`unstranded`, `tpm_unstranded`, ...), a
            layer of an `.h5ad`. None: the STAR column of `unit`, `fpkm_unstranded` where that says none; X of an h5ad.
        versions: `keep` or `strip` the versions of Ensembl ids (`ENSG00000141510.16` -> `ENSG00000141510`).
        names: what the store names a gene by: `id`, the file's own key (its first column; gene_id of GDC, Hugo_Symbol
            of cBioPortal), `symbol`, or `entrez`, where the file has them.
        duplicates: rows of one name: `refuse`; `first` row; `mean` or `sum` of them; `max`, the row with the highest
            mean over the cases.
        par_y: rows of the Y copies of pseudo-autosomal genes (`..._PAR_Y`, `ENSGR...`): `drop`, `keep` under their own
            names, `add` to the X copy (linear units alone).
        samples: several samples of a case: `primary` takes the primary tumour, the first vial and aliquot of several;
            `refuse`; `mean` of the samples of the best kind.
        gene_list: file of genes to keep, in its order: text (one a line), GMT or CSV.
        genes: of several files: `same` refuses different genes, `intersect` keeps those that all have.
        missing: a value that is missing leaves out its `case`, or its `gene` for all cases.
    """

    orientation: Literal["auto", "cases_by_genes", "genes_by_cases"] = "auto"
    unit: str = UNKNOWN
    column: str | None = None
    versions: Literal["keep", "strip"] = "keep"
    names: Literal["id", "symbol", "entrez"] = "id"
    duplicates: Literal["refuse", "first", "mean", "max", "sum"] = "refuse"
    par_y: Literal["drop", "keep", "add"] = "drop"
    samples: Literal["primary", "refuse", "mean"] = "primary"
    gene_list: Path | None = None
    genes: Literal["same", "intersect"] = "same"
    missing: Literal["case", "gene"] = "case"

    @field_validator("unit")
    @classmethod
    def _unit_is_text(cls, unit: str) -> str:
        if not unit.strip():
            raise ConfigError(
                "the gene unit is empty",
                expected="a unit such as FPKM",
                found=repr(unit),
                fix="leave the unit out where it is not known",
            )
        return unit


@dataclass(frozen=True)
class RecordedUnit:
    """What a file says of its unit: `content` is certain, `hint` is its name or a file beside it; None for nothing."""

    path: Path
    content: str | None = None
    hint: str | None = None


def resolve_unit(declared: str, recorded: Sequence[RecordedUnit]) -> tuple[str, bool, list[str]]:
    """The unit of the values, whether it is certain (declared, or recorded in the content), and notes.

    Raises:
        InputError: files of different units, or one whose content contradicts the declared unit.
    """
    _refuse_mixture(declared, recorded)
    notes: list[str] = []
    if parse_unit(declared) != UNKNOWN:
        unit = canonical(declared)
        if parse_unit(unit) is None:
            notes.append(f"the gene unit {unit} is none of the known ones; it is kept as written")
        for file in recorded:
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
    content = next((file.content for file in recorded if file.content), None)
    if content is not None:
        return canonical(content), True, notes
    hinted = next((file for file in recorded if file.hint), None)
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
        certain: the unit was declared or is recorded in the files' content, not by a name.

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


def _refuse_mixture(declared: str, recorded: Sequence[RecordedUnit]) -> None:
    """Refuse files that differ in what they say; a file that says nothing agrees only with a declared unit."""
    units: dict[str, list[RecordedUnit]] = {}
    for file in recorded:
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
