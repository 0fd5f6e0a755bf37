"""What a method is: its config, and its stages as plain data and functions, which `gimp_ray.learn` trains and predicts.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, O outputs, P predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import create_model
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.config_training import StageTrainConfig
from gimp_ray.errors import ConfigError
from gimp_ray.methods.sections import GeneValuesConfig, SelectConfig, Settings, numbers_of, recipe, settings_of

__all__ = [
    "Config",
    "Method",
    "Phase",
    "Pretrain",
    "Settings",
    "Sizes",
    "StageTrainConfig",
    "Supervise",
    "numbers_of",
    "recipe",
    "settings_of",
    "supervised",
]

Tensors = dict[str, Tensor]
Loss = tuple[Tensor, dict[str, Tensor]]  # the loss, and its parts for the log
IMAGE, GENES, JOINT = ("patches",), ("genes",), ("patches", "genes")
ALL_KINDS = ("class", "labels", "survival")


class Target(Protocol):
    """What is predicted of a case; its loss and predictions of a network's (B, O) numbers."""

    @property
    def kind(self) -> str:
        """`class`, `labels` or `survival`."""

    def loss(self, logits_BO: Tensor, batch: Tensors) -> Loss: ...

    def predict(self, logits_BO: Tensor) -> Tensor:
        """(B, P) float64."""


class GeneSets(Protocol):
    """Where gene sets stand among the values of the genes."""

    names: tuple[str, ...]
    fragments: int

    @property
    def groups(self) -> list[list[int]]:
        """For each set the numbers of its values."""


@dataclass(frozen=True)
class Sizes:
    """What a network is built for.

    Attributes:
        patch_dim: E; 0 where the method reads no patches.
        num_genes: G, scaled values a case; 0 where the method reads no genes.
        outputs: O.
        sets: where the gene sets stand among those values; None without sets.
        encoder: raw expression -> CLS_ge, of stages that have a gene encoder from elsewhere, or one to be trained.
        gene_dim: width of CLS_ge; 0 without an encoder.
        targets: fits what is predicted of gene groups in so many bins; of pre-trainings that train an encoder.
    """

    patch_dim: int = 0
    num_genes: int = 0
    outputs: int = 0
    sets: Any = None
    encoder: Any = None
    gene_dim: int = 0
    targets: Callable[[int], Any] | None = None


def own(stage: str) -> str:
    """The final model of another stage of the same run, as a file to start from."""
    return f"stage:{stage}"


def logits_of(out: Any) -> Tensor:
    """(B, O) of a network's output: the output itself, or its `logits`."""
    return out if isinstance(out, Tensor) else out.logits


def target_loss(target: Target, out: Any, batch: Tensors, config: Any) -> Loss:
    """The target's own loss of the one answer a network gives."""
    return target.loss(logits_of(out), batch)


def target_prediction(target: Target, out: Any) -> Tensor:
    """What the target makes of the one answer a network gives."""
    return target.predict(logits_of(out))


def answer(network: nn.Module, batch: Tensors) -> Any:
    """The network's output for a batch with `patches` and maybe `valid`, scaled `genes`, or both."""
    if "patches" not in batch:
        return network(batch["genes"])
    genes = {"genes_BG": batch["genes"]} if "genes" in batch else {}
    return network(batch["patches"], batch.get("valid"), **genes)


