"""The peers' way to feed whole bags: one float32 `.pt` file a slide, a map-style Dataset, torch's DataLoader.

CLAM's and TransMIL's datasets load the whole bag with `torch.load`; a window is then cut out of it. Left out: models.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class BagWindows(Dataset[tuple[Tensor, Tensor, int]]):
    """A window of every bag, at a place drawn anew each time, and which of its patches are masked.

    Args:
        files: a (N, E) float32 tensor each.
        labels: class of each file.
        length: L.
        ratio: share of masked patches.
    """

    def __init__(self, files: list[Path], labels: list[int], length: int, ratio: float) -> None:
        self.files, self.labels, self.length, self.ratio = files, labels, length, ratio

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        bag = torch.load(self.files[number], weights_only=True)
        if len(bag) < self.length:
            bag = bag.repeat(-(-self.length // len(bag)), 1)
        start = int(torch.randint(len(bag) - self.length + 1, ()))
        masked = torch.zeros(self.length, dtype=torch.bool)
        masked[torch.randperm(self.length)[: round(self.ratio * self.length)]] = True
        return bag[start : start + self.length], masked, self.labels[number]


def windows(
    files: list[Path], labels: list[int], length: int, size: int, workers: int, ratio: float
) -> Iterator[list[Tensor]]:
    """An epoch of mini-batches: patches (B, L, E) float32, masked (B, L) bool, labels (B,)."""
    loader = DataLoader(
        BagWindows(files, labels, length, ratio),
        batch_size=size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader
