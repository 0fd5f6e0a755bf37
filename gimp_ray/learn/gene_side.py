"""The gene side of every task: building the encoder over a fitted input, saving, loading, encoding cases.

CLS_ge of a frozen encoder is computed once a stage, not once a step. Left out: fitting the input and matching genes by
id (`gene_values.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.config import GenesConfig
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.learn.gene_values import CHUNK, columns_in, fit_gene_values, needs_log, read_columns
from gimp_ray.learn.stage import in_chunks
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import SNN, GeneEncoder, GroupMSA, fit_fragments
from gimp_ray.runs.model import read_model
from gimp_ray.store import CohortStore

__all__ = [
    "CHUNK",
    "GeneSide",
    "encode_cases",
    "fit_gene_side",
    "load_gene_side",
    "needs_log",
    "rebuild_gene_side",
]


@dataclass(frozen=True)
class GeneSide:
    """A gene encoder, its card and where its genes stand in a store.

    Attributes:
        encoder: raw expression in the card's gene order -> CLS_ge.
        card: what rebuilds the encoder: kind, widths, gene ids.
        columns: place of each of the card's genes in the store; None where both orders are the same.
    """

    encoder: GeneEncoder
    card: dict[str, Any]
    columns: NDArray[np.int64] | None

    @property
    def dim(self) -> int:
        return int(self.card["dim"])

    def read(self, store: CohortStore, case_ids: Sequence[str]) -> NDArray[np.float32]:
        """(n, G) raw expression of some cases in the encoder's gene order."""
        return read_columns(store, case_ids, self.columns)


def fit_gene_side(store: CohortStore, index: CohortIndex, genes: GenesConfig, dim: int) -> GeneSide:
    """A fresh encoder whose input statistics are fitted on the index's (training) cases alone."""
    values = fit_gene_values(store, index, genes, genes.fragments)
    fragments, groups, sets = genes.fragments, genes.groups, values.sets
    if sets is not None:
        fragments, groups = sets.fragments, len(sets.names)
    card = values.card | {
        "encoder": genes.encoder,
        "dim": dim,
        "fragments": fragments,
        "groups": groups,
        "heads": genes.heads,
        "ff_mult": genes.ff_mult,
        "dropout": genes.dropout,
        "gene_dropout": genes.gene_dropout,
    }
    return GeneSide(GeneEncoder(values.input, _network(card)), card, None)


def rebuild_gene_side(card: dict[str, Any], weights: dict[str, Tensor], store: CohortStore, file: Path) -> GeneSide:
    """The encoder of a card and its weights (keys `input.*`, `net.*`), matched to a store's genes by id."""
    columns = columns_in(card, store, file)
    gene_input = GeneInput(card["num_genes"], num_kept=card["num_kept"])
    encoder = GeneEncoder(gene_input, _network(card))
    encoder.load_state_dict(weights)
    return GeneSide(encoder, card, columns)


def load_gene_side(file: Path, store: CohortStore) -> GeneSide:
    """A trained gene encoder from `FILE.safetensors` and the card beside it.

    Raises:
        InputError: a file is missing or of another kind, or the store lacks genes of the encoder.
    """
    saved, card = read_model(file)
    if "encoder" not in (card.get("genes") or {}):
        raise InputError(
            "this is no trained gene encoder",
            file=file,
            expected="genes.safetensors of a run",
            found=f"a model of '{card.get('method', card.get('stage', 'another kind'))}'",
            fix="correct genes.checkpoint",
        )
    weights = {name: value for name, value in saved.items() if not name.startswith("head.")}
    return rebuild_gene_side(card["genes"], weights, store, file)


@torch.no_grad()
def encode_cases(side: GeneSide, store: CohortStore, case_ids: Sequence[str], device: torch.device) -> Tensor:
    """(n, D) CLS_ge of some cases under the frozen encoder."""
    encoder = freeze(side.encoder).to(device)
    parts = [
        encoder(torch.from_numpy(side.read(store, chunk)).to(device)) for chunk in in_chunks(list(case_ids), CHUNK)
    ]
    return torch.cat(parts)


def _network(card: dict[str, Any]) -> nn.Module:
    if card["encoder"] == "snn":
        return SNN(card["num_kept"], card["dim"], dropout=card["dropout"])
    fragments, groups = fit_fragments(card["num_kept"], card["fragments"], card["groups"])
    return GroupMSA(
        card["num_kept"],
        card["dim"],
        fragments,
        groups,
        heads=dividing_heads(card["dim"], card["heads"]),
        ff_mult=card["ff_mult"],
        dropout=card["dropout"],
        gene_dropout=card["gene_dropout"],
    )


def dividing_heads(dim: int, wished: int) -> int:
    """The most heads, up to the wish, that divide the width: a small `model.dim` then needs no second setting."""
    return next(heads for heads in range(min(wished, dim), 0, -1) if dim % heads == 0)
