"""Stage `pretrain` with a compared objective in GiMP's place: MGCA, BioViL, REFERS or TANGLE (`objective.name`).

Same cases, windows, tokens, optimiser, trunk and fine-tuning as GiMP; the objective alone differs
(`contrastive_objectives`). Both sides are trained together from fresh weights, so stage `genes` is not needed; the
last epoch's model is used, and fine-tuned as GiMP's is. No label is used but where `genes.select_by: f_score` selects
or lays out genes by training labels, as it does for GiMP (`variance` with `genes.order: stored` uses none).

Mini-batches are natural ones of `batch.classes * batch.cases_per_class` cases. Contrasts are over those of all workers:
two workers with half the cases have the losses and the step of one worker with all of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import ConfigError
from gimp_ray.feed.plan import Batching, CohortIndex, Row, effective, index_cases
from gimp_ray.feed.windows import Arrays, read_windows
from gimp_ray.learn.contrastive_objectives import OBJECTIVES, Objective, Reading, Sides, read_options
from gimp_ray.learn.gene_layout import layout_of_sets
from gimp_ray.learn.gene_side import CHUNK, GeneSide, fit_gene_side
from gimp_ray.learn.image_side import make_aggregator, model_card
from gimp_ray.learn.stage import Stage, in_chunks
from gimp_ray.nn.genes import GroupTargets, fit_fragments, group_means, grouped_net


class ContrastivePretraining(Stage):
    """A compared objective on the training split, or on every case where the config says transductive."""

    name = "pretrain"
    reads = ("window", "mask", "batch", "model", "objective", "genes", "split.transductive")
    needs = ("patches", "genes")
    side: GeneSide

    def starts_from(self, config: Config) -> dict[str, str]:
        return {"genes.sets": config.genes.sets} if config.genes.sets else {}

    @cached_property
    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective.name]

    @cached_property
    def options(self) -> Any:
        return read_options(self.config.objective.name, self.config.objective.options)

    @property
    def batching(self) -> Batching:
        batch = self.config.batch
        return Batching(
            balance="natural",
            size=batch.classes * batch.cases_per_class,
            window=self.config.window.length,
            accumulate=self.settings.accumulate,
            pairs=False,
        )

    def training_cases(self) -> tuple[str, ...]:
        return self.cases_seen_without_labels()

    @cached_property
    def index(self) -> CohortIndex:
        """The cases pre-training sees, all of one class: labels do not even order an epoch."""
        index = index_cases(self.store, self.training_cases())
        return replace(index, labels=np.zeros_like(index.labels))

    @cached_property
    def groups(self) -> int:
        """R of the gene encoder; known without building it, as reads in other processes need it."""
        genes = self.config.genes
        if genes.sets is not None:
            return len(layout_of_sets(Path(genes.sets), self.store, genes.fragments).names)
        kept = min(genes.top_genes or self.store.num_genes, self.store.num_genes)
        return fit_fragments(kept, genes.fragments, genes.groups)[1]

    def preflight(self) -> None:
        """Refuse options that cannot be, gene settings that mean another pre-training, and contrasts of one case."""
        genes, name = self.config.genes, self.config.objective.name
        read_options(name, self.config.objective.options)
        allowed = ("group_msa",) if self.objective.groups else ("group_msa", "snn")
        if genes.encoder not in allowed:
            raise ConfigError(
                f"objective {name} cannot train with this gene encoder",
                expected=f"genes.encoder: {' or '.join(allowed)}",
                found=f"genes.encoder: {genes.encoder}",
                fix="set genes.encoder, or objective.name: gimp",
            )
        if genes.checkpoint is not None:
            raise ConfigError(
                f"objective {name} trains its gene encoder itself, and one was given",
                expected="genes.checkpoint: null",
                found=genes.checkpoint,
                fix="unset genes.checkpoint, or set objective.name: gimp",
            )
        if name == "biovil" and self.groups < 2:
            raise ConfigError(
                "objective biovil contrasts halves of the gene groups, and there is one group",
                expected="genes.groups of at least 2",
                found=f"{self.groups}",
                fix="raise genes.groups, or use sets with more of the store's genes",
            )
        at_once = effective(self.batching, self.index).size * max(1, self.settings.most_workers)
        if at_once < 2:
            raise ConfigError(
                f"objective {name} contrasts the cases of a step with each other, and a step has one",
                expected="batch.classes * batch.cases_per_class * train.workers of at least 2, and 2 training cases",
                found=f"{at_once}",
                fix="raise batch.cases_per_class",
            )

    def read(self, row: Row) -> Arrays:
        config = self.config
        reading = Reading(self.seed, self.settings.epochs, self.groups, config.window.length, config.mask.ratio)
        return {
            "patches": read_windows(self.store, self.index, row, config.window.length, config.feed.threads, self.cache),
            "genes": self.store.read_genes([str(case) for case in self.index.case_ids[row.case]]),
            # a rank that has nothing left repeats a case, which must not be its own false negative
            "counted": np.full(len(row.case), row.share > 0),
            "case": row.case,
            **self.objective.read(self.options, row, reading),
        }

    def build(self, device: torch.device) -> nn.Module:
        self.preflight()
        torch.manual_seed(self.seed)
        fitted_on = index_cases(self.store, self.parts["train"])
        self.side = fit_gene_side(self.store, fitted_on, self.config.genes, self.config.model.dim)
        assert self.store.dim is not None
        aggregator = make_aggregator(self.store.dim, self.config.model)
        sides = Sides(aggregator, self.side.encoder, self.side.dim, self._targets)
        model = self.objective.build(self.options, sides).to(device)
        self.keep_bags(device, self.index)
        return model

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(self.options, model, batch)

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        return None

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        raise AssertionError("pre-training has no validation: its last epoch is used, as GiMP's is")

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        card = model_card(self.config, self.store, self.side, self.training_cases())
        objective = {"name": self.config.objective.name, "options": self.options.model_dump()}
        return dict(model.state_dict()), card | {"objective": objective}

    @torch.no_grad()
    def _targets(self, bins: int) -> GroupTargets:
        """Statistics of the training cases' gene groups."""
        encoder = self.side.encoder
        net = grouped_net(encoder)
        means = [
            group_means(net, encoder.input(torch.from_numpy(self.side.read(self.store, chunk))))
            for chunk in in_chunks(self.parts["train"], CHUNK)
        ]
        return GroupTargets.fit(torch.cat(means), bins)
