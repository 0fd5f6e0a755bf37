"""Gene sets as the groups of GroupMSA: each set's genes fill the fragments of one group, padded to a common size.

The paper groups fragments of the gene list as it comes; with sets (MSigDB's Hallmark, pathways) a group token speaks
for one set. A gene of several sets stands in each; genes of no set are not used. Left out: sets of unequal width,
which would need a projection each.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.io.gene_sets import match_gene_sets, read_gene_sets
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.store import CohortStore


@dataclass(frozen=True)
class SetPlaces:
    """Where gene sets stand among the values of an `arranged` input, without the genes themselves.

    Attributes:
        names: (R,) sets.
        sizes: (R,) genes of each; they come first among its slots.
        width: slots of a set.
        fragments: fragments in all, a multiple of R.
        sha256: of the sets' file.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    width: int
    fragments: int
    sha256: str

    @property
    def groups(self) -> list[list[int]]:
        """For each set the numbers of its values."""
        return [list(range(row * self.width, row * self.width + size)) for row, size in enumerate(self.sizes)]

    @property
    def card(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> SetPlaces:
        """Back from plain data."""
        return cls(**card | {"names": tuple(card["names"]), "sizes": tuple(card["sizes"])})


@dataclass(frozen=True)
class SetLayout:
    """Where genes stand when groups are sets.

    Attributes:
        names: (R,) sets that have genes in the store.
        slots: (R, slots of a group) places in the store's gene list; -1 is padding.
        fragments: fragments in all, a multiple of R.
        sha256: of the sets' file.
    """

    names: tuple[str, ...]
    slots: NDArray[np.int64]
    fragments: int
    sha256: str

    @property
    def places(self) -> SetPlaces:
        """The same without the genes."""
        sizes = tuple(int(size) for size in (self.slots >= 0).sum(axis=1))
        return SetPlaces(self.names, sizes, self.slots.shape[1], self.fragments, self.sha256)


def layout_of_sets(path: Path, store: CohortStore, fragments: int) -> SetLayout:
    """The layout of a file of gene sets over a store's genes.

    Args:
        path: GMT, or CSV.
        fragments: wished for in all; each group gets an equal share, at least one.

    Raises:
        InputError: no such file, not gene sets, or none of their genes in the store.
    """
    genes = store.table("genes")
    symbols = genes["symbol"].to_pylist() if "symbol" in genes.column_names else None
    match = match_gene_sets(read_gene_sets(path), store.gene_ids, symbols)
    found = {name: places for name, places in match.sets.items() if len(places)}
    if not found:
        raise InputError(
            "no gene of the gene sets is in the store",
            file=path,
            expected="genes such as " + ", ".join(store.gene_ids[:3]),
            found="genes such as " + ", ".join(next(iter(match.unmatched.values()), ())[:3]),
            fix="use sets of the names the store has, or ingest with --gene-names symbol",
        )
    a_group = max(1, round(fragments / len(found)))
    largest = max(len(places) for places in found.values())
    width = a_group * -(-largest // a_group)
    slots = np.full((len(found), width), -1, dtype=np.int64)
    for row, places in enumerate(found.values()):
        slots[row, : len(places)] = places
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return SetLayout(tuple(found), slots, a_group * len(found), sha256)


def arranged(fitted: GeneInput, layout: SetLayout) -> GeneInput:
    """A fitted input whose values come out in the layout's slots, each set in the fitted order; padding gives 0."""
    rank = torch.empty(fitted.num_genes, dtype=torch.int64)
    rank[fitted.select] = torch.arange(fitted.num_kept)
    slots = torch.from_numpy(layout.slots)
    order = torch.where(slots >= 0, rank[slots.clamp_min(0)], fitted.num_kept)
    order = order.sort(dim=1).values.flatten()
    padding, place = order == fitted.num_kept, order.clamp_max(fitted.num_kept - 1)
    result = GeneInput(fitted.num_genes, bool(fitted.log), float(fitted.clip), num_kept=len(order))
    for name in ("select", "mean", "std", "constant"):
        getattr(result, name).copy_(getattr(fitted, name)[place])
    result.constant |= padding
    return result
