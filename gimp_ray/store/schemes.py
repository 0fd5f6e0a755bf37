"""The split schemes that are made here: by patient, stratified by label, a pure function of the labels and a seed.

- `kfold`: the patients are cut into k parts; in fold i part i is test, part i + 1 is val, the rest is train (k = 5:
  60/20/20).
- `repeated`: `kfold` several times with other shuffles; fold = repeat * k + fold of the repeat. Repeat 0 is `kfold`.
- `fixed`: one fold, with given shares of train, val and test.
- `site`: like `kfold`, but all cases of a site (column `site`) are in one part (`sites.py`).
- `leave_one_out:COLUMN`: a fold for every value of a column of the case table, which is its test part; val is taken
  from the rest.

A scheme that is impossible for a cohort (too few patients) has no rows, and a note says why. Left out: bootstrap and
Monte-Carlo splits, which can be imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.store.schema import table_schema
from gimp_ray.store.sites import group_sites, spread_groups
from gimp_ray.store.splits import PARTS, PATIENT_COLUMN, SplitRow, fold_table, patient_codes, rows_of

KFOLD = "kfold"
REPEATED = "repeated"
FIXED = "fixed"
SITE = "site"
LEAVE_ONE_OUT = "leave_one_out"
SPLIT_SCHEMES = (KFOLD, REPEATED, FIXED, SITE, f"{LEAVE_ONE_OUT}:COLUMN")
SHARES = (0.6, 0.2, 0.2)
_TRAIN, _VAL, _TEST = range(3)
_MOST_FOLDS = 1000
_SHOWN = 8

Columns = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class _Cohort:
    """Cases and patients as arrays: n cases, m patients, numbered as their first case stands among the sorted cases.

    Attributes:
        case_ids: (n,) string, the cases of one patient together.
        patient: (n,) patient of each case.
        strata: (m,) label of each patient's first case.
    """

    case_ids: pa.Array
    patient: np.ndarray
    strata: np.ndarray

    @property
    def patients(self) -> int:
        return len(self.strata)


def make_scheme(
    name: str,
    labels: Mapping[str, str],
    columns: Columns,
    *,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
) -> tuple[pa.Table, list[str]]:
    """The rows of a scheme over the cases of `labels`, and notes on where it had to give way.

    Args:
        name: one of `SPLIT_SCHEMES`; `leave_one_out:COLUMN` with the name of a column.
        labels: case id -> label; every case of it stands in every fold.
        columns: column -> case id -> value: `site` for the scheme `site`, the column of `leave_one_out`, and, where the
            case table has it, `patient_id`, which then says who is one patient.
        folds: k of `kfold`, `repeated` and `site`; at least 3.
        repeats: repeats of `repeated`.
        seed: the same seed gives the same rows.
        shares: of train, val and test, for `fixed`; `leave_one_out` takes the ratio of train and val from it.

    Returns:
        Rows of splits.parquet, none where the cohort is too small for the scheme; and the notes.

    Raises:
        ConfigError: an unknown scheme, or an option out of range.
        InputError: the column a scheme needs is missing, or a case has no value in it.
    """
    check_scheme(name, folds=folds, repeats=repeats, shares=shares)
    cohort = _cohort(labels, columns.get(PATIENT_COLUMN))
    if cohort.patients < 3:
        what = f"no {name} split was written: {cohort.patients} patients are too few for train, val and test"
        return _no_rows(), [what]
    if name == KFOLD:
        return _kfold(KFOLD, cohort, folds, [seed])
    if name == REPEATED:
        return _kfold(REPEATED, cohort, folds, [seed, *([seed, repeat] for repeat in range(1, repeats))])
    if name == FIXED:
        return _fixed(cohort, shares, seed)
    if name == SITE:
        return _site(cohort, _values(columns, SITE, labels, name), folds, seed)
    column = name.partition(":")[2]
    return _leave_one_out(name, cohort, _values(columns, column, labels, name), shares, seed)


def check_scheme(name: str, *, folds: int = 5, repeats: int = 1, shares: Sequence[float] = SHARES) -> None:
    """Refuse a scheme that does not exist or options it cannot have (ConfigError)."""
    kind, _, column = name.partition(":")
    if name not in (KFOLD, REPEATED, FIXED, SITE) and not (kind == LEAVE_ONE_OUT and column):
        expected = ", ".join(SPLIT_SCHEMES)
        fix = "choose among these; leave_one_out names a column of the case table"
        raise ConfigError("there is no such split scheme", expected=expected, found=repr(name), fix=fix)
    if folds < 3 or repeats < 1:
        found = f"folds {folds}, repeats {repeats}"
        what, expected = "a split option is out of range", "folds >= 3, repeats >= 1"
        raise ConfigError(what, expected=expected, found=found, fix="correct the option")
    if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or sum(shares[1:]) <= 0 or abs(sum(shares) - 1) > 1e-6:
        expected = "three shares of train, val and test, none negative, some to train and some to hold out, of sum 1"
        what, fix = "the shares of a split are impossible", "such as [0.6, 0.2, 0.2]"
        raise ConfigError(what, expected=expected, found=str(list(shares)), fix=fix)


def kfold_rows(labels: Mapping[str, str], folds: int, seed: int) -> tuple[list[SplitRow], list[str]]:
    """Scheme `kfold` over the cases of `labels` (case id -> label) as rows, and notes on where it had to give way.

    Fewer cases than folds give fewer folds; a class rarer than the folds is spread as far as it goes. Fewer than three
    patients give no rows, since train, val and test need one each.
    """
    table, notes = make_scheme(KFOLD, labels, {}, folds=folds, seed=seed)
    return rows_of(table), notes


def _cohort(labels: Mapping[str, str], patient_of_case: Mapping[str, object] | None) -> _Cohort:
    names = sorted(labels)
    case_ids = pa.array(names, pa.string())
    patient = patient_codes(case_ids, patient_of_case)
    order = np.argsort(patient, kind="stable")
    first = order[np.flatnonzero(np.diff(patient[order], prepend=-1))]
    strata = np.array([labels[names[i]] for i in first])
    return _Cohort(case_ids.take(pa.array(order)), patient[order], strata)


def _kfold(name: str, cohort: _Cohort, folds: int, seeds: Sequence[int | list[int]]) -> tuple[pa.Table, list[str]]:
    k, notes = min(folds, cohort.patients), []
    if k != folds:
        patients = f"{cohort.patients} patients, and train, val and test need one each"
        notes.append(f"{name} has {k} folds instead of {folds}: {patients}")
    rare = sorted(str(label) for label, count in Counter(cohort.strata.tolist()).items() if count < k)
    if rare:
        what = f"fewer than {k} patients of class {', '.join(rare)}, so some folds lack it in test or val"
        notes.append(f"{name}: {what}")
    tables = []
    for repeat, seed in enumerate(seeds):
        part_of = _assign(cohort.strata, k, seed)
        tables += _rotated(name, cohort, part_of, k, first_fold=repeat * k)
    return pa.concat_tables(tables), notes


def _rotated(name: str, cohort: _Cohort, part_of: np.ndarray, k: int, first_fold: int = 0) -> list[pa.Table]:
    """A fold for each of the k parts of the patients: part i is test, part i + 1 is val, the rest is train."""
    of_case = part_of[cohort.patient]
    tables = []
    for fold in range(k):
        parts = np.full(len(of_case), _TRAIN, np.int8)
        parts[of_case == (fold + 1) % k] = _VAL
        parts[of_case == fold] = _TEST
        tables.append(fold_table(name, first_fold + fold, cohort.case_ids, parts))
    return tables


def _assign(strata: np.ndarray, k: int, seed: int | list[int]) -> np.ndarray:
    """Which of k parts each patient is in: the classes are shuffled and dealt out one after the other.

    Parts, and every class over the parts, differ by one at most; unlike scikit-learn's StratifiedKFold it also serves
    classes rarer than k.
    """
    part_of = np.empty(len(strata), dtype=np.int64)
    part_of[_shuffled_by_class(strata, np.random.default_rng(seed))] = np.arange(len(strata)) % k
    return part_of


def _shuffled_by_class(strata: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The patients class by class, each class shuffled."""
    return np.concatenate([generator.permutation(np.flatnonzero(strata == name)) for name in np.unique(strata)])


