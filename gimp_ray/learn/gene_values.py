"""Expression as a network sees it: the fitted input, what is known about it, and how it reads any store.

The input (selection, log2(x + 1), z-score, clipping) is fitted on training cases alone and kept with the model. Genes
are matched by id, so a trained model reads any store that has its genes, whatever their order, in the same unit. Left
out: networks over the values (`gene_side.py`, `methods/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimp_ray.errors import InputError
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.learn.gene_layout import SetLayout, SetPlaces, arranged, layout_of_sets
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.store import CohortStore
from gimp_ray.store.units import LINEAR_WORDS, SCALED_WORDS, UNKNOWN, looks_linear

CHUNK = 64  # cases read at once


@dataclass(frozen=True)
class GeneValues:
    """A fitted input, its card and where its genes stand in a store.

    Attributes:
        input: raw expression in the card's gene order -> values of a network.
        card: gene ids, numbers, unit, and the cases it was fitted on.
        columns: place of each of the card's genes in the store; None where both orders are the same.
        sets: where gene sets stand among the values; None without sets.
    """

    input: GeneInput
    card: dict[str, Any]
    columns: NDArray[np.int64] | None = None
    sets: SetPlaces | None = None

    def read(self, store: CohortStore, case_ids: Sequence[str]) -> NDArray[np.float32]:
        """(n, G) raw expression of some cases in the card's gene order."""
        return read_columns(store, case_ids, self.columns)


def read_columns(store: CohortStore, case_ids: Sequence[str], columns: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """(n, G) raw expression of some cases, in the store's gene order or in that of `columns`."""
    values = store.read_genes(list(case_ids))
    return values if columns is None else values[:, columns]


def fit_gene_values(store: CohortStore, index: CohortIndex, genes: Any, fragments: int | None = None) -> GeneValues:
    """An input fitted on the index's (training) cases alone.

    Args:
        store: what the cases are in.
        index: the training cases.
        genes: which genes are kept and how they are scaled.
        fragments: lay the genes of `genes.sets` out in that many fragments, all of these genes kept; None leaves sets
            out.

    Raises:
        InputError: a unit that says nothing, values that cannot be scaled, sets that are not in the store.
    """
    layout = set_layout(store, genes, fragments)
    log = needs_log(store, index) if genes.log is None else genes.log
    try:
        fitted = GeneInput.fit(
            _training_rows(store, index),
            log=log,
            top_genes=0 if layout is not None else genes.top_genes,
            select_by=genes.select_by,
            order=genes.order,
            clip=genes.clip,
        )
    except ValueError as error:
        raise InputError("the genes cannot be scaled", file=store.path, found=str(error), fix="see genes.log") from None
    if layout is not None:
        fitted = arranged(fitted, layout)
    card = {
        "num_genes": store.num_genes,
        "num_kept": fitted.num_kept,
        "gene_sets": None if layout is None else layout.places.card,
        "log": log,
        "gene_unit": store.manifest.gene_unit,
        "gene_ids": store.gene_ids,
        "fitted_on": [str(case) for case in index.case_ids],
    }
    return GeneValues(fitted, card, sets=None if layout is None else layout.places)


def rebuild_gene_values(card: dict[str, Any], weights: dict[str, Tensor], store: CohortStore, file: Path) -> GeneValues:
    """The input of a card and its buffers, matched to a store's genes by id.

    Raises:
        InputError: the store lacks genes of the model, or has another unit.
    """
    columns = columns_in(card, store, file)
    fitted = GeneInput(card["num_genes"], num_kept=card["num_kept"])
    fitted.load_state_dict(weights)
    sets = None if card["gene_sets"] is None else SetPlaces.of_card(card["gene_sets"])
    return GeneValues(fitted, card, columns, sets)


def set_layout(store: CohortStore, genes: Any, fragments: int | None) -> SetLayout | None:
    """The layout of `genes.sets` in that many fragments; None without sets, or where they are not to be used."""
    if genes.sets is None or fragments is None:
        return None
    return layout_of_sets(Path(genes.sets), store, fragments)


def num_values(store: CohortStore, genes: Any, layout: SetLayout | None) -> int:
    """How many values a fitted input will hand over."""
    if layout is not None:
        return int(layout.slots.size)
    return min(genes.top_genes, store.num_genes) if genes.top_genes else store.num_genes


def needs_log(store: CohortStore, index: CohortIndex) -> bool:
    """Whether expression is on a linear scale: by the declared unit, or where that is unknown by its size.

    Raises:
        InputError: the unit is none that is known to be linear or not.
    """
    unit = store.manifest.gene_unit or UNKNOWN
    if unit == UNKNOWN:
        sample = store.read_genes([str(case) for case in index.case_ids[:CHUNK]])
        # log2(x + 1) of any expression unit stays well below this; linear units pass it by far
        return bool(sample.min() >= 0 and sample.max() > 30)
    linear = looks_linear(unit)
    if linear is not None:
        return linear
    raise InputError(
        "the unit of the genes says neither that they are linear nor that they are not",
        file=store.path,
        expected=f"a unit with one of {', '.join((*LINEAR_WORDS, *SCALED_WORDS))}",
        found=str(store.manifest.gene_unit),
        fix="say genes.log: true to take log2(x + 1), or genes.log: false",
    )


def columns_in(card: dict[str, Any], store: CohortStore, file: Path) -> NDArray[np.int64] | None:
    """Places of a card's genes in a store; None where both orders are the same.

    Raises:
        InputError: the store lacks genes, or has another unit.
    """
    _same_unit(card, store, file)
    wanted, have = card["gene_ids"], store.gene_ids
    if wanted == have:
        return None
    place = {gene: number for number, gene in enumerate(have)}
    missing = [gene for gene in wanted if gene not in place]
    if missing:
        raise InputError(
            "the store lacks genes that the encoder was trained on",
            file=file,
            expected=f"{len(wanted)} genes",
            found=f"{len(missing)} of them missing from {store.path}, the first being {missing[0]}",
            fix="ingest the store with the same gene list, or train a gene encoder on it",
        )
    return np.array([place[gene] for gene in wanted], dtype=np.int64)


def _plain(unit: str | None) -> str:
    """A unit without the ways of writing it."""
    return (unit or "unknown").lower().replace(" ", "").replace("-", "")


def _same_unit(card: dict[str, Any], store: CohortStore, file: Path) -> None:
    trained, here = _plain(card["gene_unit"]), _plain(store.manifest.gene_unit)
    if "unknown" not in (trained, here) and trained != here:
        raise InputError(
            "the gene encoder was trained on another unit",
            file=file,
            expected=str(card["gene_unit"]),
            found=f"{store.manifest.gene_unit} in {store.path}",
            fix="ingest the genes in the encoder's unit",
        )


def _training_rows(store: CohortStore, index: CohortIndex) -> Iterator[tuple[Tensor, Tensor]]:
    for at in range(0, index.num_cases, CHUNK):
        rows = slice(at, at + CHUNK)
        values = store.read_genes([str(case) for case in index.case_ids[rows]])
        yield torch.from_numpy(values), torch.from_numpy(index.labels[rows])
