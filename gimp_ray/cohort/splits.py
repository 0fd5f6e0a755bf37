"""Splits: who is in train, val and test of each fold. Made here, imported from a CSV, and checked whenever one is read.

A split is by patient: two cases of one TCGA patient (the first 12 characters of the barcode) are never apart.
Scheme `kfold`: the patients are cut into k parts stratified by label; in fold i part i is test, part i + 1 is val, the
rest is train (k = 5: 60/20/20). Left out: repeated, site-preserved and leave-one-cancer-out schemes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.cohort.schema import table_schema
from gimp_ray.errors import InputError

PARTS = ("train", "val", "test")
KFOLD = "kfold"
IMPORTED = "imported"
_TCGA_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """One fold: the case ids of its parts, each sorted. `val` or `test` is empty where the scheme has none."""

    scheme: str
    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class SplitRow:
    """One row of splits.parquet."""

    scheme: str
    fold: int
    case_id: str
    part: str


def patient_of(case_id: str) -> str:
    """The patient of a case: the TCGA patient barcode where the id starts with one, else the case itself."""
    match = _TCGA_BARCODE.match(case_id)
    return match[0] if match else case_id


def kfold_rows(labels: Mapping[str, str], folds: int, seed: int) -> tuple[list[SplitRow], list[str]]:
    """Scheme `kfold` over the cases of `labels` (case id -> label), and notes on where it had to give way.

    Fewer cases than folds give fewer folds; a class rarer than the folds is spread as far as it goes. Fewer than three
    patients give no rows, since train, val and test need one each.
    """
    patients: dict[str, list[str]] = {}
    for case_id in sorted(labels):
        patients.setdefault(patient_of(case_id), []).append(case_id)
    names = list(patients)
    if len(names) < 3:
        return [], [f"no kfold split was written: {len(names)} patients are too few for train, val and test"]
    strata = [labels[patients[name][0]] for name in names]
    k, notes = min(max(folds, 3), len(names)), []
    if k != folds:
        notes.append(
            f"kfold has {k} folds instead of {folds}: {len(names)} patients, and train, val and test need one each"
        )
    rare = sorted(label for label, count in Counter(strata).items() if count < k)
    if rare:
        notes.append(f"kfold: fewer than {k} patients of class {', '.join(rare)}, so some folds lack it in test or val")
    part_of = _assign(strata, k, seed)
    rows = [
        SplitRow(KFOLD, fold, case_id, _kfold_part(int(part_of[i]), fold, k))
        for fold in range(k)
        for i, name in enumerate(names)
        for case_id in patients[name]
    ]
    return rows, notes


def check_rows(rows: Iterable[SplitRow], file: str | Path) -> None:
    """Refuse rows in which a patient stands in two parts of a fold, or a fold has nothing to train on."""
    folds: dict[tuple[str, int], dict[str, set[str]]] = {}
    for row in rows:
        folds.setdefault((row.scheme, row.fold), {}).setdefault(patient_of(row.case_id), set()).add(row.part)
    for (scheme, fold), parts_of in sorted(folds.items()):
        torn = sorted(patient for patient, parts in parts_of.items() if len(parts) > 1)
        if torn:
            where = "; ".join(f"{p} in {' and '.join(x for x in PARTS if x in parts_of[p])}" for p in torn[:10])
            raise InputError(
                f"a split shares {len(torn)} patient(s) between parts: scheme {scheme}, fold {fold}",
                file=file,
                case=", ".join(torn[:10]) + (f" and {len(torn) - 10} more" if len(torn) > 10 else ""),
                expected="every patient in one part of a fold",
                found=where,
                fix="keep all cases of a patient in one part; else training leaks into the result",
            )
        if not any("train" in parts for parts in parts_of.values()):
            found = f"scheme {scheme}, fold {fold} without train"
            raise InputError(
                "a split has nothing to train on", file=file, expected="at least one train case", found=found
            )


def splits_table(rows: Sequence[SplitRow]) -> pa.Table:
    """splits.parquet from its rows, sorted by scheme, fold and case."""
    ordered = sorted(rows, key=lambda r: (r.scheme, r.fold, r.case_id))
    columns = {name: [getattr(row, name) for row in ordered] for name in ("scheme", "fold", "case_id", "part")}
    return pa.table(columns, schema=table_schema("splits").arrow())


def rows_of(table: pa.Table) -> list[SplitRow]:
    """The rows of splits.parquet."""
    columns = (table[name].to_pylist() for name in ("scheme", "fold", "case_id", "part"))
    return [SplitRow(*values) for values in zip(*columns, strict=True)]


def schemes_of(table: pa.Table) -> dict[str, tuple[int, ...]]:
    """Scheme -> its folds."""
    groups = table.group_by(["scheme", "fold"]).aggregate([])
    schemes: dict[str, list[int]] = {}
    for scheme, fold in zip(groups["scheme"].to_pylist(), groups["fold"].to_pylist(), strict=True):
        schemes.setdefault(scheme, []).append(fold)
    return {scheme: tuple(sorted(schemes[scheme])) for scheme in sorted(schemes)}


def split_of(table: pa.Table, scheme: str, fold: int, known: Collection[str], file: str | Path) -> Split:
    """One fold of splits.parquet, checked against the cases the store has."""
    schemes = schemes_of(table)
    if fold not in schemes.get(scheme, ()):
        found = "; ".join(f"{name}: folds {', '.join(map(str, folds))}" for name, folds in schemes.items())
        raise InputError(
            "the store has no such split",
            file=file,
            expected=f"scheme {scheme}, fold {fold}",
            found=found or "no split at all",
            fix="name one of the stored splits, or ingest with `--splits FILE.csv`",
        )
    rows = rows_of(table.filter((pc.field("scheme") == scheme) & (pc.field("fold") == fold)))
    check_rows(rows, file)
    unknown = sorted({row.case_id for row in rows} - set(known))
    if unknown:
        case = ", ".join(unknown[:10])
        raise InputError(
            "a split names cases the store does not have", file=file, case=case, found=f"{len(unknown)} of them"
        )
    parts = {part: tuple(sorted(row.case_id for row in rows if row.part == part)) for part in PARTS}
    return Split(scheme, fold, parts["train"], parts["val"], parts["test"])


def _assign(strata: Sequence[str], k: int, seed: int) -> np.ndarray:
    """Which of k parts each patient is in: the classes are shuffled and dealt out one after the other.

    Parts, and every class over the parts, differ by one at most; unlike scikit-learn's StratifiedKFold it also serves
    classes rarer than k.
    """
    generator = np.random.default_rng(seed)
    classes = np.array(strata)
    order = np.concatenate([generator.permutation(np.flatnonzero(classes == name)) for name in sorted(set(strata))])
    part_of = np.empty(len(strata), dtype=np.int64)
    part_of[order] = np.arange(len(strata)) % k
    return part_of


def _kfold_part(part: int, fold: int, k: int) -> str:
    if part == fold:
        return "test"
    return "val" if part == (fold + 1) % k else "train"
