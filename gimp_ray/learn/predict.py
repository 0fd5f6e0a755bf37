"""A trained compared method from its file, and its predictions for every case of a cohort, shared among the ranks.

Memory is bounded by one bag. Left out: metrics and figures, which are made from the table written here; GiMP's own
models, which `embed.py` reads.

Shape suffixes: B batch, P predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import index_cases
from gimp_ray.io.mirror import local_file
from gimp_ray.learn.case_tables import parts_of, write_cases
from gimp_ray.learn.embed import CohortEmbedding
from gimp_ray.learn.gene_values import GeneValues, rebuild_gene_values
from gimp_ray.learn.image_side import check_patch_dim
from gimp_ray.learn.methods import METHODS, Method, Sizes, answer
from gimp_ray.learn.stage import open_store, shared_out
from gimp_ray.learn.targets import Target, saved_target
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.recipes import RECIPES
from gimp_ray.runs.model import part, read_card, read_model
from gimp_ray.store import CohortStore


@dataclass(frozen=True)
class SavedMethod:
    """A trained compared method, matched to a store.

    Attributes:
        method: its losses and predictions.
        network: in evaluation mode.
        needs: modalities it reads.
        genes: the fitted input; None where it reads no genes.
        target: what it predicts.
        card: beside its weights.
    """

    method: Method
    network: nn.Module
    needs: tuple[str, ...]
    genes: GeneValues | None
    target: Target
    card: dict[str, Any]

    def to(self, device: torch.device) -> SavedMethod:
        """The same, its tensors moved to a device."""
        self.network.to(device)
        if self.genes is not None:
            self.genes.input.to(device)
        return self

    @torch.no_grad()
    def predict(self, batch: Tensors) -> Tensor:
        """(B, P) float64 of a batch with `patches` (B, N, E), maybe `valid`, and raw `genes` in the card's order."""
        if self.genes is not None:
            batch = batch | {"genes": self.genes.input(batch["genes"])}
        return self.method.phases[-1].predict(self.target, answer(self.network, self.needs, batch))


def load_method(file: Path, store: CohortStore) -> SavedMethod:
    """A compared method's model file for use on a store.

    Raises:
        InputError: a file is missing, the store's embeddings have another width, or it lacks what the method reads.
    """
    weights, card = read_model(file)
    name, needs = card["method"], RECIPES[card["method"]].needs
    if "patches" in needs:
        check_patch_dim(card, store)
    values = None
    if "genes" in needs:
        if not store.num_genes:
            raise InputError(
                "the model reads genes and the store has none", file=store.path, fix="ingest again with --genes"
            )
        values = rebuild_gene_values(card["genes"], part(weights, "input"), store, file)
    target = saved_target(card, store)
    sizes = Sizes(
        card["patch_dim"],
        0 if values is None else values.input.num_kept,
        len(target.outputs),
        None if values is None else values.sets,
    )
    network = METHODS[name].build(sizes, card["options"])
    network.load_state_dict(part(weights, "net"))
    return SavedMethod(METHODS[name], network.eval(), needs, values, target, card)


def cohort_work(
    config: dict[str, Any], model: str, out: str, parts: list[str] | None
) -> CohortEmbedding | CohortPrediction:
    """The work over a cohort that a model file is for, by its card: a compared method's predictions, or GiMP's
    embeddings. Arguments as theirs.
    """
    made = CohortPrediction if "method" in read_card(local_file(model)) else CohortEmbedding
    return made(config, model, out, parts)


class CohortPrediction:
    """Predicts cases of a store with a compared method.

    Args:
        config: the run's config as plain data; its `store` is read.
        model: the model file (`.safetensors`, its card beside it), here or in object storage.
        out: Parquet file to write, here or in object storage: case_id, part, label, what of the truth the store has,
            mean_patch where it has patches, and the target's predictions.
        parts: parts of the config's split, without the cases whose truth the target does not know; None takes every
            case of the store, and part is then null.
    """

    name = "embed"

    def __init__(self, config: dict[str, Any], model: str, out: str, parts: list[str] | None) -> None:
        self.config: Config = build_config(config)
        self.model, self.out, self.parts = model, out, parts
        self.store: CohortStore = open_store(self.config)

    @cached_property
    def part_of(self) -> dict[str, str | None]:
        """The cases, with the part each stands in."""
        return parts_of(self.config, self.store, self.parts, self.saved.target)

    @cached_property
    def saved(self) -> SavedMethod:
        return load_method(local_file(self.model), self.store)

    def run(self, world: World) -> list[Record]:
        saved = self.saved.to(world.device)
        index = index_cases(self.store, list(self.part_of))
        mine = shared_out(index, world.rank, world.size)
        # the mean patch of a case stands in the table whether the method reads patches or not
        read = tuple(dict.fromkeys([*saved.needs, *(["patches"] if self.store.dim is not None else [])]))
        columns = None if saved.genes is None else saved.genes.columns
        label_of = {str(index.case_ids[case]): self.store.classes[index.labels[case]] for case in mine}
        records: list[Record] = []
        for ids, batch in whole_cases(self.store, index, mine, read, self.config.feed, world.device, columns):
            mean_patch = {}
            if "patches" in batch:
                mean_patch = {"mean_patch": batch["patches"][0].mean(dim=0, dtype=torch.float32).cpu().numpy()}
            records += [
                {"case_id": case, "label": label_of[case], "predictions": row_P.cpu().tolist(), **mean_patch}
                for case, row_P in zip(ids, saved.predict(batch), strict=True)
            ]
        return records

    def write(self, records: list[Record]) -> None:
        write_cases(self.out, records, self.part_of, self.saved.target)
