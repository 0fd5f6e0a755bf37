"""The typed config of a run: every choice the paper leaves open is a named field here, with its default.

A config is plain data: read from YAML, changed by dotted overrides (`--train.lr 3e-4`), checked at construction,
saved in the run folder. Unknown keys and impossible values are refused with the key's name. Left out: what a key
does, which is the business of the room that uses it; the options of `gimp ingest` and `gimp synth`, which are
dataclasses beside the code they steer.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gimp_ray.config_training import FREE, FinetuneTrainConfig, GenesTrainConfig, Section, StageTrainConfig, TrainConfig
from gimp_ray.recipes import RECIPES, Recipe


class SplitConfig(Section):
    """Which stored split a run uses; every fitted thing sees its training part alone."""

    scheme: str = Field("kfold", description="name of a split scheme stored in the store")
    fold: int = Field(0, ge=0, description="fold of that scheme")
    transductive: bool = Field(
        False,
        description="pre-train on the cases of all parts (labels of the training part alone); every table then says so",
    )


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
        json_schema_extra=FREE,
        description="compute attention layers again in the backward pass: same result, less memory for a long L",
    )


class GenesConfig(Section):
    """The gene encoder (section 2.1) and its supervised pre-training."""

    checkpoint: str | None = Field(
        None,
        description="a trained gene encoder (.safetensors) to use instead of training one",
        json_schema_extra={"free": True},  # its content counts, not its path
    )
    encoder: Literal["group_msa", "snn", "none"] = Field("group_msa", description="none: pre-training on images alone")
    top_genes: int = Field(0, ge=0, description="keep this many genes, the best by select_by; 0 keeps all")
    select_by: Literal["variance", "f_score"] = Field(
        "f_score", description="score of a gene over the training cases; f_score uses their classes"
    )
    order: Literal["stored", "score"] = Field(
        "score", description="how genes are laid out in fragments: as stored, or best score first"
    )
    sets: str | None = Field(
        None,
        description="gene sets (GMT or CSV) to be the groups of GroupMSA; genes of no set are then not used",
        json_schema_extra={"free": True},
    )
    fragments: int = Field(1008, ge=1, description="N_f")
    groups: int = Field(24, ge=1, description="N_gr; with sets, their number")
    heads: int = Field(8, ge=1, description="attention heads; the most up to this that divide model.dim are used")
    ff_mult: float = Field(2.0, gt=0, description="width of the feed-forward layers over d")
    dropout: float = Field(0.1, ge=0, lt=1, description="inside the encoder; SNN: of AlphaDropout")
    gene_dropout: float = Field(0.3, ge=0, lt=1, description="share of input genes set to their mean in training")
    clip: float = Field(5.0, gt=0, description="z-scores are kept within this many deviations")
    mixup: float = Field(1.0, ge=0, description="Beta parameter of mixup in training; 0 switches it off")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the supervised pre-training's cross-entropy")
    log: bool | None = Field(None, description="apply log2(x + 1); unset: from the unit in the store")
    batch_size: int = Field(32, ge=1, description="cases in a worker's mini-batch")
    train: GenesTrainConfig = GenesTrainConfig()


class TargetConfig(Section):
    """What fine-tuning predicts of a case; truth is in the store's case table."""

    kind: Literal["class", "labels", "survival"] = Field(
        "class", description="one class a case; several labels, each yes or no; or the time to an event"
    )
    columns: list[str] = Field(
        [], description="class: one column of the case table in place of label; labels: the columns, each yes or no"
    )
    time: str = Field("survival_months", description="survival: column with the time to event or last follow-up")
    event: str = Field("event", description="survival: column that says whether the event was seen")
    loss: Literal["nll", "cox"] = Field(
        "nll", description="survival: likelihood of hazards in time bins, or Cox's over the mini-batches of all workers"
    )
    bins: int = Field(4, ge=2, description="survival with nll: time bins, with equal numbers of training events")

    @model_validator(mode="after")
    def _columns_of_the_kind(self) -> TargetConfig:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("target.columns has a column twice")
        if self.kind == "labels" and not self.columns:
            raise ValueError("target.columns must name the labels, such as [TP53, KRAS], with target.kind: labels")
        most = {"class": 1, "survival": 0}.get(self.kind, len(self.columns))
        if len(self.columns) > most:
            raise ValueError(f"target.columns takes at most {most} of them with target.kind: {self.kind}")
        return self


