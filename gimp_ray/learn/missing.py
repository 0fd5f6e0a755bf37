"""What a fine-tuned GiMP says where a modality is missing at test: its side of CLS_pat is the mean over training cases.

CLS_pat is CLS_img and CLS_ge side by side, so nothing is read again: the vectors of `embeddings.parquet` go through the
saved head once more. The answer with one modality does not depend on the other's values. Left out: models trained to do
without a modality.

Shape suffixes: N cases, F width of CLS_pat, P predictions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.learn.targets import Target
from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.runs.model import part, read_model

Modality = Literal["images", "genes"]


def without(
    modality: Modality, cls_pat_NF: NDArray[np.float32], training_N: NDArray[np.bool_], dim: int
) -> NDArray[np.float32]:
    """(N, F) CLS_pat with the side of a modality replaced by its mean over the training cases.

    Args:
        modality: what is missing.
        cls_pat_NF: CLS_img, then CLS_ge.
        training_N: bool, True = the case is of the training part.
        dim: width of CLS_img.

    Raises:
        InputError: there is no training case, or no gene side.
    """
    if not training_N.any() or cls_pat_NF.shape[1] <= dim:
        raise InputError(
            "a missing modality needs training cases and a model with both sides",
            expected=f"training cases, and CLS_pat wider than {dim}",
            found=f"{int(training_N.sum())} training cases, width {cls_pat_NF.shape[1]}",
        )
    side = slice(0, dim) if modality == "images" else slice(dim, None)
    changed_NF = cls_pat_NF.copy()
    changed_NF[:, side] = cls_pat_NF[training_N, side].mean(axis=0, dtype=np.float64)
    return changed_NF


@torch.no_grad()
def predict_from_cls(
    model: Path, card: dict[str, Any], target: Target, cls_pat_NF: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(N, P) predictions of a fine-tuned model's head from CLS_pat.

    Args:
        model: the fine-tuned model's file.
        card: its card.
        target: what it predicts.
        cls_pat_NF: CLS_img, then CLS_ge.
    """
    head = MLPHead(cls_pat_NF.shape[1], len(target.outputs), hidden=card["hidden"])
    head.load_state_dict(part(read_model(model)[0], "head"))
    logits_NO = head.eval()(torch.from_numpy(cls_pat_NF))
    predictions: NDArray[np.float64] = target.predict(logits_NO).numpy()
    return predictions


def has_both_sides(card: dict[str, Any]) -> bool:
    """Whether a model's CLS_pat has an image side and a gene side."""
    return card.get("genes") is not None and "hidden" in card and "model" in card
