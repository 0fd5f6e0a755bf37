"""GiMP (Jin et al., MICCAI 2023): its gene encoder's training, its pre-training and its fine-tuning.

Stage `genes` trains GroupMSA on genes and labels (section 2.1). Stage `pretrain` learns masked patches and gene-induced
triplets on windows, L_pre = w_rec L_rec + w_tri L_tri, with the gene encoder at rest (section 2.3). Stage `finetune`
trains an MLP head on CLS_pat over whole bags (section 3).

Shape suffixes: B batch, L patches, M masked patches, E patch embedding width, D hidden width, G genes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.methods.base import Loss, Method, Phase, Pretrain, Sizes, Supervise, Target, Tensors, Window, own
from gimp_ray.methods.sections import (
    BatchConfig,
    FinetuneConfig,
    GenesConfig,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    TripletConfig,
    WindowConfig,
)
from gimp_ray.nn.aggregator import KeepsFrozen, MLPHead, PatchAggregator
from gimp_ray.nn.genes import gene_network
from gimp_ray.nn.losses import TripletResult, gather_workers, masked_patch_loss, patches_at, triplet_loss


class WindowedConfig(Config):
    """The config of GiMP and of the pre-trainings it is compared with."""

    trained_by: ClassVar[Mapping[str, str]] = {"genes": "genes", "finetune": "finetune"}

    window: WindowConfig = WindowConfig()
    mask: MaskConfig = MaskConfig()
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    genes: GenesConfig = GenesConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    @model_validator(mode="after")
    def _something_is_masked(self) -> WindowedConfig:
        if round(self.mask.ratio * self.window.length) < 1:
            raise ValueError("mask.ratio times window.length must round to at least 1, or nothing is masked")
        return self


class GimpConfig(WindowedConfig):
    """The config of GiMP."""

    triplet: TripletConfig = TripletConfig()
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _triplets_exist(self) -> GimpConfig:
        balanced = self.batch.balance == "classes" and self.triplet.weight > 0
        if balanced and (self.batch.classes < 2 or self.batch.cases_per_class < 2):
            raise ValueError(
                "batch.classes and batch.cases_per_class must be at least 2, or no mini-batch has a triplet "
                "(triplet.weight: 0 switches it off)"
            )
        return self


class GiMPOutput(NamedTuple):
    """What pre-training needs of a forward pass."""

    cls_img: Tensor  # (B, D)
    cls_ge: Tensor | None  # (B, D_ge), None without a gene side
    cls_pat: Tensor  # (B, D + D_ge): CLS_img and CLS_ge side by side; CLS_img alone without a gene side
    reconstruction: Tensor | None  # (B, M, E) at the masked positions, None when nothing was masked


class GiMPClassifierOutput(NamedTuple):
    """What fine-tuning, evaluation and embedding need of a forward pass."""

    logits: Tensor  # (B, C)
    cls_img: Tensor
    cls_ge: Tensor | None
    cls_pat: Tensor


def _gene_side(gene_encoder: nn.Module | None, genes: Tensor | None, cls_ge: Tensor | None) -> Tensor | None:
    """CLS_ge: as given, or encoded now, or None where there is no gene side."""
    if cls_ge is not None:
        if genes is not None:
            raise ValueError("give genes or a precomputed cls_ge, not both")
        return cls_ge
    if gene_encoder is None:
        if genes is not None:
            raise ValueError("genes were given to a model without a gene encoder")
        return None
    if genes is None:
        raise ValueError("the model has a gene encoder: give genes, or a precomputed cls_ge")
    return gene_encoder(genes)


def _join(cls_img_BD: Tensor, cls_ge_BD: Tensor | None) -> Tensor:
    if cls_ge_BD is None:
        return cls_img_BD
    return torch.cat([cls_img_BD, cls_ge_BD.to(cls_img_BD.dtype)], dim=-1)


class GiMP(KeepsFrozen):
    """The pre-training model: aggregator, (frozen) gene encoder, mask token, decoder LayerNorm + Linear D -> E.

    GiMP, sections 2.2 and 2.3. Freeze the gene encoder with `freeze` first; it then stays in evaluation mode through
    any `train()`. Pre-training without a gene side (image-only ablation) has `gene_encoder=None`.

    Args:
        aggregator: image side; its `dim` is D.
        gene_encoder: raw expression -> CLS_ge, or None.
        patch_dim: E, what is reconstructed.
    """

    def __init__(self, aggregator: PatchAggregator, gene_encoder: nn.Module | None, patch_dim: int) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.gene_encoder = gene_encoder
        self.mask_token = nn.Parameter(torch.randn(aggregator.dim) * 0.02)
        self.decoder = nn.Sequential(nn.LayerNorm(aggregator.dim), nn.Linear(aggregator.dim, patch_dim))

    def forward(
        self,
        patches_BLE: Tensor,
        genes: Tensor | None = None,
        *,
        cls_ge: Tensor | None = None,
        valid: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> GiMPOutput:
        """Encode both sides; reconstruct the masked patches.

        Args:
            patches_BLE: (B, L, E) patch embeddings.
            genes: (B, G) expression as stored.
            cls_ge: (B, D_ge) computed before, in place of `genes`.
            valid: (B, L) bool, True = real patch.
            masked: (B, M) int64 masked positions, distinct in each sample.

        Raises:
            ValueError: a gene encoder without genes, genes without an encoder, or genes and `cls_ge` together.
        """
        cls_ge_BD = _gene_side(self.gene_encoder, genes, cls_ge)
        reconstruction_BME = None
        if masked is None:
            cls_img_BD, _ = self.aggregator(patches_BLE, valid, tokens=False)
        else:
            cls_img_BD, tokens_BMD = self.aggregator.masked_tokens(patches_BLE, masked, self.mask_token, valid)
            reconstruction_BME = self.decoder(tokens_BMD)
        return GiMPOutput(cls_img_BD, cls_ge_BD, _join(cls_img_BD, cls_ge_BD), reconstruction_BME)


class GiMPClassifier(KeepsFrozen):
    """The fine-tuned model: P = softmax(MLP(CLS_pat)) over whole bags. It has no parameter that a step leaves unused.

    Args:
        aggregator: image side, usually from pre-training.
        gene_encoder: gene side, frozen or not; None for images alone or where `cls_ge` is always given.
        num_classes: C.
        dim: width of CLS_img, and of CLS_ge where there is a gene encoder.
        hidden, dropout: of the `MLPHead`.
        gene_dim: width of CLS_ge where it is not `dim`, or where there is no encoder and `cls_ge` is given.
    """

    def __init__(
        self,
        aggregator: PatchAggregator,
        gene_encoder: nn.Module | None,
        num_classes: int,
        dim: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.25,
        gene_dim: int | None = None,
    ) -> None:
        super().__init__()
        if gene_dim is None:
            gene_dim = 0 if gene_encoder is None else dim
        self.aggregator = aggregator
        self.gene_encoder = gene_encoder
        self.head = MLPHead(dim + gene_dim, num_classes, hidden, dropout)

    def forward(
        self,
        patches_BLE: Tensor,
        genes: Tensor | None = None,
        *,
        cls_ge: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> GiMPClassifierOutput:
        """Classify. Arguments and errors as in `GiMP.forward`; logits are (B, C)."""
        cls_ge_BD = _gene_side(self.gene_encoder, genes, cls_ge)
        cls_img_BD, _ = self.aggregator(patches_BLE, valid, tokens=False)
        cls_pat_BF = _join(cls_img_BD, cls_ge_BD)
        return GiMPClassifierOutput(self.head(cls_pat_BF), cls_img_BD, cls_ge_BD, cls_pat_BF)


class GeneClassifier(nn.Module):
    """A gene encoder's network under a linear head, for its supervised training."""

    def __init__(self, encoder: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, MLPHead(dim, classes, hidden=())

    def forward(self, genes_BG: Tensor) -> Tensor:
        """(B, G) scaled expression -> (B, C)."""
        logits_BC: Tensor = self.head(self.encoder(genes_BG))
        return logits_BC


def aggregator_of(config: Any, patch_dim: int) -> PatchAggregator:
    """The patch aggregator of section 2.2 for embeddings of width `patch_dim`."""
    model = config.model
    return PatchAggregator(
        patch_dim,
        model.dim,
        heads=model.heads,
        dim_head=model.dim_head,
        num_landmarks=model.landmarks,
        pinv_iterations=model.pinv_iterations,
        residual_kernel=model.residual_kernel,
        layers=model.layers,
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
    )


def gene_card(config: Any) -> dict[str, Any]:
    """What rebuilds the gene encoder's network, beside its genes."""
    genes, keys = config.genes, ("encoder", "fragments", "groups", "heads", "ff_mult", "dropout", "gene_dropout")
    return {"dim": config.model.dim} | {key: getattr(genes, key) for key in keys}


def pretrainable(config: Any, sizes: Sizes) -> GiMP:
    """The pre-training model; of it the two sides alone are what embeds cases."""
    return GiMP(aggregator_of(config, sizes.patch_dim), sizes.encoder, sizes.patch_dim)


def _wants_genes(config: Any, has_genes: bool) -> bool:
    return has_genes and config.genes.encoder != "none"


def _smoothed(target: Target, logits_BC: Tensor, batch: Tensors, config: Any) -> Loss:
    accuracy = (logits_BC.argmax(dim=-1) == batch["target"]).float().mean()
    loss = F.cross_entropy(logits_BC, batch["target"], label_smoothing=config.genes.label_smoothing)
    return loss, {"accuracy": accuracy}


def _gene_classifier(config: Any, sizes: Sizes) -> GeneClassifier:
    dim = config.model.dim
    return GeneClassifier(
        gene_network(config.genes.encoder, sizes.num_genes, dim, config.genes, sizes.sets), dim, sizes.outputs
    )


def _pretraining_starts(config: Any, has_genes: bool) -> dict[str, str]:
    if not config.objective.genes or not _wants_genes(config, has_genes):
        return {}
    return {"genes.checkpoint": config.genes.checkpoint or own("genes")}


def _read(config: Any, window: Window) -> dict[str, Any]:
    return {
        "masked": window.masked(config.mask.ratio),
        # a rank that has nothing left repeats a case, which is no positive or negative of another rank's
        "label": window.label if window.counted else np.full_like(window.label, -1),
        "patient": window.patient,
    }


def triplets(config: Any, cls_pat_BF: Tensor, batch: Tensors) -> TripletResult:
    """L_tri of a mini-batch with `label` (-1 where it must not be known) and `patient`, or of those of all workers."""
    triplet = config.triplet
    rows: tuple[Tensor, ...] = (cls_pat_BF, batch["label"], batch["patient"])
    if triplet.scope == "global":
        rows = gather_workers(*rows)
    if config.split.transductive or triplet.scope == "global":
        known = rows[1] >= 0
        rows = tuple(values[known] for values in rows)
    return triplet_loss(
        rows[0],
        rows[1],
        margin=triplet.margin,
        mining=triplet.mining,
        normalize=triplet.normalize,
        patients_B=rows[2],
        average=triplet.average,
    )


def _loss(config: Any, model: nn.Module, batch: Tensors) -> Loss:
    patches_BLE, masked_BM = batch["patches"], batch["masked"]
    out: GiMPOutput = model(patches_BLE, cls_ge=batch.get("cls_ge"), masked=masked_BM)
    assert out.reconstruction is not None
    reconstruction = masked_patch_loss(out.reconstruction, patches_at(patches_BLE, masked_BM), config.mask.reduction)
    mined = triplets(config, out.cls_pat, batch)
    return config.mask.weight * reconstruction + config.triplet.weight * mined.loss, {
        "loss_rec": reconstruction,
        "loss_tri": mined.loss,
        "active_triplets": mined.active_share,
        "distance_positive": mined.mean_positive_distance,
        "distance_negative": mined.mean_negative_distance,
    }


def _finetuning_starts(config: Any, has_genes: bool) -> dict[str, str]:
    init, files = config.finetune.init, {}
    if init != "scratch":
        files["finetune.init"] = own("pretrain") if init == "pretrain" else init
    images_alone = isinstance(config, GimpConfig) and not config.objective.genes
    if (init == "scratch" or images_alone) and _wants_genes(config, has_genes):
        files["genes.checkpoint"] = config.genes.checkpoint or own("genes")
    return files


def _classifier(config: Any, sizes: Sizes) -> GiMPClassifier:
    return GiMPClassifier(
        aggregator_of(config, sizes.patch_dim),
        sizes.encoder,
        sizes.outputs,
        config.model.dim,
        hidden=(config.finetune.hidden,),
        dropout=config.finetune.dropout,
        gene_dim=sizes.gene_dim,
    )


def answer(network: nn.Module, batch: Tensors) -> Any:
    """The network's output for whole bags, with genes or their CLS_ge where it has a gene side."""
    return network(batch["patches"], batch.get("genes"), cls_ge=batch.get("cls_ge"), valid=batch.get("valid"))


GENES = Supervise(
    name="genes",
    network=_gene_classifier,
    needs=("genes",),
    reads=("genes", "model.dim"),
    starts=lambda config, has_genes: {"genes.sets": config.genes.sets} if config.genes.sets else {},
    phases=(Phase(_smoothed),),
    fragments=lambda config: config.genes.fragments,
    label=True,
    batch_size=lambda config: config.genes.batch_size,
    select=lambda config: "loss",
    l1=lambda config: 0.0,
    mixup=lambda config: config.genes.mixup,
    gene_card=gene_card,
)

FINETUNE = Supervise(
    network=_classifier,
    needs=("patches",),
    reads=("finetune", "model", "target", "objective.genes", "genes.encoder"),
    starts=_finetuning_starts,
    batch_size=lambda config: config.finetune.batch_size,
    l1=lambda config: 0.0,
    answer=answer,
    frozen=lambda config: config.finetune.freeze_genes,
    takes=("aggregator",),
    inherited=("model",),
    head=lambda config, width, outputs: MLPHead(width, outputs, hidden=(config.finetune.hidden,)),
)

METHOD = Method(
    title="GiMP",
    paper="Jin et al., MICCAI 2023",
    config=GimpConfig,
    stages=(
        GENES,
        Pretrain(
            network=pretrainable,
            embed=pretrainable,
            answer=answer,
            read=_read,
            loss=_loss,
            needs=("patches",),
            reads=(
                "window",
                "mask",
                "triplet",
                "batch",
                "model",
                "objective.genes",
                "genes.encoder",
                "split.transductive",
            ),
            starts=_pretraining_starts,
            labels=lambda config: config.triplet.weight > 0,
        ),
        FINETUNE,
    ),
)
