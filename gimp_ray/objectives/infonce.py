"""Symmetric InfoNCE: each row of one side must be nearest to its own row of the other, among all rows of the batch.

van den Oord et al. 2018; for two modalities ConVIRT (Zhang et al. 2020) and CLIP (Radford et al. 2021). With a_i, b_i
of unit length and temperature t:

    l_i = -log( exp(a_i . b_i / t) / sum_j exp(a_i . b_j / t) ),   L = w mean_i l_i + (1 - w) mean_i l'_i

where l' has the sides exchanged. The loss is not a mean over cases: it depends on who is in the batch. With several
workers the rows of all of them are gathered first, with gradients (`gather_rows`), so that the loss and the step are
those of one worker with the whole batch. Left out: a temperature that is trained, and queues of earlier rows.

Shape suffixes: B batch of one worker, N rows compared, P width of the embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gimp_ray.objectives.gather import gather_workers


class InfoNCEResult(NamedTuple):
    """Scalars: the loss, and the share of rows nearest to their own of the other side (mean of both directions)."""

    loss: Tensor
    accuracy: Tensor


def infonce(a_NP: Tensor, b_NP: Tensor, temperature: float = 0.07, weight: float = 0.5) -> InfoNCEResult:
    """The loss over the rows given, whoever made them. In float32 at least, under autocast too.

    Args:
        a_NP, b_NP: (N, P) embeddings, any length; row i of both is one case.
        temperature: t.
        weight: w, of the direction from a to b; 0.5 is symmetric.

    Raises:
        ValueError: shapes that do not fit, no rows, a temperature that is not positive, a weight outside 0 to 1.
    """
    if a_NP.ndim != 2 or a_NP.shape != b_NP.shape or len(a_NP) == 0:
        raise ValueError(f"both sides must be (N >= 1, P): found {tuple(a_NP.shape)} and {tuple(b_NP.shape)}")
    if temperature <= 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature must be > 0 and weight from 0 to 1: found {temperature} and {weight}")
    with torch.autocast(a_NP.device.type, enabled=False):
        logits_NN = unit(a_NP) @ unit(b_NP).T / temperature
        own_N = torch.arange(len(logits_NN), device=logits_NN.device)
        loss = weight * F.cross_entropy(logits_NN, own_N) + (1 - weight) * F.cross_entropy(logits_NN.T, own_N)
        right = [(side.argmax(dim=1) == own_N).float().mean() for side in (logits_NN.detach(), logits_NN.detach().T)]
    return InfoNCEResult(loss, (right[0] + right[1]) / 2)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def gather_rows(counted_B: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all workers (`gather_workers`), without those that do not count.

    Args:
        counted_B: (B,) bool; False for the rows of a worker that has nothing left in an epoch and repeats a case, which
            would be its own false negative. None = all count.
        tensors: (B, ...) each.

    Raises:
        ValueError: `counted_B` is not (B,) bool, or the tensors differ in B.
    """
    if counted_B is None:
        return gather_workers(*tensors)
    if counted_B.dtype != torch.bool or counted_B.ndim != 1:
        raise ValueError(f"counted must be (B,) bool: found {tuple(counted_B.shape)} {counted_B.dtype}")
    # as numbers: not every backend gathers booleans
    counts_N, *rows = gather_workers(counted_B.to(torch.uint8), *tensors)
    return tuple(row[counts_N > 0] for row in rows)
