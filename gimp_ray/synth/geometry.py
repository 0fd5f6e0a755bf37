"""Where the patches of a synthetic slide lie: tissue blobs with holes on a grid, tumour as connected regions in them.

Everything smooth comes from one tool, white noise blurred in the frequency domain (`smooth_fields`). Its edges wrap
around; tissue is kept away from the edges by a falling envelope, so the wrap does not show. Left out: several tissue
sections on one slide, and what a patch looks like (`synth_patches.py`, `synth_tiles.py`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TISSUE_SHARE = 0.45  # of the scanned rectangle; real slides are about half glass
HOLE_SIGMA = 1.5  # grid steps; vessels, alveoli and tears
TUMOUR_SIGMA = 2.0  # grid steps; how ragged a tumour's edge is


@dataclass(frozen=True)
class SlideLayout:
    """Geometry of one slide, patches in CLAM's scan order (row by row, left to right)."""

    shape: tuple[int, int]
    """rows and columns of the scanned grid"""
    cells: NDArray[np.int64]
    """(N,) flat grid cell of every patch, ascending"""
    coords: NDArray[np.int64]
    """(N, 2) top left corner (x, y) of every patch, level-0 pixels"""
    tumour: NDArray[np.bool_]
    """(N,)"""
    level_dim: tuple[int, int]
    """width and height of level 0, pixels"""


def smooth_fields(rng: np.random.Generator, count: int, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Gaussian random fields, each with mean 0 and standard deviation 1 over the grid.

    Args:
        rng: source of the noise.
        count: how many independent fields.
        shape: rows and columns of the grid.
        sigma: width of the blur in grid steps.

    Returns:
        (count, rows, columns) float32.
    """
    rows, columns = shape
    frequency = np.fft.fftfreq(rows)[:, None] ** 2 + np.fft.rfftfreq(columns)[None, :] ** 2
    blur = np.exp(-2 * (np.pi * sigma) ** 2 * frequency)
    fields = np.empty((count, rows, columns), np.float32)
    for index in range(count):
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * blur, s=shape)
        field -= field.mean()
        fields[index] = field / max(float(field.std()), 1e-9)
    return fields


def layout_slide(rng: np.random.Generator, n_patches: int, n_tumour: int, step: int) -> SlideLayout:
    """Lay `n_patches` patches on a grid of `step` level-0 pixels, `n_tumour` of them tumour in connected regions."""
    mask = _tissue_mask(rng, n_patches)
    tumour = _grow_tumour(rng, mask, n_tumour)
    cells = np.flatnonzero(mask)
    rows, columns = np.divmod(cells, mask.shape[1])
    # the first patch of a real slide does not lie at the origin, nor on a multiple of the step
    offset_x, offset_y = (int(value) for value in rng.integers(0, 8 * step, 2))
    coords = np.stack([columns * step + offset_x, rows * step + offset_y], axis=1).astype(np.int64)
    level_dim = (mask.shape[1] * step + 2 * offset_x, mask.shape[0] * step + 2 * offset_y)
    return SlideLayout(mask.shape, cells, coords, tumour.ravel()[cells], level_dim)


def _tissue_mask(rng: np.random.Generator, n_patches: int) -> NDArray[np.bool_]:
    area = n_patches / TISSUE_SHARE
    rows = max(1, round((area / rng.uniform(0.7, 1.6)) ** 0.5))
    columns = max(1, -(-int(np.ceil(area)) // rows))
    outline = smooth_fields(rng, 1, (rows, columns), sigma=(rows * columns) ** 0.5 / 8)[0]
    holes = smooth_fields(rng, 1, (rows, columns), sigma=HOLE_SIGMA)[0]
    radius2 = np.linspace(-1, 1, rows)[:, None] ** 2 + np.linspace(-1, 1, columns)[None, :] ** 2
    score = outline + 0.4 * holes - 2.5 * radius2
    # the best n cells rather than a threshold: the slide has exactly the size that was drawn
    mask = np.zeros(rows * columns, bool)
    mask[np.argpartition(-score.ravel(), n_patches - 1)[:n_patches]] = True
    return mask.reshape(rows, columns)


def _grow_tumour(rng: np.random.Generator, mask: NDArray[np.bool_], n_tumour: int) -> NDArray[np.bool_]:
    tumour = np.zeros_like(mask)
    ragged = smooth_fields(rng, 1, mask.shape, TUMOUR_SIGMA)[0]
    regions = 1 if n_tumour < 20 else int(rng.integers(1, 4))
    left = n_tumour
    for region in range(regions):
        size = -(-left // (regions - region))
        left -= _grow_region(rng, mask, tumour, ragged, size)
    while left > 0:  # the piece of tissue was smaller than the region: go on elsewhere
        left -= _grow_region(rng, mask, tumour, ragged, left)
    return tumour


def _grow_region(
    rng: np.random.Generator,
    mask: NDArray[np.bool_],
    tumour: NDArray[np.bool_],
    ragged: NDArray[np.float32],
    size: int,
) -> int:
    """Add at most `size` connected cells to `tumour` in place; returns how many were added."""
    free = np.flatnonzero(mask & ~tumour)
    if size <= 0 or free.size == 0:
        return 0
    rows, columns = mask.shape
    start = divmod(int(rng.choice(free)), columns)
    radius = max(1.0, (size / np.pi) ** 0.5)
    queue: list[tuple[float, int, int]] = [(0.0, *start)]
    seen = {start}
    added = 0
    while queue and added < size:
        _, row, column = heapq.heappop(queue)
        tumour[row, column] = True
        added += 1
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < rows and 0 <= cell[1] < columns
            if inside and cell not in seen and mask[cell] and not tumour[cell]:
                seen.add(cell)
                distance = ((cell[0] - start[0]) ** 2 + (cell[1] - start[1]) ** 2) ** 0.5 / radius
                heapq.heappush(queue, (distance + 0.4 * float(ragged[cell]), *cell))
    return added
