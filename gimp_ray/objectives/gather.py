"""The mini-batches of all workers as one batch, with gradients: what a loss over pairs of cases needs to see them all.

Left out: what is done with it.

Shape suffixes: B batch of one worker, N rows of all workers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_workers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all workers, in the order of their ranks; the tensors themselves where there is one worker.

    Every worker must compute a loss from what it gets, all of them the same up to a factor each, and gradients must be
    averaged over workers afterwards, as DistributedDataParallel does. With factors whose mean is 1 the average is the
    gradient of one worker that holds the whole batch.

    Args:
        tensors: (B, ...) each, of any types; B may differ between workers, all else is the same.

    Returns:
        (N, ...) each.

    Raises:
        ValueError: the tensors differ in B.
    """
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"tensors of one batch must have as many rows: found {[len(tensor) for tensor in tensors]}")
    if not tensors or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    rows = _rows_of_all(len(tensors[0]), tensors[0].device)
    return tuple(_Gather.apply(tensor, rows) for tensor in tensors)


def _rows_of_all(rows: int, device: torch.device) -> list[int]:
    mine = torch.tensor([rows], device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    found: list[int] = torch.cat(sizes).tolist()
    return found


class _Gather(torch.autograd.Function):
    """all_gather along the first axis; shorter ones are padded on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = x.new_zeros((max(rows), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # what all workers' losses send to this worker's rows
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.rows)[dist.get_rank()], None