def _fixed(cohort: _Cohort, shares: Sequence[float], seed: int) -> tuple[pa.Table, list[str]]:
    part_of = _share_out(cohort.strata, shares, np.random.default_rng(seed))
    table = fold_table(FIXED, 0, cohort.case_ids, part_of[cohort.patient])
    counts = ", ".join(f"{np.sum(part_of == place):,} {part}" for place, part in enumerate(PARTS))
    notes = _missing_classes(FIXED, 0, cohort.strata, part_of)
    return table, [f"{FIXED}: {counts} patients", *notes]


def _share_out(strata: np.ndarray, shares: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """(m,) part of each patient: parts of the given shares, at least one patient each, every class in proportion.

    The patients go by class, and each goes to the part that is furthest behind its share; that ends at the exact
    totals, and no class is off by more than two patients.
    """
    totals = _totals(len(strata), shares)
    quota = totals / len(strata)
    part_of = np.empty(len(strata), dtype=np.int64)
    behind = np.zeros(len(shares))
    for patient in _shuffled_by_class(strata, generator):
        behind += quota
        part = int(behind.argmax())
        part_of[patient] = part
        behind[part] -= 1
    return part_of


def _totals(n: int, shares: Sequence[float]) -> np.ndarray:
    """n patients in whole numbers by shares (largest remainder), at least one where the share is above 0."""
    exact = np.array(shares, dtype=float) * n
    totals = np.floor(exact + 1e-9).astype(np.int64)
    for part in np.argsort(totals - exact, kind="stable")[: n - int(totals.sum())]:
        totals[part] += 1
    for part in np.flatnonzero((totals == 0) & (exact > 0)):
        totals[int(totals.argmax())] -= 1
        totals[part] = 1
    return totals


def _site(cohort: _Cohort, site_of: Mapping[str, str], folds: int, seed: int) -> tuple[pa.Table, list[str]]:
    sites = [site_of[case_id] for case_id in cohort.case_ids.to_pylist()]
    group, names, joined = group_sites(sites, cohort.patient)
    notes = [f"site: sites that share a patient stay together: {', '.join(found)}" for found in joined]
    k = min(folds, len(names))
    if k < 3:
        return _no_rows(), [f"no site split was written: {len(names)} sites are too few for train, val and test"]
    if k != folds:
        notes.append(f"site has {k} folds instead of {folds}: {len(names)} sites, each in one part")
    classes, of_class = np.unique(cohort.strata, return_inverse=True)
    of_patient = np.empty(cohort.patients, dtype=np.int64)
    of_patient[cohort.patient] = group
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(counts, (of_patient, of_class), 1)
    part_of = spread_groups(counts, k, seed)[of_patient]
    table = np.zeros((k, len(classes)), dtype=np.int64)
    np.add.at(table, (part_of, of_class), 1)
    notes += _balance_notes(table, classes)
    return pa.concat_tables(_rotated(SITE, cohort, part_of, k)), notes


def _balance_notes(table: np.ndarray, classes: np.ndarray) -> list[str]:
    """How even the parts of a site split are: `table` is (parts, classes) patients."""
    sizes = table.sum(axis=1)
    shares = table / sizes[:, None]
    spans = [
        f"{name} {low:.0%} to {high:.0%}" for name, low, high in zip(classes, shares.min(0), shares.max(0), strict=True)
    ]
    shown = ", ".join(spans[:_SHOWN]) + (f" and {len(spans) - _SHOWN} more classes" if len(spans) > _SHOWN else "")
    notes = [f"site: {sizes.min():,} to {sizes.max():,} patients a part; {shown}"]
    lacking = [str(name) for name, low in zip(classes, table.min(0), strict=True) if low == 0]
    if lacking:
        notes.append(f"site: class {', '.join(lacking)} comes from too few sites, so some folds lack it in test or val")
    return notes


def _leave_one_out(
    name: str, cohort: _Cohort, value_of: Mapping[str, str], shares: Sequence[float], seed: int
) -> tuple[pa.Table, list[str]]:
    values, of_case = np.unique([value_of[case_id] for case_id in cohort.case_ids.to_pylist()], return_inverse=True)
    if len(values) < 2:
        return _no_rows(), [f"no {name} split was written: every case has the value {values[0]}"]
    if len(values) > _MOST_FOLDS:
        found = f"{len(values):,} values, such as {', '.join(values[:3])}"
        expected = f"a column with at most {_MOST_FOLDS:,} values: every value is a fold"
        raise InputError(f"{name} has too many folds", expected=expected, found=found, fix="name another column")
    val = shares[_VAL] / (shares[_TRAIN] + shares[_VAL])
    tables, notes, mixed = [], [], 0
    for fold, value in enumerate(values):
        part_of = np.full(cohort.patients, _TEST, dtype=np.int64)
        tested = np.zeros(cohort.patients, dtype=bool)
        tested[cohort.patient[of_case == fold]] = True
        mixed += int(np.sum(tested[cohort.patient] & (of_case != fold)))
        rest = np.flatnonzero(~tested)
        if len(rest) < 2:
            notes.append(f"{name}: fold {fold} ({value}) was not written: too few patients have another value")
            continue
        generator = np.random.default_rng([seed, fold])
        part_of[rest] = _share_out(cohort.strata[rest], [1 - val, val], generator)
        tables.append(fold_table(name, fold, cohort.case_ids, part_of[cohort.patient]))
    listed = ", ".join(f"{fold} {value}" for fold, value in enumerate(values))
    notes.insert(0, f"{name}: the test part of each fold is {listed}")
    if mixed:
        notes.append(f"{name}: {mixed} times a case was tested with another value, since its patient has cases of both")
    return pa.concat_tables(tables) if tables else _no_rows(), notes


def _missing_classes(name: str, fold: int, strata: np.ndarray, part_of: np.ndarray) -> list[str]:
    """Notes on classes that a part of a fold lacks, where the part has patients."""
    notes = []
    for place, part in enumerate(PARTS):
        here = set(strata[part_of == place])
        lacking = sorted(set(strata) - here)
        if here and lacking:
            notes.append(f"{name}: fold {fold} has no {', '.join(lacking)} in {part}")
    return notes


def _values(columns: Columns, column: str, labels: Mapping[str, str], scheme: str) -> dict[str, str]:
    """The column's value of every case; refused where the column or a value is missing."""
    if column not in columns:
        raise InputError(
            f"the split scheme {scheme} needs the column {column}",
            expected=f"column {column} with one value a case in the case table",
            found=", ".join(sorted(columns)) or "no further columns",
            fix="add the column to the case table, or choose another scheme",
        )
    values = columns[column]
    without = sorted(case_id for case_id in labels if values.get(case_id) is None)
    if without:
        raise InputError(
            f"the split scheme {scheme} needs {column} of every case",
            case=", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else ""),
            expected=f"a value of {column}",
            found=f"{len(without)} cases without one",
            fix="complete the column, or leave those cases out",
        )
    return {case_id: str(values[case_id]) for case_id in labels}


def _no_rows() -> pa.Table:
    return table_schema("splits").arrow().empty_table()
