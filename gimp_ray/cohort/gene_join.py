"""Joining the gene matrix with the roll of cases.

`read_matrix` and `unit_of` are the way of one matrix without choices; `gene_source.read_expression` is the one for
every format. Left out: converting units. Values are stored as they are, in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from gimp_ray.cohort.gene_options import GeneOptions
from gimp_ray.cohort.gene_source import read_expression, read_unchecked
from gimp_ray.cohort.gene_units import UNKNOWN, parse_unit, value_notes
from gimp_ray.cohort.readers.matrix import GeneMatrix
from gimp_ray.cohort.roll import Roll
from gimp_ray.errors import InputError

__all__ = ["UNKNOWN_UNIT", "GeneOptions", "join", "read_expression", "read_matrix", "unit_of"]

UNKNOWN_UNIT = UNKNOWN
_SAMPLED_CASES = 50


def read_matrix(path: Path, case_ids: Collection[str], orientation: str) -> GeneMatrix:
    """Read a gene file and turn it so that rows are cases; several samples of a case are refused."""
    return read_unchecked([path], case_ids, GeneOptions(orientation=orientation, samples="refuse", par_y="keep"))


def join(roll: Roll, matrix: GeneMatrix) -> list[str]:
    """Leave out cases without (finite) expression; account for samples and files not used. Returns notes."""
    for case_id in sorted(roll.labels):
        if case_id not in matrix.row_of:
            roll.leave_out_case(matrix.without.get(case_id) or _no_genes(matrix, case_id))
            continue
        values = matrix.expression(case_id)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            what = "the case's expression holds NaN or Inf"
            found = f"{values[bad[0]]} for gene {matrix.gene_ids[bad[0]]}; {len(bad):,} such values"
            fix = "complete the values, or drop the genes that some case lacks with the option gene missing: gene"
            file = matrix.file_of(case_id)
            error = InputError(what, file=file, case=case_id, expected="finite values", found=found, fix=fix)
            roll.leave_out_case(error)
    roll.left_out += matrix.left_out
    notes = list(matrix.notes)
    if matrix.matched_by_patient:
        notes.append("genes were matched by TCGA patient (first 12 characters), where no case id matched exactly")
    return notes


def unit_of(matrix: GeneMatrix, case_ids: Sequence[str], declared: str) -> tuple[str, list[str]]:
    """The unit to store, and notes where values, file and declaration disagree. Never refuses."""
    notes = []
    unit = declared if declared != UNKNOWN_UNIT else matrix.unit or UNKNOWN_UNIT
    if matrix.unit is not None and _plain(matrix.unit) != _plain(unit):
        notes.append(f"the gene unit was declared as {unit}, but the file says {matrix.unit}")
    sample = np.stack([matrix.expression(c) for c in case_ids[:_SAMPLED_CASES]]) if case_ids else np.zeros((1, 1))
    whole = bool(np.all(sample == np.rint(sample)))
    return unit, notes + value_notes(unit, float(sample.min()), float(sample.max()), whole)


def _no_genes(matrix: GeneMatrix, case_id: str) -> InputError:
    expected, fix = "the case's id in the gene matrix", "add the case to the gene file, or remove its rows"
    return InputError("the case has no genes", file=matrix.path, case=case_id, expected=expected, fix=fix)


def _plain(unit: str) -> str:
    return (parse_unit(unit) or unit).replace(" ", "").lower()
