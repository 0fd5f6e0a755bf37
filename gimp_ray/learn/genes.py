"""Stage `genes`: supervised pre-training of the gene encoder on genes and labels of the training split (section 2.1).

The encoder, the statistics of its input and the ordered gene list are saved together. The epoch with the best
validation loss is kept where there is a validation part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.feed.plan import Batching, Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.gene_side import CHUNK, GeneSide, fit_gene_side
from gimp_ray.learn.scores import case_record, selection_score, validation_figures
from gimp_ray.learn.stage import Stage, in_chunks
from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.nn.losses import mixup
from gimp_ray.runs.model import part


class GenePretraining(Stage):
    """Cross-entropy of a linear head on CLS_ge; natural mini-batches, every training case once an epoch."""

    name = "genes"
    reads = ("genes", "model.dim")
    needs = ("genes",)
    side: GeneSide

    def starts_from(self, config: Config) -> dict[str, str]:
        return {"genes.sets": config.genes.sets} if config.genes.sets else {}

    @property
    def batching(self) -> Batching:
        return Batching(balance="natural", size=self.config.genes.batch_size, accumulate=self.settings.accumulate)

    def read(self, row: Row) -> Arrays:
        case_ids = [str(case) for case in self.index.case_ids[row.case]]
        return {"genes": self.store.read_genes(case_ids), "label": self.labels_of(row.case), "case": row.case}

    def build(self, device: torch.device) -> nn.Module:
        torch.manual_seed(self.seed)
        self.side = fit_gene_side(self.store, self.index, self.config.genes, self.config.model.dim)
        head = MLPHead(self.config.model.dim, len(self.store.classes), hidden=())
        self.side.encoder.to(device)
        return nn.Sequential(self.side.encoder.net, head.to(device))

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        genes = self.config.genes
        # mixed after the scaling, which is no part of what is trained
        scaled_BG = self.side.encoder.input(batch["genes"])
        mixed_BG, target_BC = mixup(scaled_BG, batch["label"], len(self.store.classes), genes.mixup)
        logits_BC = model(mixed_BG)
        accuracy = (logits_BC.argmax(dim=-1) == target_BC.argmax(dim=-1)).float().mean()
        return F.cross_entropy(logits_BC, target_BC, label_smoothing=genes.label_smoothing), {"accuracy": accuracy}

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        if self.validation is None:
            return None
        labels = dict(zip(self.validation.case_ids.tolist(), self.validation.labels.tolist(), strict=True))
        records = []
        for chunk in in_chunks(self.validation.case_ids[world.rank :: world.size], CHUNK):
            values = torch.from_numpy(self.store.read_genes(chunk)).to(world.device)
            logits_BC = model(self.side.encoder.input(values))
            records += [
                case_record(case, labels[case], logits_C) for case, logits_C in zip(chunk, logits_BC, strict=True)
            ]
        return records

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        figures = validation_figures(records)
        return figures, selection_score(figures, "loss")

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        state = model.state_dict()
        weights = {f"input.{name}": value for name, value in self.side.encoder.input.state_dict().items()}
        weights |= {f"net.{name}": value for name, value in part(state, "0").items()}
        weights |= {f"head.{name}": value for name, value in part(state, "1").items()}
        return weights, {
            "genes": self.side.card,
            "classes": list(self.store.classes),
            "store_fingerprint": self.store.fingerprint,
        }
