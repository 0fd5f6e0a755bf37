"""Modalities with named features beside the genes (`cnv`, `protein`): read as a gene matrix is, stored by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.add import Existing
from gimp_ray.ingest.genes import GeneOptions, read_expression
from gimp_ray.ingest.roll import Roll
from gimp_ray.store.manifest import PATCHES, RNA
from gimp_ray.store.tables import features_table
from gimp_ray.store.units import UNKNOWN

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = (PATCHES, RNA, "label", "cases", "slides", "genes", "expression", "splits", "sources")


@dataclass(frozen=True)
class NamedVector:
    """A modality to write: its features, unit, and (G,) float32 values of the cases that have any."""

    features: pa.Table
    unit: str
    cases: frozenset[str]
    values: Callable[[str], np.ndarray]
    is_new: bool
    hashes: Mapping[str, str]
    notes: tuple[str, ...]


def check_names(names: Mapping[str, object], units: Mapping[str, object]) -> None:
    """Refuse names that a modality cannot have (ConfigError)."""
    for name in names:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            expected = f"small letters, digits and _, and none of {', '.join(_TAKEN)}"
            fix = "genes are given with --genes" if name in (RNA, "genes") else "choose another name"
            raise ConfigError("a modality cannot have this name", expected=expected, found=repr(name), fix=fix)
    if odd := set(units) - set(names):
        what = "a unit was given for a modality without a file"
        raise ConfigError(what, found=", ".join(sorted(odd)), fix="give its file too: --vector NAME=FILE")


def read_vectors(
    given: Mapping[str, Path], units: Mapping[str, str], samples: str, roll: Roll, existing: Existing | None
) -> dict[str, NamedVector]:
    """The modalities of the files given and of the store that is added to; stored cases keep their stored values.

    Raises:
        InputError: a file that cannot be read as a matrix of cases and features, or features other than the store's.
    """
    stored = [] if existing is None else [name for name in existing.store.manifest.vectors if name != RNA]
    vectors = {}
    for name in dict.fromkeys([*stored, *given]):
        unit, before = units.get(name, UNKNOWN), existing if name in stored else None
        vectors[name] = _read(name, given.get(name), unit, samples, roll, before)
    return vectors


def _read(name: str, path: Path | None, unit: str, samples: str, roll: Roll, existing: Existing | None) -> NamedVector:
    matrix = None
    if path is not None:
        options = GeneOptions(unit=unit, samples=samples)
        matrix = read_expression((path,), list(roll.case_row), options, None)
        finite = np.isfinite(matrix.values).all(axis=1)
        of_file = {case_id: row for case_id, row in matrix.row_of.items() if finite[row]}
    if existing is None:
        assert matrix is not None and path is not None
        features = features_table(name, matrix.gene_ids, matrix.gene_columns)
        incomplete = len(matrix.row_of) - len(of_file)
        notes = [f"{name}: values of {incomplete} cases are not finite; they are not stored"] if incomplete else []
        found, cases = matrix.expression, frozenset(of_file)
        return NamedVector(features, matrix.unit or UNKNOWN, cases, found, True, matrix.hashes, tuple(notes))
    store = existing.store
    vector, ids, kept = store.manifest.vectors[name], store.features(name), set(store.complete_cases(name))
    if matrix is None:
        was = _stored_values(existing, name)
        return NamedVector(store.table(f"{name}.features"), str(vector.unit), frozenset(kept), was, False, {}, ())
    column = {feature: i for i, feature in enumerate(matrix.gene_ids)}
    if set(column) != set(ids):
        raise InputError(
            f"the features of {name} are not those of the store",
            file=path,
            expected=f"the {len(ids):,} features of {store.path}",
            found=f"{len(column):,} features, {len(set(column) & set(ids)):,} of the store's among them",
            fix="give the same features, or make a new store of all sources",
        )
    order, before = np.array([column[feature] for feature in ids]), _stored_values(existing, name)

    def values(case_id: str) -> np.ndarray:
        return before(case_id) if case_id in kept else np.ascontiguousarray(matrix.expression(case_id)[order])

    cases = frozenset(kept | set(of_file))
    return NamedVector(
        store.table(f"{name}.features"), str(vector.unit), cases, values, cases != kept, matrix.hashes, ()
    )


def _stored_values(existing: Existing, name: str) -> Callable[[str], np.ndarray]:
    return lambda case_id: np.asarray(existing.store.read_vector(name, [case_id])[0])
