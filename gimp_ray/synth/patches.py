"""The patches of a synthetic slide: where they lie, and what each looks like to an encoder.

Tissue is blobs with holes on a grid, tumour is connected regions in it; both come from white noise blurred in the
frequency domain (`smooth_fields`), whose edges wrap around, so tissue is kept away from them by a falling envelope.

Generated embeddings (`GeneratedPatches`):

    x = relu(tissue type + [tumour: signal * class] + site + slide + smooth in space + noise - threshold)

A tissue type is a fixed direction; the class is a second, weaker one that only tumour patches carry. Site and slide
shifts are the same for all patches of a slide: averaging a bag leaves them whole while it thins the class by the tumour
fraction, which is what keeps a mean-pool classifier from the ceiling. About half of the values are zero, as in pooled
ReLU features.

Real tiles (`BankPatches`): a bank holds augmented copies of few originals (a group), and tiles of one group must never
be on both sides of a split. Cases are dealt to five split groups, stratified by class, and every group of tiles belongs
to one of them. Where the bank has groups enough, every case has its groups to itself, and any split by case is safe;
otherwise only splits that keep split groups together are: those of `kfold_rows`, written as `splits.csv`. Neighbouring
patches come from one group, so that a slide is smooth in space.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.synth.options import SynthOptions

TISSUE_SHARE = 0.45  # of the scanned rectangle; real slides are about half glass
HOLE_SIGMA = 1.5  # grid steps; vessels, alveoli and tears
TUMOUR_SIGMA = 2.0  # grid steps; how ragged a tumour's edge is

NORMAL_TYPES = 5  # stroma, alveoli, lymphocytes, necrosis, blood: names do not matter, their number does
TUMOUR_TYPE = NORMAL_TYPES
SMOOTH_COMPONENTS = 8
TYPE_SIGMA, SMOOTH_SIGMA = 5.0, 3.0  # grid steps
TYPE_SPREAD, SITE_SPREAD, SLIDE_SPREAD, SMOOTH_SPREAD, NOISE_SPREAD = 0.6, 0.2, 0.25, 0.15, 0.4
THRESHOLD = 0.05
ROWS_AT_ONCE = 4096  # bounds the memory of a slide of any size

FOLDS = 5
GROUPS_A_CASE = 8  # originals behind one case's tumour, and behind its normal tissue
NORMAL_TISSUE = "normal"
GROUP_SIGMA = 2.5  # grid steps; how far one original reaches

# embeddings (<= ROWS_AT_ONCE, D) in scan order, made as they are read; tissue type (the bank's code with a tile bank)
# and tile group (-1 without a bank) of every patch
Painted = tuple[Iterator[NDArray[np.float32]], NDArray[np.int8], NDArray[np.int32]]


@dataclass(frozen=True)
class Case:
    """One patient before anything is written; `clear` is whether the tumour patches show the class."""

    index: int
    case_id: str
    label: int
    site: int
    clear: bool
    tumour_fraction: float
    slide_sizes: tuple[int, ...]
    age: int
    survival_months: float
    censorship: int

    @property
    def slide_ids(self) -> list[str]:
        """Named as TCGA names diagnostic slides."""
        return [f"{self.case_id}-01Z-00-DX{number + 1}" for number in range(len(self.slide_sizes))]


@dataclass(frozen=True)
class SlideLayout:
    """Geometry of one slide, patches in CLAM's scan order (row by row, left to right).

    Attributes:
        shape: rows and columns of the scanned grid.
        cells: (N,) flat grid cell of every patch, ascending.
        coords: (N, 2) top left corner (x, y) of every patch, level-0 pixels.
        tumour: (N,) whether it is tumour.
        level_dim: width and height of level 0, pixels.
    """

    shape: tuple[int, int]
    cells: NDArray[np.int64]
    coords: NDArray[np.int64]
    tumour: NDArray[np.bool_]
    level_dim: tuple[int, int]


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
        left -= _grow_region(rng, mask, tumour, ragged, -(-left // (regions - region)))
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


class GeneratedPatches:
    """Paints slides from directions that are fixed for a cohort."""

    def __init__(self, options: SynthOptions) -> None:
        rng = np.random.default_rng([options.seed, 1])
        self.dim = options.dim
        self._signal = options.signal
        self._types_KD = TYPE_SPREAD * _normal(rng, NORMAL_TYPES + 1, self.dim)
        classes_CD = _normal(rng, len(options.classes), self.dim)
        self._classes_CD = TYPE_SPREAD * (classes_CD - classes_CD.mean(axis=0))
        self._sites_SD = SITE_SPREAD * _normal(rng, options.sites, self.dim)
        self._smooth_MD = SMOOTH_SPREAD * _normal(rng, SMOOTH_COMPONENTS, self.dim)

    def paint(self, layout: SlideLayout, case: Case, rng: np.random.Generator) -> Painted:
        """Embeddings for the patches of `layout`; `rng` belongs to this slide alone."""
        types = smooth_fields(rng, NORMAL_TYPES, layout.shape, TYPE_SIGMA).reshape(NORMAL_TYPES, -1)[:, layout.cells]
        # every slide has its own mixture of tissues
        types += rng.normal(0, 0.7, NORMAL_TYPES).astype(np.float32)[:, None]
        tissue_N = types.argmax(axis=0).astype(np.int8)
        tissue_N[layout.tumour] = TUMOUR_TYPE
        smooth = smooth_fields(rng, SMOOTH_COMPONENTS, layout.shape, SMOOTH_SIGMA)
        smooth_NM = smooth.reshape(SMOOTH_COMPONENTS, -1)[:, layout.cells].T
        slide_D = SLIDE_SPREAD * _normal(rng, 1, self.dim)[0] + self._sites_SD[case.site] - THRESHOLD
        types_KD = self._types_KD + slide_D
        if case.clear:
            types_KD[TUMOUR_TYPE] += self._signal * self._classes_CD[case.label]

        def chunks() -> Iterator[NDArray[np.float32]]:
            for start in range(0, len(tissue_N), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                x_nD = _normal(rng, len(tissue_N[rows]), self.dim)
                x_nD *= NOISE_SPREAD
                x_nD += smooth_NM[rows] @ self._smooth_MD
                x_nD += types_KD[tissue_N[rows]]
                yield np.maximum(x_nD, 0, out=x_nD)

        return chunks(), tissue_N, np.full(tissue_N.shape, -1, np.int32)


def _normal(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return rng.standard_normal((rows, columns), dtype=np.float32)


@dataclass(frozen=True)
class TileBank:
    """Tile embeddings in memory (a bank is tens of megabytes).

    Attributes:
        features: (tiles, D).
        tiles: tissue name -> for every group, the rows of its tiles.
        group_numbers: tissue name -> the bank's number of every group.
        codes: tissue name -> the bank's tissue code.
    """

    path: Path
    features: NDArray[np.float16]
    tiles: dict[str, list[NDArray[np.int64]]]
    group_numbers: dict[str, NDArray[np.int32]]
    codes: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> TileBank:
        """Read a bank; InputError where the file is none."""
        try:
            with h5py.File(path) as file:
                features, tissue, group = (file[name][:] for name in ("features", "tissue", "group"))
                names = [str(name) for name in file.attrs["tissue_names"]]
        except (OSError, KeyError) as error:
            raise InputError(
                "the tile bank cannot be read",
                file=path,
                expected="HDF5 with features (n, D), tissue (n,), group (n,) and the attribute tissue_names",
                found=str(error),
            ) from error
        if features.ndim != 2 or not len(features) == len(tissue) == len(group):
            shapes = f"features {features.shape}, tissue {tissue.shape}, group {group.shape}"
            raise InputError(
                "the tile bank's arrays do not fit together", file=path, expected="(n, D), (n,), (n,)", found=shapes
            )
        tiles, numbers = {}, {}
        for code, name in enumerate(names):
            numbers[name] = np.unique(group[tissue == code])
            tiles[name] = [np.flatnonzero((tissue == code) & (group == number)) for number in numbers[name]]
        return cls(path, features, tiles, numbers, {name: code for code, name in enumerate(names)})


class BankPatches:
    """Paints slides from real tiles; knows which groups each case may use."""

    def __init__(self, options: SynthOptions, bank: TileBank, labels: Sequence[int]) -> None:
        self.dim = int(bank.features.shape[1])
        self._bank = bank
        self._classes = options.classes
        for name in (*options.classes, NORMAL_TISSUE):
            if len(bank.tiles.get(name, [])) < FOLDS:
                raise InputError(
                    f"the tile bank has too little of tissue {name}",
                    file=bank.path,
                    expected=f"at least {FOLDS} groups, one for every fold",
                    found=f"{len(bank.tiles.get(name, []))} groups; tissues {', '.join(bank.tiles)}",
                    fix="name options.classes that the bank has",
                )
        rng = np.random.default_rng([options.seed, 2])
        self.split_groups = deal_split_groups(rng, labels)
        self._groups = _deal_groups(rng, bank, options.classes, labels, self.split_groups)

    def paint(self, layout: SlideLayout, case: Case, rng: np.random.Generator) -> Painted:
        """Tiles for the patches of `layout`; `rng` belongs to this slide alone."""
        bank = self._bank
        rows_N = np.empty(len(layout.cells), np.int64)
        tissue_N = np.empty(len(layout.cells), np.int8)
        group_N = np.empty(len(layout.cells), np.int32)
        for tissue, chosen_N in ((NORMAL_TISSUE, ~layout.tumour), (self._classes[case.label], layout.tumour)):
            groups = self._groups[case.index][tissue]
            regions = smooth_fields(rng, len(groups), layout.shape, GROUP_SIGMA).reshape(len(groups), -1)
            region_n = regions[:, layout.cells[chosen_N]].argmax(axis=0)
            rows_n = np.empty(len(region_n), np.int64)
            for region, group in enumerate(groups):
                here = region_n == region
                rows_n[here] = rng.choice(bank.tiles[tissue][group], int(here.sum()))
            rows_N[chosen_N] = rows_n
            tissue_N[chosen_N] = bank.codes[tissue]
            group_N[chosen_N] = bank.group_numbers[tissue][groups[region_n]]
        starts = range(0, len(rows_N), ROWS_AT_ONCE)
        chunks = (bank.features[rows_N[start : start + ROWS_AT_ONCE]].astype(np.float32) for start in starts)
        return chunks, tissue_N, group_N


def deal_split_groups(rng: np.random.Generator, labels: Sequence[int]) -> NDArray[np.int64]:
    """Split group (0..4) of every case: each class is shuffled and dealt round, going on where the last class ended."""
    split_groups = np.empty(len(labels), np.int64)
    dealt = 0
    for label in sorted(set(labels)):
        cases = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        split_groups[cases] = (dealt + np.arange(len(cases))) % FOLDS
        dealt += len(cases)
    return split_groups


def kfold_rows(case_ids: Sequence[str], split_groups: NDArray[np.int64]) -> list[tuple[str, int, str, str]]:
    """Rows (scheme, fold, part, case_id): fold i tests split group i, validates on i + 1, trains on the rest."""
    rows = []
    for fold in range(FOLDS):
        for case_id, group in zip(case_ids, split_groups, strict=True):
            role = "test" if group == fold else "val" if group == (fold + 1) % FOLDS else "train"
            rows.append(("kfold", fold, role, case_id))
    return rows


def _deal_groups(
    rng: np.random.Generator,
    bank: TileBank,
    classes: Sequence[str],
    labels: Sequence[int],
    split_groups: NDArray[np.int64],
) -> list[dict[str, NDArray[np.int64]]]:
    """For every case: tissue -> its groups. Disjoint between split groups, and between cases where the bank allows."""
    groups: list[dict[str, NDArray[np.int64]]] = [{} for _ in labels]
    for tissue in (*classes, NORMAL_TISSUE):
        order = rng.permutation(len(bank.tiles[tissue]))
        for group in range(FOLDS):
            pool = order[group::FOLDS]
            wanting = [
                case
                for case in np.flatnonzero(split_groups == group).tolist()
                if tissue in (NORMAL_TISSUE, classes[labels[case]])
            ]
            for turn, case in enumerate(wanting):
                own = pool[turn * GROUPS_A_CASE : (turn + 1) * GROUPS_A_CASE]
                enough = len(wanting) * GROUPS_A_CASE <= len(pool)
                groups[case][tissue] = own if enough else rng.choice(pool, min(GROUPS_A_CASE, len(pool)), replace=False)
    return groups
