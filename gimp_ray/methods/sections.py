"""Sections of the config that GiMP shares with the pre-trainings it is compared with, and a method's usual settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from gimp_ray.config_training import FREE, PATH, Section, StageTrainConfig


class WindowConfig(Section):
    """The contiguous window of a bag that pre-training sees (section 2.3)."""

    length: int = Field(6000, ge=1, description="L, patches a window; a shorter bag is repeated to L")


class MaskConfig(Section):
    """Masked patch modelling (section 2.3, Eq. 3)."""

    ratio: float = Field(0.5, gt=0, lt=1, description="share of the window that is masked")
    reduction: Literal["mean", "sum"] = Field("mean", description="sum is the literal Eq. 3; mean does not grow with L")
    weight: float = Field(1.0, ge=0, description="weight of L_rec in L_pre")


class TripletConfig(Section):
    """Gene-induced triplet learning (section 2.3, Eq. 4)."""

    margin: float = Field(0.8, ge=0, description="delta of Eq. 4")
    mining: Literal["batch_all", "batch_hard", "semi_hard"] = Field(
        "batch_all", description="which triplets of a mini-batch count"
    )
    scope: Literal["local", "global"] = Field(
        "local", description="local: triplets inside each worker's mini-batch; global: over those of all workers"
    )
    average: Literal["active", "valid"] = Field("active", description="mean over triplets with a loss, or over all")
    normalize: bool = Field(True, description="L2-normalise CLS_pat before the distances")
    weight: float = Field(1.0, ge=0, description="weight of L_tri in L_pre; 0 switches it off")


class ObjectiveConfig(Section):
    """What stage `pretrain` learns."""

    genes: bool = Field(
        True, description="false pre-trains on images alone, and the gene encoder joins in fine-tuning (Table 2)"
    )

    @model_validator(mode="before")
    @classmethod
    def _is_a_method(cls, given: Any) -> Any:
        if isinstance(given, dict) and "name" in given:
            raise ValueError(f"another pre-training is another method: give method.name: {given['name']} in its place")
        return given


class BatchConfig(Section):
    """A worker's mini-batch of pre-training."""

    classes: int = Field(2, ge=1, description="P, classes in a mini-batch")
    cases_per_class: int = Field(4, ge=1, description="K, cases of each of them")
    balance: Literal["classes", "natural"] = Field(
        "classes", description="classes: P x K mini-batches, small classes repeated; natural: every case once an epoch"
    )


class ModelConfig(Section):
    """The patch aggregator (section 2.2)."""

    dim: int = Field(512, ge=8, description="d, width of CLS_img and CLS_ge")
    heads: int = Field(8, ge=1, description="attention heads")
    dim_head: int = Field(64, ge=1, description="width of a head")
    landmarks: int = Field(256, ge=1, description="m of Nystrom attention (Eq. 1-2)")
    pinv_iterations: int = Field(6, ge=1, description="Newton-Schulz iterations of the pseudo-inverse")
    residual_kernel: int = Field(33, ge=0, description="depthwise convolution over the values: odd, or 0 for none")
    layers: int = Field(2, ge=1, description="Nystrom attention layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each attention layer")
    activation_checkpointing: bool = Field(
        False,
        description="compute attention layers again in the backward pass: same result, less memory for a long L",
        json_schema_extra=FREE,
    )

    @model_validator(mode="after")
    def _kernel_is_centred(self) -> ModelConfig:
        if self.residual_kernel and self.residual_kernel % 2 == 0:
            raise ValueError("model.residual_kernel must be odd, or 0")
        return self


class GeneValuesConfig(Section):
    """Which genes a network reads, and how they are scaled."""

    sets: str | None = Field(
        None,
        description="gene sets (GMT or CSV) to be the groups of GroupMSA; genes of no set are then not used",
        json_schema_extra=PATH,
    )
    top_genes: int = Field(0, ge=0, description="keep this many genes, the best by select_by; 0 keeps all")
    select_by: Literal["variance", "f_score"] = Field(
        "f_score", description="score of a gene over the training cases; f_score uses their classes"
    )
    order: Literal["stored", "score"] = Field(
        "score", description="how genes are laid out in fragments: as stored, or best score first"
    )
    clip: float = Field(5.0, gt=0, description="z-scores are kept within this many deviations")
    log: bool | None = Field(None, description="apply log2(x + 1); unset: from the unit in the store")


class GroupMSAConfig(GeneValuesConfig):
    """GroupMSA over these genes, and mixup in its supervised training."""

    fragments: int = Field(1008, ge=1, description="N_f")
    groups: int = Field(24, ge=1, description="N_gr; with sets, their number")
    heads: int = Field(8, ge=1, description="attention heads; the most up to this that divide model.dim are used")
    ff_mult: float = Field(2.0, gt=0, description="width of the feed-forward layers over d")
    dropout: float = Field(0.1, ge=0, lt=1, description="inside the encoder; SNN: of AlphaDropout")
    gene_dropout: float = Field(0.3, ge=0, lt=1, description="share of input genes set to their mean in training")
    mixup: float = Field(1.0, ge=0, description="Beta parameter of mixup in training; 0 switches it off")


class GenesConfig(GroupMSAConfig):
    """The gene encoder (section 2.1) and its supervised pre-training."""

    checkpoint: str | None = Field(
        None,
        description="a trained gene encoder (.safetensors) to use instead of training one",
        json_schema_extra=PATH,
    )
    encoder: Literal["group_msa", "snn", "none"] = Field("group_msa", description="none: pre-training on images alone")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the supervised pre-training's cross-entropy")
    batch_size: int = Field(32, ge=1, description="cases in a worker's mini-batch")
    # measured for d = 512; a narrow encoder wants more (3e-3 at d = 64)
    train: StageTrainConfig = StageTrainConfig(epochs=20, lr=3e-4)


class SelectConfig(Section):
    """Which epoch of the supervised training is kept."""

    select: Literal["auto", "accuracy", "loss", "auroc", "cindex"] = Field(
        "auto",
        description="validation metric that picks the epoch, ties by loss; auto: accuracy for a class, auroc for "
        "labels, cindex for survival",
    )


class FinetuneConfig(SelectConfig):
    """Fine-tuning on whole bags with an MLP head on CLS_pat, best epoch by validation (paper: 70 epochs)."""

    init: str = Field(
        "pretrain",
        description="pretrain: this run's pre-trained model; scratch; or a .safetensors file",
        json_schema_extra=PATH | {"words": ("pretrain", "scratch")},
    )
    freeze_genes: bool = Field(True, description="keep the gene encoder frozen in fine-tuning too")
    hidden: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.25, ge=0, lt=1, description="of the head")
    batch_size: int = Field(4, ge=1, description="whole bags in a worker's mini-batch")
    train: StageTrainConfig = StageTrainConfig(epochs=70)


def recipe(epochs: int, lr: float, **more: Any) -> StageTrainConfig:
    """How a compared method is trained by default: Adam at a constant rate, unless `more` says otherwise."""
    usual: dict[str, Any] = {"weight_decay": 1e-5, "optimizer": "adam", "betas": (0.9, 0.999), "lookahead": 0}
    usual |= {"schedule": "constant", "warmup": 0.0, "clip_norm": 0.0, "accumulate": 1, "patience": 0, "min_epochs": 0}
    return StageTrainConfig(**{"epochs": epochs, "lr": lr} | usual | more)


class MethodSection(Section):
    """Section `method`; a method adds its own numbers in a subclass."""

    name: str = Field("", description="gimp, another of `gimp methods`, or your own module such as my_package.mine")

    @model_validator(mode="before")
    @classmethod
    def _options(cls, given: Any) -> Any:
        """`method.options`, by which a method's numbers were given before, means the same keys of `method`."""
        if isinstance(given, dict) and isinstance(given.get("options"), dict):
            return {key: value for key, value in given.items() if key != "options"} | given["options"]
        return given


class Settings(MethodSection):
    """Section `method` of a method that is trained in one stage."""

    init: str | None = Field(
        None,
        description="a trained model (.safetensors) of the same method, on patches alone, whose weights it starts from",
        json_schema_extra=PATH,
    )
    batch_size: int = Field(1, ge=1, description="cases in a worker's mini-batch")
    l1: float = Field(
        0.0,
        ge=0,
        description="penalty on absolute weights: of the gene network (PORPOISE: and of the fusion), of all where "
        "there is one modality",
    )
    train: StageTrainConfig = recipe(epochs=20, lr=2e-4)


def settings_of(*functions: Callable[..., Any], leave: Sequence[str] = (), **defaults: Any) -> type[Settings]:
    """Section `method` with the arguments that have a default of a network, and of its loss, by their names.

    Args:
        functions: the network, the loss.
        leave: arguments that are none of the user's.
        defaults: of the section's other keys, such as `train=recipe(...)`.
    """
    fields: dict[str, Any] = {name: (Settings.model_fields[name].annotation, value) for name, value in defaults.items()}
    for function in functions:
        call = function.__init__ if inspect.isclass(function) else function
        types = get_type_hints(call)
        for one in inspect.signature(function).parameters.values():
            if one.default is not inspect.Parameter.empty and one.name not in leave:
                fields[one.name] = (types[one.name], one.default)
    return create_model("Settings", __base__=Settings, **fields)


def numbers_of(settings: Settings) -> dict[str, Any]:
    """A method's own numbers in its section, by name."""
    return {name: getattr(settings, name) for name in type(settings).model_fields if name not in Settings.model_fields}
