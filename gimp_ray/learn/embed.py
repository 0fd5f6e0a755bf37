"""Work over a cohort: CLS_pat, predictions and the mean patch of every case, from whole bags, shared among the ranks.

Memory is bounded by one bag. Left out: metrics and figures, which are made from the tables written here.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.protocol import Record, World
from gimp_ray.feed.plan import index_cases
from gimp_ray.feed.windows import each_bag
from gimp_ray.io.ahead import read_ahead
from gimp_ray.io.mirror import local_file
from gimp_ray.learn.case_tables import parts_of, write_cases
from gimp_ray.learn.gene_side import encode_cases
from gimp_ray.learn.image_side import SavedModel, load_model
from gimp_ray.learn.stage import open_store, shared_out
from gimp_ray.learn.targets import Target, saved_target
from gimp_ray.methods.gimp import GiMP, GiMPClassifier
from gimp_ray.runs.model import read_card
from gimp_ray.store import CohortStore


class CohortEmbedding:
    """Embeds cases of a store with a pre-trained or fine-tuned model.

    Args:
        config: the run's config as plain data; its `store` is embedded.
        model: the model file (`.safetensors`, its card beside it), here or in object storage.
        out: Parquet file to write, here or in object storage:
            case_id, part, label, cls_pat, mean_patch, and with a fine-tuned model its target's predictions and what
            of the truth the store has.
        parts: parts of the config's split to embed, without the cases whose truth a fine-tuned model's target does not
            know; None embeds every case of the store, and part is then null.
    """

    name = "embed"

    def __init__(self, config: dict[str, Any], model: str, out: str, parts: list[str] | None) -> None:
        self.config: Config = build_config(config)
        self.model, self.out, self.parts = model, out, parts
        self.store: CohortStore = open_store(self.config)

    @cached_property
    def model_file(self) -> Path:
        """The model as a local file."""
        return local_file(self.model)

    @cached_property
    def target(self) -> Target | None:
        """What a fine-tuned model predicts; None of a pre-trained one."""
        card = read_card(self.model_file)
        return saved_target(card, self.store) if "hidden" in card else None

    @cached_property
    def part_of(self) -> dict[str, str | None]:
        """The cases to embed, with the part each stands in."""
        return parts_of(self.config, self.store, self.parts, self.target)

    @torch.no_grad()
    def run(self, world: World) -> list[Record]:
        saved = load_model(self.model_file, self.store)
        model = _rebuild(saved, self.target).to(world.device).eval()
        index = index_cases(self.store, list(self.part_of))
        mine = shared_out(index, world.rank, world.size)
        ids = [str(index.case_ids[case]) for case in mine]
        cls_ge = encode_cases(saved.side, self.store, ids, world.device) if saved.side is not None and ids else None
        records = []
        bags = each_bag(self.store, index, mine, self.config.feed.threads)
        for place, (case, patches) in enumerate(read_ahead(bags, self.config.feed.ahead)):
            genes = {} if cls_ge is None else {"cls_ge": cls_ge[place : place + 1]}
            out = model(torch.from_numpy(patches).to(world.device), **genes)
            record: Record = {
                "case_id": ids[place],
                "label": self.store.classes[index.labels[case]],
                "cls_pat": out.cls_pat[0].float().cpu().numpy(),
                "mean_patch": patches[0].mean(axis=0, dtype=np.float32),
            }
            logits: Tensor | None = getattr(out, "logits", None)
            if logits is not None:
                assert self.target is not None
                record["predictions"] = self.target.predict(logits)[0].cpu().tolist()
            records.append(record)
        return records

    def write(self, records: list[Record]) -> None:
        write_cases(self.out, records, self.part_of, self.target)


def _rebuild(saved: SavedModel, target: Target | None) -> nn.Module:
    """The model of a file with its weights: fine-tuned where it has a target, else pre-trained."""
    encoder = None if saved.side is None else saved.side.encoder
    aggregator = saved.aggregator()
    model: nn.Module
    if target is not None:
        gene_dim = 0 if saved.side is None else saved.side.dim
        model = GiMPClassifier(
            aggregator, encoder, len(target.outputs), aggregator.dim, hidden=saved.card["hidden"], gene_dim=gene_dim
        )
        model.load_state_dict(saved.weights)
    else:
        # both sides have their weights, and what else pre-training had, whatever its objective, is not asked
        model = GiMP(aggregator, encoder, saved.card["patch_dim"])
    return model