@dataclass(frozen=True)
class Phase:
    """A part of the training with a loss of its own.

    Attributes:
        loss: (target, output, batch, config) -> the loss and its parts for the log.
        predict: (target, output) -> (B, P) float64.
        name: for the network's `set_stage`, where a stage has several phases.
        begin: share of the training at which it begins.
    """

    loss: Callable[[Target, Any, Tensors, Any], Loss] = target_loss
    predict: Callable[[Target, Any], Tensor] = target_prediction
    name: str = ""
    begin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Supervise:
    """A stage trained on labels: whole bags, genes or both; the best epoch on validation is kept.

    Attributes:
        network: (config, sizes) -> the network with fresh weights.
        needs: modalities it reads of the store: `patches`, `genes`.
        name: of the stage.
        reads: sections and keys of the config that it depends on.
        starts: (config, whether the store has genes) -> files it starts from, by the key that may name them; see `own`.
        phases: in order; one, unless its parts are trained in turn.
        kinds, why_not: kinds of target it can learn, and why not the others.
        sets: whether it needs gene sets (`genes.sets`).
        fragments: how many fragments gene sets are laid out in; None where sets are not used. One a set keeps each
            set's genes together.
        label: it learns the stored label, whatever the run's target is.
        batch_size, select, l1, mixup: from the config: cases in a worker's mini-batch, the metric that picks the
            epoch, the penalty on absolute weights, and the Beta parameter by which genes are mixed.
        penalised: parts of the network that `l1` is about; all of it where none is named.
        answer: (network, batch) -> output.
        gene_card: of the config, what else rebuilds the gene side; for a stage that trains a gene encoder.
        frozen: whether the gene encoder that it starts from rests, so that its output is computed once a case.
        takes: parts of the network whose weights are those of the model it starts from; without any, all weights but
            those that are made for the outputs.
        inherited: sections of the config that the model it starts from decides.
        head: (config, width of CLS_pat, outputs) -> the part of the network after CLS_pat, whose name in it is `head`.
    """

    network: Callable[[Any, Sizes], nn.Module]
    needs: tuple[str, ...]
    name: str = "finetune"
    reads: tuple[str, ...] = ("method", "target", "finetune.select")
    starts: Callable[[Any, bool], dict[str, str]] = lambda config, has_genes: _given(
        {"method.init": config.method.init}
    )
    phases: tuple[Phase, ...] = (Phase(),)
    kinds: tuple[str, ...] = ALL_KINDS
    why_not: str = ""
    sets: bool = False
    fragments: Callable[[Any], int] | None = None
    label: bool = False
    batch_size: Callable[[Any], int] = lambda config: config.method.batch_size
    select: Callable[[Any], str] = lambda config: config.finetune.select
    l1: Callable[[Any], float] = lambda config: config.method.l1
    mixup: Callable[[Any], float] = lambda config: 0.0
    penalised: tuple[str, ...] = ()
    answer: Callable[[nn.Module, Tensors], Any] = answer
    gene_card: Callable[[Any], dict[str, Any]] = lambda config: {}
    frozen: Callable[[Any], bool] = lambda config: False
    takes: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()
    head: Callable[[Any, int, int], nn.Module] | None = None

    def phase_at(self, share: float) -> int:
        """Number of the phase that is on when a share of the training is done."""
        return max(number for number, phase in enumerate(self.phases) if phase.begin <= share)

    def absolute_weights(self, network: nn.Module) -> Tensor:
        """(), the sum of absolute weights that `method.l1` is about, without those that are frozen."""
        parts = [getattr(network, name) for name in self.penalised] or [network]
        return sum(
            (weight.abs().sum() for part in parts for weight in part.parameters() if weight.requires_grad),
            start=torch.zeros((), device=next(network.parameters()).device),
        )


