"""What every compared supervised method needs, and how it is trained by default: plain data, no torch.

The config lays a recipe between `train` and `method.train`, the tasks ask what a method reads, tables ask for its title
and paper. The numbers are the authors' where they published some; what was adapted stands in docs/methods.md and in the
docstring of each network. Left out: the networks and losses (`gimp_ray.learn.methods`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

IMAGE, GENES, JOINT = ("patches",), ("genes",), ("patches", "genes")
ALL_KINDS = ("class", "labels", "survival")


@dataclass(frozen=True)
class Recipe:
    """A method as a run sees it.

    Attributes:
        title: its name in tables.
        paper: where it was published; empty for a plain reference of this project.
        needs: modalities it reads: `patches`, `genes`.
        epochs, lr, weight_decay, optimizer, betas, lookahead, schedule, warmup, clip_norm, accumulate, patience,
            min_epochs: keys of `train`.
        l1: see `method.l1`.
        batch_size: cases in a worker's mini-batch.
        kinds: kinds of target it can learn.
        why_not: why it cannot learn the others.
        sets: whether it needs gene sets (`genes.sets`).
    """

    title: str
    paper: str
    needs: tuple[str, ...]
    epochs: int
    lr: float
    weight_decay: float = 1e-5
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    lookahead: int = 0
    schedule: str = "constant"
    warmup: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    patience: int = 0
    min_epochs: int = 0
    l1: float = 0.0
    batch_size: int = 1
    kinds: tuple[str, ...] = ALL_KINDS
    why_not: str = ""
    sets: bool = False

    @property
    def training(self) -> dict[str, Any]:
        """Its keys of `train`."""
        return {key: getattr(self, key) for key in _TRAINING}


_TRAINING = (
    "epochs",
    "lr",
    "weight_decay",
    "optimizer",
    "betas",
    "lookahead",
    "schedule",
    "warmup",
    "clip_norm",
    "accumulate",
    "patience",
    "min_epochs",
)


def _clam(title: str) -> Recipe:
    """Either CLAM."""
    return Recipe(
        title,
        "Lu et al., Nature Biomedical Engineering 2021",
        IMAGE,
        epochs=200,
        lr=2e-4,
        patience=20,
        min_epochs=50,
        kinds=("class",),
        why_not="its clustering of patches needs the one class that a case has",
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "abmil": Recipe("ABMIL", "Ilse, Tomczak & Welling, ICML 2018", IMAGE, epochs=20, lr=1e-4, weight_decay=1e-4),
        "dsmil": Recipe(
            "DSMIL",
            "Li, Li & Eliceiri, CVPR 2021",
            IMAGE,
            epochs=50,
            lr=1e-4,
            weight_decay=1e-3,
            betas=(0.5, 0.9),
            schedule="cosine",
            patience=10,
            kinds=("class", "labels"),
            why_not="its instance stream scores patches for a class each, which time bins and risks are not",
        ),
        "clam_sb": _clam("CLAM-SB"),
        "clam_mb": _clam("CLAM-MB"),
        "transmil": Recipe(
            "TransMIL",
            "Shao et al., NeurIPS 2021",
            IMAGE,
            epochs=200,
            lr=2e-4,
            optimizer="radam",
            lookahead=6,
            accumulate=2,
            patience=10,
        ),
        "mean_pool": Recipe("Mean pool + MLP", "SiMLP, arXiv 2502.20823", IMAGE, epochs=50, lr=1e-4),
        "logistic": Recipe("Linear on genes", "", GENES, epochs=100, lr=1e-3, weight_decay=1e-3, batch_size=32),
        "mlp": Recipe("MLP", "", GENES, epochs=50, lr=2e-4, batch_size=32),
        "snn": Recipe(
            "SNN", "Klambauer et al., NeurIPS 2017, as in PORPOISE", GENES, epochs=20, lr=2e-4, batch_size=32
        ),
        "group_msa": Recipe(
            "GroupMSA",
            "Jin et al., MICCAI 2023",
            GENES,
            epochs=20,
            lr=3e-4,
            weight_decay=1e-2,
            optimizer="adamw",
            schedule="cosine",
            warmup=0.05,
            clip_norm=1.0,
            batch_size=32,
        ),
        "porpoise": Recipe(
            "PORPOISE", "Chen et al., Cancer Cell 2022", JOINT, epochs=20, lr=2e-4, accumulate=32, l1=1e-5
        ),
        "pathomic": Recipe(
            "Pathomic Fusion",
            "Chen et al., IEEE TMI 2020",
            JOINT,
            epochs=60,
            lr=5e-4,
            weight_decay=0.0,
            betas=(0.5, 0.999),
            schedule="linear",
            accumulate=32,
            l1=3e-4,
        ),
        "mcat": Recipe("MCAT", "Chen et al., ICCV 2021", JOINT, epochs=20, lr=2e-4, accumulate=32, sets=True),
        "concat": Recipe(
            "concat(ABMIL, SNN)", "baseline of Chen et al., ICCV 2021", JOINT, epochs=20, lr=2e-4, accumulate=32
        ),
        "late_fusion": Recipe("Late fusion (ABMIL, SNN)", "", JOINT, epochs=20, lr=2e-4),
    }
)
