"""Joining the gene matrix with the roll of cases, and a look at whether its values fit the unit declared.

Left out: converting units. Values are stored as they are, in float32.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from gimp_ray.cohort.readers.genes import read_gene_file
from gimp_ray.cohort.readers.matrix import GeneMatrix, orient
from gimp_ray.cohort.roll import LeftOut, Roll
from gimp_ray.errors import InputError

UNKNOWN_UNIT = "unknown"

# log2 of the largest FPKM or count ever seen is below 30; a z-score is as well
_LARGEST_LOG = 40.0
_SAMPLED_CASES = 50


def read_matrix(path: Path, case_ids: Collection[str], orientation: str) -> GeneMatrix:
    """Read a gene file and turn it so that rows are cases."""
    return orient(read_gene_file(path), case_ids, orientation)


def join(roll: Roll, matrix: GeneMatrix) -> list[str]:
    """Leave out cases without (finite) expression; account for samples of unknown cases. Returns notes."""
    for case_id in sorted(roll.labels):
        if case_id not in matrix.row_of:
            expected, fix = "the case's id in the gene matrix", "add the case to the gene file, or remove its rows"
            error = InputError("the case has no genes", file=matrix.path, case=case_id, expected=expected, fix=fix)
            roll.leave_out_case(error)
            continue
        values = matrix.expression(case_id)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            what = "the case's expression holds NaN or Inf"
            found = f"{values[bad[0]]} for gene {matrix.gene_ids[bad[0]]}; {len(bad):,} such values"
            fix = "complete the values, or drop the genes that are not measured in every case"
            error = InputError(what, file=matrix.path, case=case_id, expected="finite values", found=found, fix=fix)
            roll.leave_out_case(error)
    used = {matrix.row_of[case_id] for case_id in matrix.row_of}
    for row, name in enumerate(matrix.source_ids):
        if row not in used:
            reason = "its case is not in the case table"
            roll.left_out.append(LeftOut("gene sample", name, reason, file=str(matrix.path), counts=False))
    if matrix.matched_by_patient:
        return ["genes were matched by TCGA patient (first 12 characters), for no case id matched exactly"]
    return []


def unit_of(matrix: GeneMatrix, case_ids: Sequence[str], declared: str) -> tuple[str, list[str]]:
    """The unit to store, and notes where values, file and declaration disagree.

    Never refuses: a unit is the user's word, and what values look like is a guess.
    """
    notes = []
    unit = declared if declared != UNKNOWN_UNIT else matrix.unit or UNKNOWN_UNIT
    if matrix.unit is not None and _plain(matrix.unit) != _plain(unit):
        notes.append(f"the gene unit was declared as {unit}, but the file says {matrix.unit}")
    sample = np.stack([matrix.expression(c) for c in case_ids[:_SAMPLED_CASES]]) if case_ids else np.zeros((1, 1))
    low, high = float(sample.min()), float(sample.max())
    kind = _plain(unit)
    if kind == UNKNOWN_UNIT:
        looks = "not logged" if high > _LARGEST_LOG else "logged or standardised"
        notes.append(
            f"the gene unit is unknown; values from {low:g} to {high:g} look {looks}. Say it with the gene unit option"
        )
    elif "log" in kind and high > _LARGEST_LOG:
        notes.append(f"the gene unit is {unit}, but values up to {high:g} do not look logged")
    elif kind in ("fpkm", "tpm", "counts", "fpkm-uq") and low < 0:
        notes.append(f"the gene unit is {unit}, but there are negative values down to {low:g}")
    elif kind in ("fpkm", "tpm", "counts", "fpkm-uq") and high <= _LARGEST_LOG:
        notes.append(f"the gene unit is {unit}, but no value is above {high:g}: are they logged?")
    elif kind == "counts" and bool(np.any(sample != np.rint(sample))):
        notes.append("the gene unit is counts, but there are values that are no whole numbers")
    return unit, notes


def _plain(unit: str) -> str:
    return re.sub(r"\s+", "", unit).lower()