class FinetuneConfig(Section):
    """Fine-tuning on whole bags with an MLP head on CLS_pat, best epoch by validation."""

    init: str = Field(
        "pretrain",
        description="pretrain: this run's pre-trained model; scratch; or a .safetensors file",
        json_schema_extra={"free": True},
    )
    freeze_genes: bool = Field(True, description="keep the gene encoder frozen in fine-tuning too")
    hidden: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.25, ge=0, lt=1, description="of the head")
    batch_size: int = Field(4, ge=1, description="whole bags in a worker's mini-batch")
    select: Literal["auto", "accuracy", "loss", "auroc", "cindex"] = Field(
        "auto",
        description="validation figure that picks the epoch, ties by loss; auto: accuracy for a class, auroc for "
        "labels, cindex for survival",
    )
    train: FinetuneTrainConfig = FinetuneTrainConfig()


class MethodConfig(Section):
    """Another method than GiMP in stage `finetune` (docs/methods.md)."""

    name: str = Field("gimp", description="gimp, or a compared method of docs/methods.md")
    options: dict[str, Any] = Field({}, description="arguments of its network and its loss, by name")
    init: str | None = Field(
        None,
        description="a trained model (.safetensors) of the same method, on patches alone, whose weights it starts from",
        json_schema_extra={"free": True},
    )
    batch_size: int | None = Field(None, ge=1, description="cases in a worker's mini-batch; unset: as its recipe says")
    l1: float | None = Field(
        None,
        ge=0,
        description="penalty on absolute weights: of the gene network (PORPOISE: and of the fusion), of all where "
        "there is one modality; unset: as its recipe says",
    )
    train: StageTrainConfig = StageTrainConfig()

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != "gimp" and name not in RECIPES:
            raise ValueError("one of gimp, " + ", ".join(RECIPES))
        return name

    @property
    def recipe(self) -> Recipe | None:
        """How the method is trained by default; None for GiMP."""
        return RECIPES.get(self.name)


class ObjectiveConfig(Section):
    """What stage `pretrain` learns."""

    name: Literal["gimp", "mgca", "biovil", "refers", "tangle"] = Field(
        "gimp", description="gimp: masked patches and triplets; or a compared objective"
    )
    options: dict[str, Any] = Field({}, description="the objective's own numbers, by argument name")
    genes: bool = Field(
        True, description="gimp: false pre-trains on images alone, and the gene encoder joins in fine-tuning (Table 2)"
    )

    @model_validator(mode="after")
    def _compared_objectives_have_genes(self) -> ObjectiveConfig:
        if self.name != "gimp" and not self.genes:
            raise ValueError(f"objective.genes: objective.name {self.name} contrasts images with genes")
        return self


class EvaluateConfig(Section):
    """What is reported beside the model."""

    part: Literal["test", "val"] = Field("test", description="part of the split that is reported")
    resamples: int = Field(1000, ge=10, description="patient-level bootstrap resamples")
    reference_rows: bool = Field(True, description="genes alone, and mean-pooled patches, beside the model")
    missing: list[Literal["images", "genes"]] = Field(
        [], description="also report GiMP with this modality missing: its side is the mean of the training cases"
    )


class CheckpointConfig(Section):
    """When a run saves what it needs to continue."""

    every_steps: int | None = Field(None, ge=1, description="optimiser steps between checkpoints, besides one an epoch")
    every_epochs: int = Field(1, ge=1, description="epochs between checkpoints")
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between checkpoints, besides those by steps and epochs"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept")


class LogConfig(Section):
    """Where the figures go besides the run's own log and TensorBoard."""

    mlflow: str | None = Field(None, description="MLflow tracking URI, such as http://HOST:5000 or file:///mlruns")
    wandb: str | None = Field(None, description="Weights & Biases project; offline unless WANDB_API_KEY is set")
    progress: bool = Field(True, description="a live progress line where stderr is a terminal")


class StageSettings(TrainConfig):
    """The training settings of one stage, and how it is logged."""

    log: LogConfig = Field(LogConfig(), json_schema_extra=FREE)


