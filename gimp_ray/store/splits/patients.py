"""Who is a patient: the unit that is never apart in a split.

The patient of a case is what the column `patient_id` of the case table says, where there is one; else the TCGA patient
barcode (the first 12 characters) where the id starts with one; else the case itself. Left out: guessing patients from
other hospitals' ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PATIENT_COLUMN = "patient_id"
_TCGA_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=$|[-_.])", re.IGNORECASE)
# the same for Arrow, whose regular expressions cannot look ahead
_TCGA_CASE = r"(?is)^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:$|[-_.].*$)"


def patient_of(case_id: str) -> str:
    """The patient of a case: the TCGA patient barcode where the id starts with one, else the case itself."""
    match = _TCGA_BARCODE.match(case_id)
    return match[0] if match else case_id


def patient_column(case_ids: pa.Array | pa.ChunkedArray, cases: pa.Table | None = None) -> pa.ChunkedArray:
    """The patient of every case, as `patient_of` says or as `cases` says.

    Args:
        case_ids: (n,) string.
        cases: a table with `case_id`; its text column `patient_id`, where it has one, rules where it is not null.

    Returns:
        (n,) string.
    """
    column = case_ids if isinstance(case_ids, pa.ChunkedArray) else pa.chunked_array([case_ids])
    patients = pc.replace_substring_regex(column, pattern=_TCGA_CASE, replacement=r"\1")
    if cases is None or PATIENT_COLUMN not in cases.column_names:
        return patients
    said = cases[PATIENT_COLUMN].cast(pa.string()).combine_chunks()
    return pc.coalesce(said.take(pc.index_in(column, cases["case_id"])), patients)


def patient_codes(case_ids: pa.Array, patient_of_case: Mapping[str, object] | None = None) -> np.ndarray:
    """Patients as numbers: (n,) int32, numbered as they first appear.

    Args:
        case_ids: (n,) string.
        patient_of_case: case id -> patient, for the cases where something other than the id says it; None is unknown.
    """
    patients = patient_column(case_ids)
    if patient_of_case:
        said = [patient_of_case.get(case_id) for case_id in case_ids.to_pylist()]
        patients = pc.coalesce(pa.array([None if v is None else str(v) for v in said], pa.string()), patients)
    return np.asarray(patients.combine_chunks().dictionary_encode().indices)
