"""Whether stores may be merged, and which genes or other features the merged store has.

Features are matched by their ids as they are. Lists that hardly match (versioned Ensembl ids beside unversioned ones)
are refused, never cut down silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.store.manifest import RNA
from gimp_ray.store.schema import vector_tables
from gimp_ray.store.splits import patient_column
from gimp_ray.store.store import CohortStore

GENE_RULES = ("same", "intersect", "union")
_LEAST_SHARED = 0.5
_BLOCK_BYTES = 16 << 20
_VERSION = re.compile(r"\.\d+$")
_NAMED = 10
_OTHER_EMBEDDINGS = "merge stores of one encoder at one magnification; ingest the others anew, or keep them apart"


def refuse_other_kind(stores: Sequence[CohortStore]) -> list[str]:
    """Refuse stores that do not mean the same; notes on what some of them do not say.

    Raises:
        InputError: names the store, and what it and the first one have.
    """
    _refuse(stores, "modalities", _modalities, "ingest all of them with patches, or all with genes, or with both")
    fix = "ingest with values of one unit and declare it; units are never converted"
    for name in stores[0].manifest.vectors:
        what = "gene unit" if name == RNA else f"unit of {name}"
        _refuse(stores, what, lambda s, name=name: s.manifest.vectors[name].unit, fix)  # type: ignore[misc]
    with_patches = [store for store in stores if store.dim is not None]
    for name in ("dim", "dtype", "row_group_rows", "patch_order", "encoder", "magnification", "overlap"):
        _refuse(with_patches, name, lambda s, name=name: getattr(s.manifest.patches, name), _OTHER_EMBEDDINGS)  # type: ignore[misc]
    _refuse(with_patches, "patch size", lambda s: _only(_values(s, "patch_size")), _OTHER_EMBEDDINGS)
    _refuse(with_patches, "unit of coordinates", lambda s: _only(_values(s, "coord_unit")), "merge stores of one tool")
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
    """Refuse stores of which two say different values; None states nothing."""
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
    return " and ".join("genes" if name == RNA else name for name in store.manifest.modalities)


def _values(store: CohortStore, column: str) -> list[Any]:
    """The values of a column of slides.parquet, without null."""
    return [value for value in store.slides[column].unique().to_pylist() if value is not None]


def _only(values: list[Any]) -> Any:
    # CLAM's patch size at a pyramid level may differ between slides of one store: then it is nothing to go by
    return values[0] if len(values) == 1 else None


def _notes(stores: Sequence[CohortStore]) -> list[str]:
    notes = []
    for name in ("encoder", "magnification", "patch_size", "overlap"):
        silent = [store.path for store in stores if getattr(store.manifest.patches, name) is None]
        stated = {getattr(store.manifest.patches, name) for store in stores} - {None}
        if silent and stated:
            notes.append(f"{name} is {stated.pop()} in some of the stores; not named by {', '.join(silent)}")
    sizes = {store.path: sorted(_values(store, "patch_size")) for store in stores}
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


@dataclass(frozen=True)
class MergedFeatures:
    """The features (genes) of a modality of the merged store.

    Attributes:
        feature_ids: in stored order.
        columns: further columns of the table of features; what the first store that states it states.
        index: for each store (G,) the index of every feature in its own list, -1 where it lacks it.
    """

    feature_ids: list[str]
    columns: dict[str, list[str | None]]
    index: list[NDArray[np.int64]]


def merge_features(stores: Sequence[CohortStore], modality: str, rule: str) -> MergedFeatures:
    """The features that stay by `rule`: `same`, `intersect` (the first store's order) or `union` (as first seen).

    Raises:
        InputError: other lists with `same`, or lists that share fewer than half of the smaller one's genes.
    """
    lists = [store.features(modality) for store in stores]
    if rule == "same":
        _refuse_other_genes(stores, lists)
    kept = dict.fromkeys(lists[0])
    for store, genes in zip(stores[1:], lists[1:], strict=True):
        _refuse_strangers(store, kept if rule == "union" else lists[0], genes)
        if rule == "union":
            kept |= dict.fromkeys(genes)
    if rule == "intersect":
        shared = set(lists[0]).intersection(*lists[1:])
        kept = dict.fromkeys(gene for gene in lists[0] if gene in shared)
        _refuse_few(len(kept), lists)
    gene_ids = list(kept)
    index = []
    for genes in lists:
        known = {gene: i for i, gene in enumerate(genes)}
        index.append(np.array([known.get(gene, -1) for gene in gene_ids], dtype=np.int64))
    return MergedFeatures(gene_ids, _further_columns(stores, modality, gene_ids), index)


def rows_of_cases(
    store: CohortStore, modality: str, index: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every case of a store that has a modality, in order, with its (G,) values; 0 for a feature the store lacks."""
    case_ids = store.complete_cases(modality)
    step = max(1, _BLOCK_BYTES // (4 * store.manifest.vectors[modality].num_features))
    lacking = index < 0
    for start in range(0, len(case_ids), step):
        some = case_ids[start : start + step]
        values = store.read_vector(modality, some)[:, index]
        values[:, lacking] = 0
        yield from zip(some, values, strict=True)


def _refuse_other_genes(stores: Sequence[CohortStore], lists: Sequence[Sequence[str]]) -> None:
    first = set(lists[0])
    for store, genes in zip(stores, lists, strict=True):
        odd = first.symmetric_difference(genes)
        if odd:
            gene = next(g for g in [*lists[0], *genes] if g in odd)
            raise InputError(
                "the stores have other genes",
                file=store.path,
                expected=f"the {len(first):,} genes of {stores[0].path}, in any order",
                found=f"{len(genes):,} genes; {len(odd):,} are in one of the two only, such as {gene}",
                fix="take --genes intersect or --genes union",
            )


def _refuse_strangers(store: CohortStore, known: Collection[str], genes: Sequence[str]) -> None:
    """Refuse a store whose genes share less than half of the smaller list with those known from the others."""
    common, smaller = len(set(known).intersection(genes)), min(len(known), len(genes))
    if common >= _LEAST_SHARED * smaller:
        return
    one, other = ({_VERSION.sub("", gene) for gene in some} for some in (known, genes))
    fix = "ingest the stores with gene ids of one kind: symbols, or Ensembl ids, with versions or without"
    if len(one & other) >= _LEAST_SHARED * smaller:
        fix = f"without versions {len(one & other):,} ids match: ingest all with --gene-versions strip"
    raise InputError(
        "the stores' genes hardly match",
        file=store.path,
        expected="at least half of the genes of the smaller list in both",
        found=f"{common:,} of {smaller:,}; genes such as {next(iter(known))} and {genes[0]}",
        fix=fix,
    )


def _refuse_few(shared: int, lists: Sequence[Sequence[str]]) -> None:
    smallest = min(map(len, lists))
    if shared < _LEAST_SHARED * smallest:
        raise InputError(
            "the stores have few genes in common",
            expected="at least half of the smallest list in all of them",
            found=f"{shared:,} of {smallest:,}",
            fix="merge fewer stores, or take --genes union",
        )


def _further_columns(
    stores: Sequence[CohortStore], modality: str, gene_ids: Sequence[str]
) -> dict[str, list[str | None]]:
    stated: dict[str, dict[str, str]] = {}
    for store in reversed(stores):
        table = store.table(vector_tables(modality)[0])
        ids = table.column(0).to_pylist()
        for name in table.column_names[2:]:
            values = zip(ids, table[name].to_pylist(), strict=True)
            stated.setdefault(name, {}).update({gene: value for gene, value in values if value is not None})
    return {name: [of_gene.get(gene) for gene in gene_ids] for name, of_gene in sorted(stated.items())}
