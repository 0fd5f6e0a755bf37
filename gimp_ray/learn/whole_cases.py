"""Whole cases for prediction: bag by bag where there are patches, in chunks of cases where there are genes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gimp_ray.config import FeedConfig
from gimp_ray.engine.protocol import Tensors
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.feed.windows import BagCache, each_bag
from gimp_ray.io.ahead import read_ahead
from gimp_ray.learn.gene_values import CHUNK, read_columns
from gimp_ray.learn.stage import in_chunks
from gimp_ray.store import CohortStore


def whole_cases(
    store: CohortStore,
    index: CohortIndex,
    cases: Sequence[int],
    needs: tuple[str, ...],
    feed: FeedConfig,
    device: torch.device,
    columns: NDArray[np.int64] | None = None,
    cache: BagCache | None = None,
) -> Iterator[tuple[list[str], Tensors]]:
    """Each of some cases once, as tensors on the device.

    Args:
        store: what the cases are in.
        index: its cases by number.
        cases: which of them, by number.
        needs: `patches`, `genes` or both.
        feed: threads, and how many bags are read ahead.
        device: where to.
        columns: places of the genes in the store; None for the store's order.
        cache: of bags.

    Yields:
        ids of cases, and their raw expression `genes` (B, G), their bag `patches` (1, N, E), or both; with patches one
        case at a time, which needs no padding.
    """

    def genes_of(ids: list[str]) -> Tensors:
        if "genes" not in needs:
            return {}
        return {"genes": torch.from_numpy(read_columns(store, ids, columns)).to(device)}

    if "patches" not in needs:
        for ids in in_chunks([str(index.case_ids[case]) for case in cases], CHUNK):
            yield ids, genes_of(ids)
        return
    bags = each_bag(store, index, cases, feed.threads, cache)
    for case, patches in read_ahead(bags, feed.ahead):
        ids = [str(index.case_ids[case])]
        yield ids, {"patches": torch.as_tensor(patches, device=device), **genes_of(ids)}
