"""The genes of a merged store, and the expression of its cases, read from the members in blocks.

Genes are matched by their ids as they are. Lists that hardly match (versioned Ensembl ids beside unversioned ones) are
refused, never cut down silently. Left out: converting ids or units.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.store.store import CohortStore

GENE_RULES = ("same", "intersect", "union")
_LEAST_SHARED = 0.5
_BLOCK_BYTES = 16 << 20
_VERSION = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class MergedGenes:
    """The genes of the merged store.

    Attributes:
        gene_ids: in stored order.
        columns: further columns of genes.parquet; what the first store that says it says.
        places: for each store (G,) the place of every gene in its own list, -1 where it lacks it.
    """

    gene_ids: list[str]
    columns: dict[str, list[str | None]]
    places: list[NDArray[np.int64]]


def merge_genes(stores: Sequence[CohortStore], rule: str) -> MergedGenes:
    """The genes that stay by `rule`: `same`, `intersect` (the first store's order) or `union` (as first seen).

    Raises:
        InputError: other lists with `same`, or lists that share fewer than half of the smaller one's genes.
    """
    lists = [store.gene_ids for store in stores]
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
    places = []
    for genes in lists:
        place = {gene: i for i, gene in enumerate(genes)}
        places.append(np.array([place.get(gene, -1) for gene in gene_ids], dtype=np.int64))
    return MergedGenes(gene_ids, _further_columns(stores, gene_ids), places)


def rows_of_cases(store: CohortStore, places: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every case of a store in its order, with its (G,) expression; 0 for a gene that the store lacks."""
    case_ids = store.cases["case_id"]
    step = max(1, _BLOCK_BYTES // (4 * store.num_genes))
    lacking = places < 0
    for start in range(0, len(case_ids), step):
        some = case_ids.slice(start, step).to_pylist()
        values = store.read_genes(some)[:, places]
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


def _further_columns(stores: Sequence[CohortStore], gene_ids: Sequence[str]) -> dict[str, list[str | None]]:
    said: dict[str, dict[str, str]] = {}
    for store in reversed(stores):
        table = store.table("genes")
        ids = table["gene_id"].to_pylist()
        for name in table.column_names[2:]:
            values = zip(ids, table[name].to_pylist(), strict=True)
            said.setdefault(name, {}).update({gene: value for gene, value in values if value is not None})
    return {name: [of_gene.get(gene) for gene in gene_ids] for name, of_gene in sorted(said.items())}