@dataclass(frozen=True)
class Window:
    """What a mini-batch of windows is drawn for, beside the patches.

    Attributes:
        case: (B,) numbers of the cases.
        label: (B,) their classes, -1 where pre-training must not know it.
        patient: (B,) numbers of their patients.
        seeds: (B,) uint64, a random stream of each window's own.
        epoch, epochs: which, and of how many.
        seed: of the stage.
        groups: groups of the gene encoder that is trained; 0 where none is.
        counted: False where a rank has nothing left and repeats cases.
        masked: share -> (B, M) int64 positions of a window to be masked.
    """

    case: NDArray[np.int64]
    label: NDArray[np.int64]
    patient: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    epoch: int
    epochs: int
    seed: int
    groups: int
    counted: bool
    masked: Callable[[float], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """A stage trained on windows of patches, and genes, without validation; its last epoch is used.

    Attributes:
        network: (config, sizes) -> the model; with parts `aggregator` and `gene_encoder`.
        embed: (config, sizes) -> a model of those parts, whose output has `cls_pat`.
        answer: (that model, batch) -> its output.
        read: (config, window) -> arrays of a mini-batch besides patches and genes.
        loss: (config, model, batch) -> the loss and its parts. The batch has `genes` where the encoder is trained,
            `cls_ge` where it rests.
        trains_genes: a gene encoder is fitted and trained along; else one that is trained is used, and rests.
        gene_card: of the config, what rebuilds the encoder that is trained along.
        labels: (config) -> whether it needs classes: mini-batches of P classes and K cases.
        check: (config, groups of the gene encoder, cases of a step) refuses settings that cannot be.
    """

    network: Callable[[Any, Sizes], nn.Module]
    embed: Callable[[Any, Sizes], nn.Module]
    answer: Callable[[nn.Module, Tensors], Any]
    read: Callable[[Any, Window], dict[str, NDArray[Any]]]
    loss: Callable[[Any, nn.Module, Tensors], Loss]
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    starts: Callable[[Any, bool], dict[str, str]]
    name: str = "pretrain"
    trains_genes: bool = False
    gene_card: Callable[[Any], dict[str, Any]] = lambda config: {}
    labels: Callable[[Any], bool] = lambda config: False
    check: Callable[[Any, int, int], None] = lambda config, groups, at_once: None


Stage = Supervise | Pretrain


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        title: its name in tables.
        paper: where it was published; empty for a baseline of this project.
        config: the run's config with the method's own sections.
        stages: in order; the last is what is evaluated.
    """

    title: str
    paper: str = ""
    config: type[Config]
    stages: tuple[Stage, ...]

    @property
    def stage_names(self) -> list[str]:
        """Names of its stages, in order."""
        return [stage.name for stage in self.stages]

    @property
    def needs(self) -> list[str]:
        """What it needs: modalities of the store, and gene sets."""
        needed = {modality for stage in self.stages if stage.name != "genes" for modality in stage.needs}
        found = [modality for modality in JOINT if modality in needed]
        if "genes" not in needed and "genes" in self.stage_names:
            found.append("genes (unless genes.encoder: none)")
        sets = any(isinstance(stage, Supervise) and stage.sets for stage in self.stages)
        return [*found, *(["genes.sets"] if sets else [])]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of target that it can learn."""
        last = self.stages[-1]
        return last.kinds if isinstance(last, Supervise) else ()

    def stage(self, name: str) -> Stage:
        """A stage by its name.

        Raises:
            ConfigError: it has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(
            f"{self.title} has no stage '{name}'",
            expected=f"one of {', '.join(self.stage_names)}",
            found=name,
            fix="use `gimp run`, or another method.name",
        )

    def stages_up_to(self, last: str, config: Config, has_genes: bool) -> list[str]:
        """The stages of a run in order: the last, and those of this run that it starts from."""
        wanted = {last}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                starts = stage.starts(config, has_genes).values()
                wanted |= {file.removeprefix("stage:") for file in starts if file.startswith("stage:")}
        self.stage(last)  # refuses a name that it does not have
        return [stage.name for stage in self.stages if stage.name in wanted]

    def why_not(self, config: Any, has: set[str]) -> str | None:
        """Why a run of it cannot be trained on a store with some modalities under a config; None where it can."""
        for name in self.stages_up_to(self.stages[-1].name, config, "genes" in has):
            stage = self.stage(name)
            for modality in stage.needs:
                if modality not in has:
                    return f"the store has no {modality}"
            if isinstance(stage, Supervise) and not stage.label and config.target.kind not in stage.kinds:
                return stage.why_not
            if isinstance(stage, Supervise) and stage.sets and config.genes.sets is None:
                return "genes.sets is not set"
        return None


class MethodConfig(Config):
    """The config of a method that is trained in one stage."""

    trained_by: ClassVar[Mapping[str, str]] = {"finetune": "method"}

    finetune: SelectConfig = SelectConfig()


class GeneMethodConfig(MethodConfig):
    """The same of a method that reads genes."""

    genes: GeneValuesConfig = GeneValuesConfig()


def supervised(
    *,
    title: str,
    paper: str = "",
    network: Callable[[Any, Sizes], nn.Module],
    needs: tuple[str, ...],
    settings: type[Settings] = Settings,
    config: type[Config] | None = None,
    **stage: Any,
) -> Method:
    """A method of one stage, `finetune`, trained on labels.

    Args:
        title, paper: see `Method`.
        network, needs: see `Supervise`.
        settings: section `method` of its config.
        config: the other sections.
        stage: what else is to be said of the stage (`Supervise`).
    """
    base = config or (GeneMethodConfig if "genes" in needs else MethodConfig)
    kind = config_with(base, title, settings)
    if "genes" in needs:
        stage.setdefault("reads", ("method", "target", "finetune.select", "genes"))
        stage.setdefault(
            "starts", lambda config, has_genes: _given({"method.init": config.method.init, **_sets(config)})
        )
    return Method(title=title, paper=paper, config=kind, stages=(Supervise(network=network, needs=needs, **stage),))


def config_with(base: type[Config], title: str, section: type[Any]) -> type[Config]:
    """A config with a section `method` of its own."""
    made: type[Config] = create_model(f"{title} config", __base__=base, method=(section, section()))
    return made


def _sets(config: Any) -> Mapping[str, str | None]:
    return {"genes.sets": config.genes.sets}


def _given(files: Mapping[str, str | None]) -> dict[str, str]:
    return {key: file for key, file in files.items() if file}