class FeedConfig(Section):
    """How batches reach a worker."""

    read_in: Literal["worker", "ray_data"] = Field(
        "worker",
        description="worker: Ray Data streams the plan, windows are read at the edge; ray_data: Ray Data carries them",
    )
    ahead: int = Field(2, ge=0, description="mini-batches read ahead of the step")
    threads: int = Field(2, ge=1, description="threads that read a mini-batch's windows")
    cache: Literal["none", "host", "device"] = Field(
        "none", description="keep bags from their first use on in each worker's memory, or on its GPU"
    )
    cache_gb: float | None = Field(
        None,
        gt=0,
        description="largest size of a worker's cache; unset: half of its share of the memory free at the start",
    )
    verify: bool = Field(False, description="compare every row group of patches with its checksum as it is read")

    @model_validator(mode="after")
    def _cached_where_read(self) -> FeedConfig:
        if self.cache != "none" and self.read_in == "ray_data":
            raise ValueError(
                "feed.cache needs feed.read_in: worker; with ray_data windows are read in Ray's tasks, not in workers"
            )
        return self


class ClusterConfig(Section):
    """Where Ray runs."""

    address: str | None = Field(None, description="address of a running cluster; unset: RAY_ADDRESS, else a local one")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster; unset: cores, and always enough for Ray Data"
    )
    resize_seconds: float = Field(
        60, gt=0, description="how often Ray looks for room for more workers, where train.workers is a range"
    )
    start_seconds: float | None = Field(
        None,
        gt=0,
        description="how long a start of the workers may take before it is tried anew, three times; unset: 30 where "
        "train.workers is a range, else RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, or 60",
    )


class Config(Section):
    """A run, whole."""

    store: str | None = Field(None, json_schema_extra=FREE, description="the cohort store")
    run: str | None = Field(None, json_schema_extra=FREE, description="the run folder")
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, plans, masks, dropout and resampling")
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    window: WindowConfig = WindowConfig()
    mask: MaskConfig = MaskConfig()
    triplet: TripletConfig = TripletConfig()
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    genes: GenesConfig = GenesConfig()
    target: TargetConfig = TargetConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    method: MethodConfig = MethodConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    evaluate: EvaluateConfig = Field(EvaluateConfig(), json_schema_extra=FREE)
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), json_schema_extra=FREE)
    log: LogConfig = Field(LogConfig(), json_schema_extra=FREE)
    feed: FeedConfig = Field(FeedConfig(), json_schema_extra=FREE)
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=FREE)

    @model_validator(mode="after")
    def _something_is_masked(self) -> Config:
        if round(self.mask.ratio * self.window.length) < 1:
            raise ValueError("mask.ratio times window.length must round to at least 1, or nothing is masked")
        return self

    @model_validator(mode="after")
    def _kernel_is_centred(self) -> Config:
        if self.model.residual_kernel and self.model.residual_kernel % 2 == 0:
            raise ValueError("model.residual_kernel must be odd, or 0")
        return self

    @model_validator(mode="after")
    def _triplets_exist(self) -> Config:
        mined = self.objective.name == "gimp" and self.triplet.weight > 0
        balanced = self.batch.balance == "classes" and mined
        if balanced and (self.batch.classes < 2 or self.batch.cases_per_class < 2):
            raise ValueError(
                "batch.classes and batch.cases_per_class must be at least 2, or no mini-batch has a triplet "
                "(triplet.weight: 0 switches it off)"
            )
        return self

    def stage_train(self, stage: str) -> StageSettings:
        """The training settings of `genes`, `pretrain` or `finetune`: `train`, with what the stage says differently.

        Of a compared method, `finetune` is `train`, then its recipe, then `method.train`.
        """
        changed: dict[str, Any] = {}
        recipe = self.method.recipe if stage == "finetune" else None
        if recipe is not None:
            changed = {"stop_after": None} | recipe.training | self.method.train.model_dump(exclude_none=True)
        elif stage != "pretrain":
            section: StageTrainConfig = {"genes": self.genes.train, "finetune": self.finetune.train}[stage]
            changed = {"stop_after": None} | section.model_dump(exclude_none=True)
        return StageSettings(**(self.train.model_dump() | changed), log=self.log)
