"""The image side of the tasks: the aggregator of a config, and GiMP models from and to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gimp_ray.config import Config, ModelConfig
from gimp_ray.errors import InputError
from gimp_ray.learn.gene_side import GeneSide, rebuild_gene_side
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.runs.model import part, read_model
from gimp_ray.store import CohortStore


def make_aggregator(patch_dim: int, model: ModelConfig) -> PatchAggregator:
    """The patch aggregator of section 2.2 for embeddings of width `patch_dim`."""
    return PatchAggregator(
        patch_dim,
        model.dim,
        heads=model.heads,
        dim_head=model.dim_head,
        num_landmarks=model.landmarks,
        pinv_iterations=model.pinv_iterations,
        residual_kernel=model.residual_kernel,
        layers=model.layers,
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
    )


@dataclass(frozen=True)
class SavedModel:
    """A GiMP model file: its weights, its card, its gene side matched to a store."""

    weights: dict[str, Tensor]
    card: dict[str, Any]
    side: GeneSide | None

    def aggregator(self) -> PatchAggregator:
        """The image side with its trained weights."""
        aggregator = make_aggregator(self.card["patch_dim"], ModelConfig(**self.card["model"]))
        aggregator.load_state_dict(part(self.weights, "aggregator"))
        return aggregator


def load_model(file: Path, store: CohortStore) -> SavedModel:
    """A pre-trained or fine-tuned model for use on a store.

    Raises:
        InputError: a file is missing or of another method, the store's embeddings have another width, or it lacks genes
            of the model.
    """
    weights, card = read_model(file)
    if "model" not in card:
        raise InputError(
            "this is no model of GiMP's image side",
            file=file,
            expected="a pre-trained or fine-tuned GiMP model",
            found=f"a model of '{card.get('method', card.get('stage', 'another kind'))}'",
            fix="give the model of a run with method.name: gimp",
        )
    check_patch_dim(card, store)
    if card["genes"] is None:
        return SavedModel(weights, card, None)
    if not store.num_genes:
        raise InputError(
            "the model has a gene encoder and the store has no genes", file=store.path, fix="ingest again with --genes"
        )
    return SavedModel(weights, card, rebuild_gene_side(card["genes"], part(weights, "gene_encoder"), store, file))


def check_patch_dim(card: dict[str, Any], store: CohortStore) -> None:
    """Refuse a store whose patch embeddings are not as wide as a model's card says."""
    if store.dim != card["patch_dim"]:
        raise InputError(
            "the model was trained on patch embeddings of another width",
            file=store.path,
            expected=f"width {card['patch_dim']}",
            found=f"width {store.dim}",
            fix="use a store made with the same patch encoder",
        )


def model_card(config: Config, store: CohortStore, side: GeneSide | None, cases: Sequence[str]) -> dict[str, Any]:
    """What rebuilds a model and says where it comes from."""
    return {
        "patch_dim": store.dim,
        "model": config.model.model_dump(),
        "genes": None if side is None else side.card,
        "classes": list(store.classes),
        "store_fingerprint": store.fingerprint,
        "split": config.split.model_dump(),
        "trained_on": sorted(cases),
    }
