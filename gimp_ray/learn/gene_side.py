"""A gene encoder with its fitted input: building, saving, loading, encoding cases.

CLS_ge of a frozen encoder is computed once a stage, not once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.errors import InputError
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.learn.gene_layout import SetPlaces
from gimp_ray.learn.gene_values import CHUNK, GeneValues, columns_in, fit_gene_values, read_columns
from gimp_ray.learn.stage import in_chunks
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import GeneEncoder, gene_network
from gimp_ray.runs.model import part, read_model
from gimp_ray.store import CohortStore


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


def fit_gene_side(store: CohortStore, index: CohortIndex, genes: Any, card: dict[str, Any]) -> GeneSide:
    """A fresh encoder whose input statistics are fitted on the index's (training) cases alone.

    Args:
        store: what the cases are in.
        index: the training cases.
        genes: which genes are kept and how they are scaled.
        card: what its network is made of.
    """
    values = fit_gene_values(store, index, genes, genes.fragments)
    card = encoder_card(values, card)
    return GeneSide(GeneEncoder(values.input, _network(card)), card, None)


def encoder_card(values: GeneValues, network: dict[str, Any]) -> dict[str, Any]:
    """The card of a gene encoder over a fitted input; with gene sets these are its groups."""
    sets = values.sets
    groups = {} if sets is None else {"fragments": sets.fragments, "groups": len(sets.names)}
    return values.card | network | groups


def rebuild_gene_side(card: dict[str, Any], weights: dict[str, Tensor], store: CohortStore, file: Path) -> GeneSide:
    """The encoder of a card and its weights (keys `input.*`, `net.*`), matched to a store's genes by id."""
    if not store.num_genes:
        raise InputError(
            "the model has a gene encoder and the store has no genes", file=store.path, fix="ingest again with --genes"
        )
    columns = columns_in(card, store, file)
    encoder = GeneEncoder(GeneInput(card["num_genes"], num_kept=card["num_kept"]), _network(card))
    encoder.load_state_dict(weights)
    return GeneSide(encoder, card, columns)


def load_gene_side(file: Path, store: CohortStore) -> GeneSide:
    """A trained gene encoder from its own model file, or from that of a model that has one.

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
    weights = part(saved, "net.gene_encoder")
    if not weights:  # of the stage that trains it
        parts = {"input": part(saved, "input"), "net": part(saved, "net.encoder")}
        weights = {f"{name}.{key}": value for name, own in parts.items() for key, value in own.items()}
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
    sets = None if card["gene_sets"] is None else SetPlaces.of_card(card["gene_sets"])
    return gene_network(card["encoder"], card["num_kept"], card["dim"], SimpleNamespace(**card), sets)
