"""The supervised stage of every method: its network is trained on whole bags, genes or both for a target, and the best
epoch on validation is kept.

Cases whose truth is not known are left out. What differs between methods is in their description
(`gimp_ray.methods.base.Supervise`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.config_files import is_free
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import ConfigError
from gimp_ray.feed.plan import Batching, CohortIndex, Row, index_cases
from gimp_ray.feed.windows import Arrays, read_bags
from gimp_ray.learn.class_target import class_target
from gimp_ray.learn.gene_side import GeneSide, encode_cases, encoder_card, load_gene_side
from gimp_ray.learn.gene_values import GeneValues, fit_gene_values, num_values, set_layout
from gimp_ray.learn.stage import Stage, shared_out
from gimp_ray.learn.start import check_patch_dim, check_start, made_for_outputs, start_from, take_parts
from gimp_ray.learn.targets import Target, batch_arrays, check_target, known_parts, make_target
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.methods.base import Phase, Sizes, Supervise
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.runs.model import read_card


class Supervised(Stage):
    """A method's supervised stage; natural mini-batches, every training case once an epoch."""

    does: Supervise
    genes: GeneValues | None = None
    gene_input: GeneInput | None = None
    phase_number = 0
    encoded: dict[int, Tensor]  # CLS_ge of the cases of `index` and `validation`, by these objects' ids

    def __init__(self, config: dict[str, Any], run: str, stage: str = "finetune") -> None:
        super().__init__(config, run, stage)
        self.in_turn = len(self.does.phases) > 1
        self.encoded = {}

    @cached_property
    def target(self) -> Target:
        """What is predicted, fitted on the training part."""
        if self.does.label:
            return class_target(self.store)
        return make_target(self.config, self.store, self.parts["train"])

    @cached_property
    def known(self) -> dict[str, tuple[str, ...]]:
        """The parts of the split without the cases whose truth is not known."""
        return known_parts(self.target, self.parts)

    @cached_property
    def validation(self) -> CohortIndex | None:
        return index_cases(self.store, self.known["val"]) if self.known["val"] else None

    @cached_property
    def select(self) -> str:
        """The metric that picks the epoch: one for the whole run, decided by the truth of the validation cases."""
        return self.target.selected(self.known["val"], self.does.select(self.config))[0]

    def training_cases(self) -> tuple[str, ...]:
        return self.known["train"]

    @property
    def batching(self) -> Batching:
        size = self.does.batch_size(self.config)
        return Batching(balance="natural", size=size, accumulate=self.settings.accumulate)

    def preflight(self) -> None:
        """Refuse what cannot be trained, and say what is to be said of the target, before anything is started.

        Raises:
            GimpError: names the key, the file or the case.
        """
        does, config = self.does, self.config
        if self.target.kind not in does.kinds:
            raise ConfigError(
                f"method '{self.method}' cannot learn a target of kind '{self.target.kind}': {does.why_not}",
                expected=f"target.kind: {' or '.join(does.kinds)}",
                found=self.target.kind,
                fix="choose another method.name, or another target",
            )
        if does.sets and config.genes.sets is None:
            raise ConfigError(
                f"method '{self.method}' groups genes by gene sets, and none were given",
                expected="genes.sets: FILE, GMT or CSV",
                found="nothing",
                fix="give gene families or the Hallmark sets of MSigDB with --genes.sets FILE",
            )
        self._check_starts()
        if self.in_turn and self.settings.patience:
            raise ConfigError(
                f"method '{self.method}' trains its parts one after another and must not end early",
                expected="method.train.patience: 0",
                found=str(self.settings.patience),
                fix="set method.train.patience to 0; the best epoch on validation is kept all the same",
            )
        if not does.takes:
            self._check_numbers()
        notes = []
        if not does.label:
            at_once = self.batching.size * max(1, self.settings.fewest_workers or self.settings.most_workers)
            notes = check_target(self.target, self.parts, does.select(config), at_once)
        if "genes" in self.needs and self._gene_settings is not config.genes:
            notes.append("genes are scored by variance: f_score needs classes with several cases each")
        for note in notes:
            print(f"note: stage '{self.name}': {note}", flush=True)

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
        elif self.side is not None and not self._frozen:
            arrays["genes"] = self.side.read(self.store, ids)
        if self.in_turn:
            arrays["phase"] = np.array([self.does.phase_at(row.before)])
        return arrays

    def build(self, device: torch.device) -> nn.Module:
        indexes = [self.index, *([] if self.validation is None else [self.validation])]
        if "genes" in self.needs:
            self.genes = fit_gene_values(self.store, self._scored_by, self._gene_settings, self._fragments)
            self.gene_input = self.genes.input.to(device)
        if self.side is not None and self._frozen:
            self.encoded = {
                id(index): encode_cases(self.side, self.store, index.case_ids.tolist(), device) for index in indexes
            }
        torch.manual_seed(self.seed)
        network = self.does.network(self.made_of, self.sizes)
        if self._start is not None and self.does.takes:
            take_parts(network, self.file(self._start), self.does.takes)
        elif self._start is not None:
            for_outputs = made_for_outputs(lambda sizes: self.does.network(self.made_of, sizes), self.sizes)
            start_from(network, self.file(self._start), self.target.card(), for_outputs)
        network = network.to(device)
        network.requires_grad_(True)  # the optimiser gets all of a network whose parts are trained in turn
        if self.side is not None and self._frozen:
            freeze(self.side.encoder)
        if "patches" in self.needs:
            self.keep_bags(device, *indexes)
        return network

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = self._data_loss(model, self._given(batch, self.index), self._enter(model, batch))
        l1 = self.does.l1(self.config)
        if not l1:
            return loss, parts
        penalty = l1 * self.does.absolute_weights(_bare(model))
        return loss + penalty, parts | {"loss_l1": penalty}

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        index = self.validation
        if index is None:
            return None
        records: list[Record] = []
        mine = shared_out(index, world.rank, world.size)
        needs = (*self.needs, *(("genes",) if self.side is not None and not self._frozen else ()))
        columns = None if self.side is None else self.side.columns
        cases = iter(mine)
        for ids, batch in whole_cases(
            self.store, index, mine, needs, self.config.feed, world.device, columns, self.cache
        ):
            batch["case"] = torch.tensor([next(cases) for _ in ids], device=world.device)
            out = self.does.answer(model, self._given(batch, index))
            predicted = self.phase.predict(self.target, out)
            records += [self.target.record(case, row_P) for case, row_P in zip(ids, predicted, strict=True)]
        return records

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        figures = self.target.figures(records)
        # an epoch of an early phase has no network of the method's, so any of a later one is better
        return figures, [float(self.phase_number), *self.target.score(figures, self.select)]

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        weights = {f"net.{name}": value for name, value in model.state_dict().items()}
        genes = None if self.side is None else self.side.card
        if self.genes is not None and self.gene_input is not None:
            weights |= {f"input.{name}": value for name, value in self.gene_input.state_dict().items()}
            network = self.does.gene_card(self.config)
            genes = encoder_card(self.genes, network) if network else self.genes.card
        return weights, self.card(genes) | {
            "target": self.target.card(),
            "outputs": len(self.target.outputs),
            "init": None if self._start is None else self.files[self._start],
        }

    @property
    def phase(self) -> Phase:
        """The phase of the last step."""
        return self.does.phases[self.phase_number]

    @cached_property
    def side(self) -> GeneSide | None:
        """The trained gene encoder, of the model it starts from or of a file of its own; readable without `build`, as
        reads in other processes need it.
        """
        self._check_starts()
        if "genes" in self.needs:
            return None
        for key in (self._start, "genes.checkpoint"):
            if key in self.files and (key != self._start or read_card(self.file(key)).get("genes")):
                return load_gene_side(self.file(key), self.store)
        return None

    @cached_property
    def made_of(self) -> Any:
        """The config that the network is made of: of this run, but what the model it starts from decides."""
        config = SimpleNamespace(**vars(self.config))
        if self._start is not None:
            card = read_card(self.file(self._start))
            for section in self.does.inherited:
                mine = getattr(config, section)
                free = {key: value for key, value in mine if is_free(f"{section}.{key}", self._kind)}
                setattr(config, section, type(mine)(**card["config"][section] | free))
        return config

    @cached_property
    def sizes(self) -> Sizes:
        """What the network is built for."""
        reads_genes = "genes" in self.needs
        layout = set_layout(self.store, self.config.genes, self._fragments) if reads_genes else None
        return Sizes(
            patch_dim=(self.store.dim or 0) if "patches" in self.needs else 0,
            num_genes=num_values(self.store, self.config.genes, layout) if reads_genes else 0,
            outputs=len(self.target.outputs),
            sets=None if layout is None else layout.places,
            encoder=None if self.side is None else self.side.encoder,
            gene_dim=0 if self.side is None else self.side.dim,
        )

    def _data_loss(self, model: nn.Module, batch: Tensors, phase: Phase) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss of a mini-batch of scaled genes, which may be mixed."""
        alpha = self.does.mixup(self.config)
        if not alpha or self.target.kind == "survival":
            return phase.loss(self.target, self.does.answer(model, batch), batch, self.config)
        weight = float(torch.distributions.Beta(alpha, alpha).sample())
        partner_B = torch.randperm(len(batch["genes"])).to(batch["genes"].device)
        mixed = batch | {"genes": torch.lerp(batch["genes"][partner_B], batch["genes"], weight)}
        out = self.does.answer(model, mixed)
        # of a mixed target a loss that is linear in it is the mix of two losses, whatever the kind of target
        own, parts = phase.loss(self.target, out, batch, self.config)
        others = {key: value[partner_B] if key.startswith("target") else value for key, value in batch.items()}
        return weight * own + (1 - weight) * phase.loss(self.target, out, batch | others, self.config)[0], parts

    def _enter(self, model: nn.Module, batch: Tensors) -> Phase:
        """The phase of a mini-batch; a network whose parts are trained in turn is told its name."""
        if self.in_turn:
            self.phase_number = int(batch["phase"])
            network: Any = _bare(model)
            network.set_stage(self.phase.name)
        return self.phase

    def _given(self, batch: Tensors, index: CohortIndex) -> Tensors:
        """The batch as the network sees it: its genes scaled, or the CLS_ge of its cases of that index."""
        if self.gene_input is not None:
            return batch | {"genes": self.gene_input(batch["genes"])}
        return batch | {"cls_ge": self.encoded[id(index)][batch["case"]]} if self.encoded else batch

    @property
    def _frozen(self) -> bool:
        return self.does.frozen(self.config)

    @property
    def _start(self) -> str | None:
        """The key of the model it starts from."""
        return next((key for key in self.files if key.endswith(".init")), None)

    def _check_starts(self) -> None:
        own = self._start is not None and Path(self.files[self._start]).parent == self.run.path
        if self._start is not None and not (own and not self.run.stage_done(Path(self.files[self._start]).stem)):
            check_start(self.method, self.does, self._start, self.file(self._start))
            if self.does.takes:
                check_patch_dim(read_card(self.file(self._start)), self.store.dim, self.store.path)
        self.refuse_leaks()

    def _check_numbers(self) -> None:
        """Build the network once, to refuse impossible numbers before workers start."""
        try:
            self.does.network(self.made_of, self.sizes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"impossible options of method '{self.method}'",
                expected="values that its network takes",
                found=str(error).splitlines()[0],
                fix="correct the keys of section method; docs/methods.md says what each method takes",
            ) from None

    @property
    def _fragments(self) -> int | None:
        return None if self.does.fragments is None else self.does.fragments(self.config)

    @cached_property
    def _gene_settings(self) -> Any:
        """`genes`, where a score by classes is the variance for a target without classes."""
        genes = self.config.genes
        if genes.select_by == "f_score" and self._classes is None:
            return genes.model_copy(update={"select_by": "variance"})
        return genes

    @property
    def _scored_by(self) -> CohortIndex:
        """The training cases with the classes that genes are scored by: those of the target where it has some."""
        return self.index if self._classes is None else replace(self.index, labels=self._classes)

    @cached_property
    def _classes(self) -> NDArray[np.int64] | None:
        return self.target.classes_of(self.index.case_ids.tolist())


def _bare(model: nn.Module) -> nn.Module:
    """The network without DistributedDataParallel."""
    bare: nn.Module = getattr(model, "module", model)
    return bare
