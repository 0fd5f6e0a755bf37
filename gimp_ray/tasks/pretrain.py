"""Stage `pretrain`: masked patch modelling and gene-induced triplets on windows (section 2.3); the last epoch's model
is used.

The gene encoder is frozen, so CLS_ge of every training case is computed once. L_pre = w_rec L_rec + w_tri L_tri.
Two workers with half the cases a class give the MPM loss of one worker with all of them; the triplet is mined
inside each worker's mini-batch, so its value depends on how many cases a worker has.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, Row
from gimp_ray.feed.windows import Arrays, read_masks, read_windows
from gimp_ray.models import GiMP, freeze
from gimp_ray.objectives import masked_patch_loss, triplet_loss
from gimp_ray.tasks.gene_side import GeneSide, encode_cases, load_gene_side
from gimp_ray.tasks.image_side import make_aggregator, model_card
from gimp_ray.tasks.planned import PlannedTask, seeded


class GimpPretraining(PlannedTask):
    """GiMP pre-training on the training split, or on every case where the config says transductive."""

    name = "pretrain"
    needs = ("patches",)
    side: GeneSide | None = None
    cls_ge: Tensor | None = None

    def __init__(self, config: dict[str, Any], run: str) -> None:
        super().__init__(config, run)
        if self.config.triplet.weight > 0 and len(self.store.classes) < 2:
            raise InputError(
                "triplets need two classes, and the store has one",
                file=self.store.path,
                expected="at least two labels in the case table",
                found=f"{list(self.store.classes)}",
                fix="set triplet.weight: 0 to pre-train on masked patches alone",
            )

    @property
    def batching(self) -> Batching:
        batch = self.config.batch
        return Batching(
            classes=batch.classes,
            cases_per_class=batch.cases_per_class,
            balance=batch.balance,
            size=batch.classes * batch.cases_per_class,
            window=self.config.window.length,
            accumulate=self.settings.accumulate,
        )

    def training_cases(self) -> tuple[str, ...]:
        parts = self.parts
        if not self.config.split.transductive:
            return parts["train"]
        return tuple(case for part in parts.values() for case in part)

    def read(self, row: Row) -> Arrays:
        window = self.config.window.length
        return {
            "patches": read_windows(self.store, self.index, row, window, self.config.feed.threads),
            "masked": read_masks(row, window, self.config.mask.ratio),
            "label": self.labels_of(row.case),
            "case": row.case,
        }

    def build(self, device: torch.device) -> nn.Module:
        self.side = self._gene_side()
        self.cls_ge = (
            None if self.side is None else encode_cases(self.side, self.store, self.index.case_ids.tolist(), device)
        )
        seeded(self.seed)
        assert self.store.dim is not None
        encoder = None if self.side is None else freeze(self.side.encoder)
        return GiMP(make_aggregator(self.store.dim, self.config.model), encoder, self.store.dim).to(device)

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        patches_BLE = batch["patches"]
        masked_BM = batch["masked"]
        cls_ge_BD = None if self.cls_ge is None else self.cls_ge[batch["case"]]
        out = model(patches_BLE, cls_ge=cls_ge_BD, masked=masked_BM)
        target_BME = patches_BLE.gather(1, masked_BM[..., None].expand(-1, -1, patches_BLE.shape[-1]))
        mask, triplet = self.config.mask, self.config.triplet
        reconstruction = masked_patch_loss(out.reconstruction, target_BME, mask.reduction)
        mined = triplet_loss(
            out.cls_pat,
            self._classes_known(batch),
            margin=triplet.margin,
            mining=triplet.mining,
            normalize=triplet.normalize,
            patients_B=batch["case"],
            average=triplet.average,
        )
        total = mask.weight * reconstruction + triplet.weight * mined.loss
        return total, {"loss_rec": reconstruction, "loss_tri": mined.loss, "active_triplets": mined.active_share}

    def _classes_known(self, batch: Tensors) -> Tensor:
        """Labels of the training part; a transductive run gives every other case a class of its own, as its label is
        unknown.
        """
        if not self.config.split.transductive:
            return batch["label"]
        known = torch.isin(batch["case"], self._training_numbers.to(batch["case"].device))
        return torch.where(known, batch["label"], len(self.store.classes) + batch["case"])

    @cached_property
    def _training_numbers(self) -> Tensor:
        train = set(self.parts["train"])
        return torch.tensor([number for number, case in enumerate(self.index.case_ids.tolist()) if case in train])

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        return None

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        raise AssertionError("pre-training has no validation: its last epoch is used (section 3)")

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        return dict(model.state_dict()), model_card(self.config, self.store, self.side)

    def _gene_side(self) -> GeneSide | None:
        if self.config.genes.encoder == "none" or not self.store.num_genes:
            return None
        given = self.config.genes.checkpoint
        return load_gene_side(Path(given) if given else self.run.model_file("genes"), self.store)
