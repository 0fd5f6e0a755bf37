"""The compared methods on patches alone: ABMIL, DSMIL, CLAM with one or several branches, TransMIL, mean pool + MLP.

DSMIL and CLAM have losses of their own, without which parts of them would learn nothing. Left out: the equations, which
are with each network in `gimp_ray.methods`.

Shape suffixes: B batch, C classes, O outputs, P predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from gimp_ray.engine.protocol import Tensors
from gimp_ray.learn.methods.base import Method, Phase
from gimp_ray.learn.targets import Target
from gimp_ray.methods.abmil import ABMIL
from gimp_ray.methods.clam import CLAM, clam_loss
from gimp_ray.methods.dsmil import DSMIL, dsmil_loss
from gimp_ray.methods.mean_pool import MeanPoolMLP
from gimp_ray.methods.transmil import TransMIL


def dsmil_objective(
    target: Target, out: Any, batch: Tensors, kind: Literal["bce", "ce"] = "bce"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half on the bag, half on the highest patch of each class or label.

    Args:
        kind: of a class: "bce" as published, or "ce" (`dsmil_loss`). Labels are binary each, so theirs is the target's.
    """
    if target.kind == "class":
        return dsmil_loss(out.logits, out.max_logits, batch["target"], kind), _accuracy(out.logits, batch)
    bag, parts = target.loss(out.logits, batch)
    return (bag + target.loss(out.max_logits, batch)[0]) / 2, parts


def dsmil_prediction(target: Target, out: Any) -> Tensor:
    """Sigmoids of the bag logits, (B, P). Those of classes are divided by their sum, which keeps the arg max: a table
    has probabilities of classes that exclude each other.
    """
    if target.kind != "class":
        return target.predict(out.logits)
    # the softmax of log sigmoid is the sigmoid over the sum of them
    return target.predict(F.logsigmoid(out.logits.double()))


def clam_objective(
    target: Target,
    out: Any,
    batch: Tensors,
    bag_weight: float = 0.7,
    subtyping: bool = True,
    kind: Literal["svm", "ce"] = "svm",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the bag and the clustering of its most and least attended patches; arguments of `clam_loss`."""
    found = clam_loss(
        out.logits, out.top_logits, out.bottom_logits, out.picked, batch["target"], bag_weight, subtyping, kind
    )
    return found.loss, {"loss_bag": found.bag, "loss_instance": found.instance} | _accuracy(out.logits, batch)


def _accuracy(logits_BC: Tensor, batch: Tensors) -> dict[str, Tensor]:
    return {"accuracy": (logits_BC.argmax(dim=-1) == batch["target"]).float().mean()}


_CLAM_PHASES = (Phase(loss=clam_objective),)
_SIZES = ("patch_dim", "outputs")

IMAGE_METHODS: Mapping[str, Method] = {
    "abmil": Method(ABMIL, _SIZES),
    "dsmil": Method(DSMIL, _SIZES, (Phase(dsmil_objective, dsmil_prediction),)),
    "clam_sb": Method(partial(CLAM, multi_branch=False), _SIZES, _CLAM_PHASES),
    "clam_mb": Method(partial(CLAM, multi_branch=True), _SIZES, _CLAM_PHASES),
    "transmil": Method(TransMIL, _SIZES),
    "mean_pool": Method(MeanPoolMLP, _SIZES),
}
