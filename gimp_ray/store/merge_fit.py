"""Whether stores may be merged: the same kind of embeddings and genes, and no case, patient or slide in two of them.

Left out: which genes stay (`merge_genes.py`), and whether each store is whole (`check.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.store.splits import patient_column
from gimp_ray.store.store import CohortStore

_NAMED = 10
_OTHER_EMBEDDINGS = "merge stores of one encoder at one magnification; ingest the others anew, or keep them apart"


def refuse_other_kind(stores: Sequence[CohortStore]) -> list[str]:
    """Refuse stores that do not mean the same; notes on what some of them do not say.

    Raises:
        InputError: names the store, and what it and the first one have.
    """
    _refuse(stores, "modalities", _modalities, "ingest all of them with patches, or all with genes, or with both")
    with_genes = [store for store in stores if store.num_genes]
    fix = "ingest with values of one unit and declare it; units are never converted"
    _refuse(with_genes, "gene unit", lambda s: s.manifest.gene_unit, fix)
    with_patches = [store for store in stores if store.dim is not None]
    for name in ("dim", "dtype", "row_group_rows", "patch_order", "encoder", "magnification", "overlap"):
        _refuse(with_patches, name, lambda s, name=name: getattr(s.manifest, name), _OTHER_EMBEDDINGS)  # type: ignore[misc]
    _refuse(with_patches, "patch size", lambda s: _only(_said(s, "patch_size")), _OTHER_EMBEDDINGS)
    _refuse(with_patches, "unit of coordinates", lambda s: _only(_said(s, "coord_unit")), "merge stores of one tool")
    return _notes(with_patches)


def refuse_shared(stores: Sequence[CohortStore]) -> None:
    """Refuse a case, a patient or a slide that is in two stores.

    Raises:
        InputError: names up to ten.
    """
    cases = [store.cases["case_id"] for store in stores]
    fix = "leave them out of one of the stores, or give them other ids if they are other {}s"
    _refuse_twice(stores, "case", cases, fix.format("case"))
    patients = [patient_column(store.cases["case_id"], store.cases) for store in stores]
    _refuse_twice(stores, "patient", patients, fix.format("patient") + " (column patient_id)")
    _refuse_twice(stores, "slide", [store.slide_sizes["slide_id"] for store in stores], fix.format("slide"))


def _refuse(stores: Sequence[CohortStore], what: str, value_of: Callable[[CohortStore], Any], fix: str) -> None:
    """Refuse stores of which two say different values; None says nothing."""
    first: tuple[CohortStore, Any] | None = None
    for store in stores:
        value = value_of(store)
        if value is None:
            continue
        first = first or (store, value)
        if value != first[1]:
            raise InputError(
                f"the stores differ in {what}",
                file=store.path,
                expected=f"{first[1]}, as {first[0].path} has",
                found=str(value),
                fix=fix,
            )


def _modalities(store: CohortStore) -> str:
    return " and ".join(
        name for name, has in (("patches", store.dim is not None), ("genes", store.num_genes > 0)) if has
    )


def _said(store: CohortStore, column: str) -> list[Any]:
    """The values of a column of slides.parquet, without null."""
    return [value for value in store.slides[column].unique().to_pylist() if value is not None]


def _only(values: list[Any]) -> Any:
    # CLAM's patch size at a pyramid level may differ between slides of one store: then it is nothing to go by
    return values[0] if len(values) == 1 else None


def _notes(stores: Sequence[CohortStore]) -> list[str]:
    notes = []
    for name in ("encoder", "magnification", "patch_size", "overlap"):
        silent = [store.path for store in stores if getattr(store.manifest, name) is None]
        said = {getattr(store.manifest, name) for store in stores} - {None}
        if silent and said:
            notes.append(f"{name} is {said.pop()} in some of the stores; not named by {', '.join(silent)}")
    sizes = {store.path: sorted(_said(store, "patch_size")) for store in stores}
    if any(len(some) > 1 for some in sizes.values()):
        everywhere = ", ".join(str(size) for size in sorted({size for some in sizes.values() for size in some}))
        notes.append(f"the slides differ in patch_size: {everywhere}")
    return notes


def _refuse_twice(stores: Sequence[CohortStore], what: str, ids: Sequence[pa.ChunkedArray], fix: str) -> None:
    """Refuse an id that is in two of the columns."""
    encoded = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    encoded = encoded.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    store_of = np.repeat(np.arange(len(ids)), [len(column) for column in ids])
    first, last = np.full(len(encoded.dictionary), len(ids)), np.full(len(encoded.dictionary), -1)
    np.minimum.at(first, codes, store_of)
    np.maximum.at(last, codes, store_of)
    shared = np.flatnonzero(first < last)
    if len(shared):
        names = encoded.dictionary.take(pa.array(shared[:_NAMED])).to_pylist()
        one, other = stores[int(first[shared[0]])].path, stores[int(last[shared[0]])].path
        raise InputError(
            f"a {what} is in two of the stores",
            file=other,
            case=", ".join(names) + (f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""),
            expected=f"every {what} in one store",
            found=f"{len(shared):,} {what}s in two stores; {names[0]} is in {one} too",
            fix=fix,
        )
