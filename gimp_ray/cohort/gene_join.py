"""Joining the gene matrix with the roll of cases.

Left out: reading it (`gene_source.py`) and converting units. Values are stored as they are, in float32.
"""

from __future__ import annotations

import numpy as np

from gimp_ray.cohort.readers.matrix import GeneMatrix
from gimp_ray.cohort.roll import Roll
from gimp_ray.errors import InputError


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
            fix = "complete the values, or drop the genes that some case lacks with gene_missing: gene"
            file = matrix.file_of(case_id)
            error = InputError(what, file=file, case=case_id, expected="finite values", found=found, fix=fix)
            roll.leave_out_case(error)
    roll.left_out += matrix.left_out
    notes = list(matrix.notes)
    if matrix.matched_by_patient:
        notes.append("genes were matched by TCGA patient (first 12 characters), where no case id matched exactly")
    return notes


def _no_genes(matrix: GeneMatrix, case_id: str) -> InputError:
    expected, fix = "the case's id in the gene matrix", "add the case to the gene file, or remove its rows"
    found = f"{len(matrix.row_of):,} other cases" if matrix.row_of else "no case"
    return InputError("the case has no genes", file=matrix.path, case=case_id, expected=expected, found=found, fix=fix)
