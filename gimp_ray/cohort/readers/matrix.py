"""The seam every gene reader fills: a `RawMatrix`, a matrix with the names of its rows and columns.

`orient` then finds the cases: which axis holds them (said by the user, or recognised by the case table's ids), by exact
id or by TCGA patient. The matrix is held in memory in the precision of its file. Left out: choosing among several
samples of a case, and units other than the one declared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gimp_ray.cohort.splits import patient_of
from gimp_ray.errors import InputError

CASES_BY_GENES = "cases_by_genes"
GENES_BY_CASES = "genes_by_cases"
ORIENTATIONS = ("auto", CASES_BY_GENES, GENES_BY_CASES)


@dataclass(frozen=True)
class RawMatrix:
    """A matrix as its file has it: `values` (rows, columns); orientation and unit where the file says them."""

    path: Path
    row_ids: list[str]
    column_ids: list[str]
    values: np.ndarray
    orientation: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class GeneMatrix:
    """Expression by case: `values` (cases in the file, G); `row_of` finds a case of the case table in it."""

    path: Path
    source_ids: list[str]
    gene_ids: list[str]
    values: np.ndarray
    unit: str | None
    row_of: dict[str, int]
    matched_by_patient: bool

    def expression(self, case_id: str) -> np.ndarray:
        """(G,) float32."""
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.values[self.row_of[case_id]], dtype=np.float32)


def orient(raw: RawMatrix, case_ids: Collection[str], orientation: str) -> GeneMatrix:
    """Turn the matrix so that rows are cases, and match them with the case table.

    Raises:
        InputError: no case found, cases on both axes, a case or gene twice.
    """
    if orientation == "auto":
        orientation = raw.orientation or _recognise(raw, case_ids)
    if orientation == CASES_BY_GENES:
        ids, genes, values = raw.row_ids, raw.column_ids, raw.values
    else:
        ids, genes, values = raw.column_ids, raw.row_ids, raw.values.T
    _refuse_twice(ids, raw.path, "a case stands twice in the gene matrix", "one column or row a case")
    _refuse_twice(genes, raw.path, "a gene stands twice in the gene matrix", "every gene id once")
    row_of, by_patient = _match(ids, case_ids, raw.path)
    if not row_of:
        raise _no_case(raw, case_ids, ids)
    return GeneMatrix(raw.path, ids, genes, values, raw.unit, row_of, by_patient)


def _recognise(raw: RawMatrix, case_ids: Collection[str]) -> str:
    """The axis that holds cases of the case table, by exact ids if any match, else by TCGA patient."""
    known = set(case_ids)
    patients = {patient_of(case_id) for case_id in known}
    for rows, columns in (
        (len(known.intersection(raw.row_ids)), len(known.intersection(raw.column_ids))),
        (_of_patients(raw.row_ids, patients), _of_patients(raw.column_ids, patients)),
    ):
        if rows and columns:
            raise InputError(
                "the gene matrix has case ids on both axes",
                file=raw.path,
                expected="cases on one axis, genes on the other",
                found=f"{rows} cases among the rows and {columns} among the columns",
                fix=f"say which: gene orientation {CASES_BY_GENES} or {GENES_BY_CASES}",
            )
        if rows or columns:
            return CASES_BY_GENES if rows else GENES_BY_CASES
    raise _no_case(raw, case_ids, raw.row_ids[:3] + raw.column_ids[:3])


def _match(ids: Sequence[str], case_ids: Collection[str], path: Path) -> tuple[dict[str, int], bool]:
    position = {name: i for i, name in enumerate(ids)}
    exact = {case_id: position[case_id] for case_id in case_ids if case_id in position}
    if exact:
        return exact, False
    samples: dict[str, list[int]] = {}
    for i, name in enumerate(ids):
        samples.setdefault(patient_of(name), []).append(i)
    matched = {case_id: samples[patient_of(case_id)] for case_id in case_ids if patient_of(case_id) in samples}
    twice = sorted(case_id for case_id, rows in matched.items() if len(rows) > 1)
    if twice:
        raise InputError(
            "a case has several samples in the gene matrix",
            file=path,
            case=twice[0],
            expected="one sample a case",
            found=", ".join(ids[i] for i in matched[twice[0]])
            + (f"; {len(twice)} such cases" if len(twice) > 1 else ""),
            fix="keep one sample of each case in the gene file, the primary tumour as a rule",
        )
    return {case_id: rows[0] for case_id, rows in matched.items()}, True


def _of_patients(ids: Sequence[str], patients: set[str]) -> int:
    return sum(patient_of(name) in patients for name in ids)


def _refuse_twice(ids: Sequence[str], path: Path, what: str, expected: str) -> None:
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)
    if twice:
        case = twice[0] if "case" in what.split()[:2] else None
        found = ", ".join(twice[:10]) + (f" and {len(twice) - 10} more" if len(twice) > 10 else "")
        raise InputError(
            what, file=path, case=case, expected=expected, found=found, fix="keep one of each in the gene file"
        )


def _no_case(raw: RawMatrix, case_ids: Collection[str], ids: Sequence[str]) -> InputError:
    return InputError(
        "no case of the case table is in the gene matrix",
        file=raw.path,
        expected="case ids such as " + ", ".join(sorted(case_ids)[:3]),
        found="ids such as " + ", ".join(list(ids)[:6]),
        fix="use the case table's ids in the gene file (TCGA barcodes match by their first 12 characters)",
    )
