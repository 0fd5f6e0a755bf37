"""Splits: who is in train, val and test of each fold. Made here, imported from files, and checked whenever one is read.

A split is by patient: two cases of one patient are never apart (`patients.py`). `table.py` holds splits.parquet and its
checks, `schemes.py` makes the schemes. Left out: reading files of splits (`readers/split_table.py`).
"""

from __future__ import annotations

from gimp_ray.store.splits.patients import PATIENT_COLUMN, patient_column, patient_of
from gimp_ray.store.splits.schemes import KFOLD, SPLIT_SCHEMES, check_scheme, kfold_rows, make_scheme
from gimp_ray.store.splits.table import (
    IMPORTED,
    KEYS,
    PARTS,
    Split,
    SplitRow,
    check_rows,
    check_table,
    fold_table,
    is_sorted,
    join_splits,
    keep_cases,
    rows_of,
    schemes_of,
    split_of,
    splits_table,
    unknown_cases,
)

__all__ = [
    "IMPORTED",
    "KEYS",
    "KFOLD",
    "PARTS",
    "PATIENT_COLUMN",
    "SPLIT_SCHEMES",
    "Split",
    "SplitRow",
    "check_rows",
    "check_scheme",
    "check_table",
    "fold_table",
    "is_sorted",
    "join_splits",
    "keep_cases",
    "kfold_rows",
    "make_scheme",
    "patient_column",
    "patient_of",
    "rows_of",
    "schemes_of",
    "split_of",
    "splits_table",
    "unknown_cases",
]
