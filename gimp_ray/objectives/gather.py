"""The mini-batches of all workers as one batch, with gradients: what a loss over pairs of cases needs to see them all.

Left out: what is done with it, and gathering of anything but rows of equal shape.

Shape suffixes: B batch of one worker, N = workers x B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_workers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all workers, in the order of their ranks; the tensors themselves where there is one worker.

    Every worker must compute the same loss from what it gets, and gradients must be averaged over workers afterwards,
    as DistributedDataParallel does. A worker's rows then get the gradient of the loss on the whole batch times the
    number of workers, and the average is the gradient of one worker that holds the whole batch. The backward pass
    needs no communication of its own.

    Args:
        tensors: (B, ...) each, of any types; the same shapes on every worker.

    Returns:
        (N, ...) each.

    Raises:
        ValueError: the tensors differ in B, or the workers do.
    """
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"tensors of one batch must have as many rows: found {[len(tensor) for tensor in tensors]}")
    if not tensors or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    _check_equal(len(tensors[0]), tensors[0].device)
    return tuple(_Gather.apply(tensor) for tensor in tensors)


def _check_equal(rows: int, device: torch.device) -> None:
    """Unequal batches would hang or mix up the rows, so all workers refuse them together."""
    mine = torch.tensor([rows], device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    found = torch.cat(sizes).tolist()
    if len(set(found)) > 1:
        raise ValueError(f"all workers must have mini-batches of one size: found {found}")


class _Gather(torch.autograd.Function):
    """all_gather along the first axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # every worker has the same loss, so the sum of what they would send is the own part as often as they are
        world = dist.get_world_size()
        return grads[0].chunk(world)[dist.get_rank()] * world
