"""Stage `finetune` of a compared method: one network trained on whole bags, genes or both, for the run's target.

Everything but the network is what GiMP has: store, split, plan, feed, engine, the best epoch on validation. Left out:
networks and losses (`methods/`), hyper-parameters (`gimp_ray.recipes`), predictions of a trained model (`predict.py`).

Shape suffixes: B batch, G genes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.config import Config, GenesConfig
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import ConfigError
from gimp_ray.feed.plan import Batching, CohortIndex, Row
from gimp_ray.feed.windows import Arrays, read_bags
from gimp_ray.learn.gene_values import GeneValues, fit_gene_values, num_values, set_layout
from gimp_ray.learn.labelled import LabelledTask
from gimp_ray.learn.method_start import CAN_START, made_for_outputs, refuse_other_method, start_from
from gimp_ray.learn.methods import METHODS, Phase, Sizes, answer
from gimp_ray.learn.stage import shared_out
from gimp_ray.learn.targets import batch_arrays
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.recipes import RECIPES
from gimp_ray.runs.model import read_card


class Supervised(LabelledTask):
    """A compared method (`method.name`) and its target; natural mini-batches, every training case once an epoch."""

    name = "finetune"
    genes: GeneValues | None = None
    gene_input: GeneInput | None = None
    phase_number = 0

    def __init__(self, config: dict[str, Any], run: str) -> None:
        name = config["method"]["name"]
        self.recipe, self.method = RECIPES[name], METHODS[name]
        self.needs, self.in_turn = self.recipe.needs, len(self.method.phases) > 1
        self.reads = ("method", "target", "finetune.select")
        if "genes" in self.needs:
            self.reads += ("genes", "model.dim")
        super().__init__(config, run)

    def starts_from(self, config: Config) -> dict[str, str]:
        files = {"method.init": config.method.init, "genes.sets": config.genes.sets if "genes" in self.needs else None}
        return {key: file for key, file in files.items() if file}

    @cached_property
    def options(self) -> dict[str, Any]:
        return self.method.options(self.config)

    @property
    def batching(self) -> Batching:
        size = self.config.method.batch_size or self.recipe.batch_size
        return Batching(balance="natural", size=size, accumulate=self.settings.accumulate)

    def preflight(self) -> None:
        """Refuse a target that the method cannot learn, options that it has not, and gene sets that are missing.

        Raises:
            ConfigError: names the key.
        """
        name, recipe = self.config.method.name, self.recipe
        if self.target.kind not in recipe.kinds:
            raise ConfigError(
                f"method '{name}' cannot learn a target of kind '{self.target.kind}': {recipe.why_not}",
                expected=f"target.kind: {' or '.join(recipe.kinds)}",
                found=self.target.kind,
                fix="choose another method.name, or another target",
            )
        if recipe.sets and self.config.genes.sets is None:
            raise ConfigError(
                f"method '{name}' groups genes by gene sets, and none were given",
                expected="genes.sets: FILE, GMT or CSV",
                found="nothing",
                fix="give gene families or the Hallmark sets of MSigDB with --genes.sets FILE",
            )
        self._check_start()
        self._check_options()
        self._check_patience()
        notes = self.notes_on_target()
        if "genes" in self.needs and self._gene_settings.select_by != self.config.genes.select_by:
            notes.append("genes are scored by variance: f_score needs classes with several cases each")
        for note in notes:
            print(f"note: {note}", flush=True)

    def read(self, row: Row) -> Arrays:
        ids = self.index.case_ids[row.case].tolist()
        arrays: Arrays = {"case": row.case, **batch_arrays(self.target, ids, row.share)}
        if "patches" in self.needs:
            patches, valid = read_bags(self.store, self.index, row.case, self.config.feed.threads, self.cache)
            arrays["patches"] = patches
            if not valid.all():  # bags of one length need no mask, which attention would pay for
                arrays["valid"] = valid
        if "genes" in self.needs:
            arrays["genes"] = self.store.read_genes(ids)
        if self.in_turn:
            arrays["phase"] = np.array([self.method.phase_at(row.before)])
        return arrays

    def build(self, device: torch.device) -> nn.Module:
        if "genes" in self.needs:
            self.genes = fit_gene_values(self.store, self._scored_by, self._gene_settings, self._fragments)
            self.gene_input = self.genes.input.to(device)
        torch.manual_seed(self.seed)
        network = self.method.build(self._sizes, self.options)
        if self.config.method.init is not None:
            for_outputs = made_for_outputs(self.method, self._sizes, self.options)
            start_from(network, self.file("method.init"), self.target.card(), for_outputs)
        network = network.to(device)
        network.requires_grad_(True)  # the optimiser gets all of a network whose parts are trained in turn
        if "patches" in self.needs:
            self.keep_bags(device, self.index, *([] if self.validation is None else [self.validation]))
        return network

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = self._data_loss(model, self._scaled(batch), self._enter(model, batch))
        if not self._l1:
            return loss, parts
        penalty = self._l1 * self.method.absolute_weights(_bare(model))
        return loss + penalty, parts | {"loss_l1": penalty}

    def _data_loss(self, model: nn.Module, batch: Tensors, phase: Phase) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss of a mini-batch of scaled genes, which may be mixed."""
        loss = self.method.loss(phase, self.options)
        if not self._mixes:
            return loss(self.target, answer(model, self.needs, batch), batch)
        alpha = self.config.genes.mixup
        weight = float(torch.distributions.Beta(alpha, alpha).sample())
        partner_B = torch.randperm(len(batch["genes"])).to(batch["genes"].device)
        mixed = batch | {"genes": torch.lerp(batch["genes"][partner_B], batch["genes"], weight)}
        out = answer(model, self.needs, mixed)
        # of a mixed target a loss that is linear in it is the mix of two losses, whatever the kind of target
        own, parts = loss(self.target, out, batch)
        others = {key: value[partner_B] if key.startswith("target") else value for key, value in batch.items()}
        return weight * own + (1 - weight) * loss(self.target, out, others)[0], parts

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        index = self.validation
        if index is None:
            return None
        predict = self.phase.predict
        mine = shared_out(index, world.rank, world.size)
        records = []
        for ids, batch in whole_cases(
            self.store, index, mine, self.needs, self.config.feed, world.device, None, self.cache
        ):
            predicted = predict(self.target, answer(model, self.needs, self._scaled(batch)))
            records += [self.target.record(case, row_P) for case, row_P in zip(ids, predicted, strict=True)]
        return records

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        figures, score = super().score(records)
        # an epoch of an early phase has no network of the method's, so any of a later one is better
        return figures, [float(self.phase_number), *score]

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        weights = {f"net.{name}": value for name, value in model.state_dict().items()}
        if self.gene_input is not None:
            weights |= {f"input.{name}": value for name, value in self.gene_input.state_dict().items()}
        card = {
            "method": self.config.method.name,
            "options": self.options,
            "init": self.config.method.init,
            "target": self.target.card(),
            "patch_dim": self._sizes.patch_dim,
            "genes": None if self.genes is None else self.genes.card,
            "classes": list(self.store.classes),
            "store_fingerprint": self.store.fingerprint,
            "split": self.config.split.model_dump(),
            **self.seen_in_training(),
        }
        return weights, card

    @property
    def phase(self) -> Phase:
        """The phase of the last step."""
        return self.method.phases[self.phase_number]

    def _enter(self, model: nn.Module, batch: Tensors) -> Phase:
        """The phase of a mini-batch; a network whose parts are trained in turn is told its name."""
        if self.in_turn:
            self.phase_number = int(batch["phase"])
            network: Any = _bare(model)
            network.set_stage(self.phase.name)
        return self.phase

    def _scaled(self, batch: Tensors) -> Tensors:
        """The batch with its genes as the network sees them."""
        return batch if self.gene_input is None else batch | {"genes": self.gene_input(batch["genes"])}

    @property
    def _l1(self) -> float:
        l1 = self.config.method.l1
        return self.recipe.l1 if l1 is None else l1

    @property
    def _mixes(self) -> bool:
        return self.method.mixup and self.config.genes.mixup > 0 and self.target.kind != "survival"

    @property
    def _gene_settings(self) -> GenesConfig:
        """`genes`, where a score by classes is the variance for a target without classes."""
        genes = self.config.genes
        if "genes" in self.needs and genes.select_by == "f_score" and self._classes is None:
            return genes.model_copy(update={"select_by": "variance"})
        return genes

    @property
    def _scored_by(self) -> CohortIndex:
        """The training cases with the classes that genes are scored by: those of the target where it has some."""
        return self.index if self._classes is None else replace(self.index, labels=self._classes)

    @cached_property
    def _classes(self) -> NDArray[np.int64] | None:
        return self.target.classes_of(self.index.case_ids.tolist())

    @property
    def _fragments(self) -> int | None:
        return None if self.method.fragments is None else self.method.fragments(self.config)

    @cached_property
    def _sizes(self) -> Sizes:
        layout = set_layout(self.store, self.config.genes, self._fragments) if "genes" in self.needs else None
        return Sizes(
            (self.store.dim or 0) if "patches" in self.needs else 0,
            num_values(self.store, self.config.genes, layout) if "genes" in self.needs else 0,
            len(self.target.outputs),
            None if layout is None else layout.places,
        )

    def _check_start(self) -> None:
        """Refuse a model to start from that is another method's, or that saw cases which this run validates or tests
        on.
        """
        name, init = self.config.method.name, self.config.method.init
        if init is None:
            return
        if name not in CAN_START:
            raise ConfigError(
                f"method '{name}' cannot start from trained weights: they belong to the genes they were trained on",
                expected=f"method.init with method.name: {', '.join(CAN_START)}",
                found=init,
                fix="unset method.init",
            )
        file = self.file("method.init")
        refuse_other_method(name, file, read_card(file))
        self.refuse_leaks()

    def _check_patience(self) -> None:
        """Refuse to end a method early whose later parts would then never be trained."""
        if self.in_turn and self.settings.patience:
            raise ConfigError(
                f"method '{self.config.method.name}' trains its parts one after another and must not end early",
                expected="method.train.patience: 0",
                found=str(self.settings.patience),
                fix="set method.train.patience to 0; the best epoch on validation is kept all the same",
            )

    def _check_options(self) -> None:
        """Build the network once where options were given, to refuse impossible values before workers start."""
        if not self.options:
            return
        try:
            self.method.build(self._sizes, self.options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"impossible options of method '{self.config.method.name}'",
                expected="values that its network takes",
                found=str(error).splitlines()[0],
                fix="correct method.options; docs/methods.md says what each method takes",
            ) from None


def _bare(model: nn.Module) -> nn.Module:
    """The network without DistributedDataParallel."""
    bare: nn.Module = getattr(model, "module", model)
    return bare
