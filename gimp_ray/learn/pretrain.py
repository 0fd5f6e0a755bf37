"""Stage `pretrain`: masked patch modelling and gene-induced triplets on windows (section 2.3); the last epoch's model
is used.

The gene encoder is frozen, so CLS_ge of every training case is computed once. L_pre = w_rec L_rec + w_tri L_tri.
Two workers with half the cases a class give the MPM loss of one worker with all of them. Triplets are mined inside each
worker's mini-batch, so their loss depends on how many cases a worker has; with `triplet.scope: global` they are mined
over the mini-batches of all workers, and it does not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, CohortIndex, Row, index_cases
from gimp_ray.feed.windows import Arrays, read_masks, read_windows
from gimp_ray.learn.gene_side import GeneSide, encode_cases, load_gene_side
from gimp_ray.learn.image_side import make_aggregator, model_card
from gimp_ray.learn.stage import Stage
from gimp_ray.methods.gimp import GiMP
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.losses import TripletResult, gather_workers, masked_patch_loss, patches_at, triplet_loss


class GimpPretraining(Stage):
    """GiMP pre-training on the training split, or on every case where the config says transductive."""

    name = "pretrain"
    reads = (
        "window",
        "mask",
        "triplet",
        "batch",
        "model",
        "objective.genes",
        "genes.encoder",
        "split.transductive",
    )
    needs = ("patches",)
    side: GeneSide | None = None
    cls_ge: Tensor | None = None

    def starts_from(self, config: Config) -> dict[str, str]:
        with_genes = config.objective.genes and config.genes.encoder != "none" and self.store.num_genes > 0
        return {"genes.checkpoint": config.genes.checkpoint or self.own("genes")} if with_genes else {}

    @property
    def batching(self) -> Batching:
        batch = self.config.batch
        return Batching(
            classes=batch.classes,
            cases_per_class=batch.cases_per_class,
            # without labels of its own, a transductive case cannot be balanced
            balance="natural" if self.config.split.transductive else batch.balance,
            size=batch.classes * batch.cases_per_class,
            window=self.config.window.length,
            accumulate=self.settings.accumulate,
            pairs=self.config.triplet.weight > 0,
        )

    def training_cases(self) -> tuple[str, ...]:
        return self.cases_seen_without_labels()

    @cached_property
    def index(self) -> CohortIndex:
        """The cases pre-training sees; labels beyond the training part are hidden behind a number that is no class."""
        index = index_cases(self.store, self.training_cases())
        known = np.isin(index.case_ids, np.array(self.parts["train"]))
        labels = np.where(known, index.labels, len(self.store.classes))
        found = np.unique(labels[known])
        if self.config.triplet.weight > 0 and len(found) < 2:
            raise InputError(
                "triplets need two classes, and the training part has one",
                file=self.store.path,
                expected="training cases of at least two classes",
                found=f"{[self.store.classes[label] for label in found]}",
                fix="choose another split, or set triplet.weight: 0 to pre-train on masked patches alone",
            )
        return replace(index, labels=labels)

    def preflight(self) -> None:
        self.refuse_leaks()

    def read(self, row: Row) -> Arrays:
        window = self.config.window.length
        return {
            "patches": read_windows(self.store, self.index, row, window, self.config.feed.threads, self.cache),
            "masked": read_masks(row, window, self.config.mask.ratio),
            # a rank that has nothing left repeats a case, which is no positive or negative of another rank's
            "label": self.labels_of(row.case) if row.share else np.full_like(row.case, len(self.store.classes)),
            "case": row.case,
            "patient": self.patients[row.case],
        }

    def build(self, device: torch.device) -> nn.Module:
        self.preflight()
        if "genes.checkpoint" in self.files:
            self.side = load_gene_side(self.file("genes.checkpoint"), self.store)
            self.cls_ge = encode_cases(self.side, self.store, self.index.case_ids.tolist(), device)
        torch.manual_seed(self.seed)
        assert self.store.dim is not None
        encoder = None if self.side is None else freeze(self.side.encoder)
        model = GiMP(make_aggregator(self.store.dim, self.config.model), encoder, self.store.dim).to(device)
        self.keep_bags(device, self.index)
        return model

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        patches_BLE = batch["patches"]
        masked_BM = batch["masked"]
        cls_ge_BD = None if self.cls_ge is None else self.cls_ge[batch["case"]]
        out = model(patches_BLE, cls_ge=cls_ge_BD, masked=masked_BM)
        target_BME = patches_at(patches_BLE, masked_BM)
        mask = self.config.mask
        reconstruction = masked_patch_loss(out.reconstruction, target_BME, mask.reduction)
        mined = self._triplets(out.cls_pat, batch)
        total = mask.weight * reconstruction + self.config.triplet.weight * mined.loss
        return total, {
            "loss_rec": reconstruction,
            "loss_tri": mined.loss,
            "active_triplets": mined.active_share,
            "distance_positive": mined.mean_positive_distance,
            "distance_negative": mined.mean_negative_distance,
        }

    def _triplets(self, cls_pat_BF: Tensor, batch: Tensors) -> TripletResult:
        triplet, labels_B, patients_B = self.config.triplet, batch["label"], batch["patient"]
        if triplet.scope == "global":
            cls_pat_BF, labels_B, patients_B = gather_workers(cls_pat_BF, labels_B, patients_B)
        if self.config.split.transductive or triplet.scope == "global":
            known = labels_B < len(self.store.classes)
            cls_pat_BF, labels_B, patients_B = cls_pat_BF[known], labels_B[known], patients_B[known]
        return triplet_loss(
            cls_pat_BF,
            labels_B,
            margin=triplet.margin,
            mining=triplet.mining,
            normalize=triplet.normalize,
            patients_B=patients_B,
            average=triplet.average,
        )

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        return None

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        raise AssertionError("pre-training has no validation: its last epoch is used (section 3)")

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        return dict(model.state_dict()), model_card(self.config, self.store, self.side, self.training_cases())
