"""The pre-training stage of every method: windows of patches, with genes or their CLS_ge; the last epoch is used.

What differs between methods is in their description (`gimp_ray.methods.base.Pretrain`). A gene encoder that rests has
CLS_ge of every training case computed once. Labels beyond the training part are never seen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, CohortIndex, Row, effective, index_cases
from gimp_ray.feed.windows import Arrays, read_masks, read_windows
from gimp_ray.learn.gene_layout import layout_of_sets
from gimp_ray.learn.gene_side import CHUNK, GeneSide, encode_cases, fit_gene_side, load_gene_side
from gimp_ray.learn.stage import Stage, in_chunks
from gimp_ray.methods.base import Pretrain, Sizes, Window
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.genes import GroupTargets, fit_fragments, group_means, grouped_net


class Pretraining(Stage):
    """A method's pre-training on the training split, or on every case where the config says transductive."""

    does: Pretrain
    side: GeneSide | None = None
    cls_ge: Tensor | None = None

    def __init__(self, config: dict[str, Any], run: str, stage: str = "pretrain") -> None:
        super().__init__(config, run, stage)

    @property
    def batching(self) -> Batching:
        batch, config = self.config.batch, self.config
        # without labels of its own, a transductive case cannot be balanced; what needs no label is not balanced by it
        natural = config.split.transductive or self.does.trains_genes
        return Batching(
            classes=batch.classes,
            cases_per_class=batch.cases_per_class,
            balance="natural" if natural else batch.balance,
            size=batch.classes * batch.cases_per_class,
            window=config.window.length,
            accumulate=self.settings.accumulate,
            pairs=self.does.labels(config),
        )

    def training_cases(self) -> tuple[str, ...]:
        return self.cases_seen_without_labels()

    @cached_property
    def index(self) -> CohortIndex:
        """The cases pre-training sees; labels beyond the training part are hidden behind a number that is no class, and
        all are where none is used, so that they do not even order an epoch.
        """
        index = index_cases(self.store, self.training_cases())
        if self.does.trains_genes:
            return replace(index, labels=np.zeros_like(index.labels))
        known = np.isin(index.case_ids, np.array(self.parts["train"]))
        labels = np.where(known, index.labels, len(self.store.classes))
        found = np.unique(labels[known])
        if self.does.labels(self.config) and len(found) < 2:
            raise InputError(
                "triplets need two classes, and the training part has one",
                file=self.store.path,
                expected="training cases of at least two classes",
                found=f"{[self.store.classes[label] for label in found]}",
                fix="choose another split, or set triplet.weight: 0 to pre-train on masked patches alone",
            )
        return replace(index, labels=labels)

    @cached_property
    def groups(self) -> int:
        """Groups of the gene encoder that is trained along, 0 where none is; known without building it, as reads in
        other processes need it.
        """
        if not self.does.trains_genes:
            return 0
        genes = self.config.genes
        if genes.sets is not None:
            return len(layout_of_sets(Path(genes.sets), self.store, genes.fragments).names)
        kept = min(genes.top_genes or self.store.num_genes, self.store.num_genes)
        return fit_fragments(kept, genes.fragments, genes.groups)[1]

    def preflight(self) -> None:
        self.refuse_leaks()
        at_once = effective(self.batching, self.index).size * max(1, self.settings.most_workers)
        self.does.check(self.config, self.groups, at_once)

    def read(self, row: Row) -> Arrays:
        length, labels = self.config.window.length, self.labels_of(row.case)
        window = Window(
            case=row.case,
            label=np.where(labels < len(self.store.classes), labels, -1),
            patient=self.patients[row.case],
            seeds=row.mask_seed,
            epoch=row.epoch,
            epochs=self.settings.epochs,
            seed=self.seed,
            groups=self.groups,
            counted=row.share > 0,
            masked=lambda ratio: read_masks(row, length, ratio),
        )
        arrays: Arrays = {
            "patches": read_windows(self.store, self.index, row, length, self.config.feed.threads, self.cache),
            "case": row.case,
            **self.does.read(self.config, window),
        }
        if self.does.trains_genes:
            arrays["genes"] = self.store.read_genes([str(case) for case in self.index.case_ids[row.case]])
        return arrays

    def build(self, device: torch.device) -> nn.Module:
        self.preflight()
        if self.does.trains_genes:
            torch.manual_seed(self.seed)
            fitted_on = index_cases(self.store, self.parts["train"])
            self.side = fit_gene_side(self.store, fitted_on, self.config.genes, self.does.gene_card(self.config))
        else:
            if "genes.checkpoint" in self.files:
                self.side = load_gene_side(self.file("genes.checkpoint"), self.store)
                freeze(self.side.encoder)
                self.cls_ge = encode_cases(self.side, self.store, self.index.case_ids.tolist(), device)
            torch.manual_seed(self.seed)
        assert self.store.dim is not None
        sizes = Sizes(
            patch_dim=self.store.dim,
            encoder=None if self.side is None else self.side.encoder,
            gene_dim=0 if self.side is None else self.side.dim,
            targets=self._targets,
        )
        model = self.does.network(self.config, sizes).to(device)
        self.keep_bags(device, self.index)
        return model

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        if self.cls_ge is not None:
            batch = batch | {"cls_ge": self.cls_ge[batch["case"]]}
        return self.does.loss(self.config, model, batch)

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        return None

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        raise AssertionError("pre-training has no validation: its last epoch is used (section 3)")

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        weights = {f"net.{name}": value for name, value in model.state_dict().items()}
        return weights, self.card(None if self.side is None else self.side.card)

    @torch.no_grad()
    def _targets(self, bins: int) -> GroupTargets:
        """Statistics of the training cases' gene groups."""
        assert self.side is not None
        encoder = self.side.encoder
        net = grouped_net(encoder)
        means = [
            group_means(net, encoder.input(torch.from_numpy(self.side.read(self.store, chunk))))
            for chunk in in_chunks(self.parts["train"], CHUNK)
        ]
        return GroupTargets.fit(torch.cat(means), bins)
