"""Patches drawn from a bank of real tile embeddings, and the folds that this makes safe.

A bank holds augmented copies of few originals (a group). Tiles of one group must never stand on both sides of a split:

- cases are dealt to five parts, stratified by class, and every group of every tissue belongs to one part only;
- where the bank has groups enough, every case also has its groups to itself, and any split by case is safe;
- otherwise cases of one part share groups, and only splits that keep parts together are safe: those of `kfold_rows`,
  written as `splits.csv`. The part of a case is the column `split_group` of the case table.

Neighbouring patches come from the same group, so a slide is smooth in space though its tiles never were neighbours.
Left out: batch effects; the vectors of the bank are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.synth.geometry import SlideLayout, smooth_fields
from gimp_ray.synth.options import SynthOptions
from gimp_ray.synth.patches import ROWS_AT_ONCE, PaintedSlide, SlideSubject

FOLDS = 5
GROUPS_A_CASE = 8  # originals behind one case's tumour, and behind its normal tissue
NORMAL_TISSUE = "normal"
GROUP_SIGMA = 2.5  # grid steps; how far one original reaches


@dataclass(frozen=True)
class TileBank:
    """Tile embeddings in memory (a bank is tens of megabytes)."""

    path: Path
    features: NDArray[np.float16]
    """(tiles, D)"""
    tiles: dict[str, list[NDArray[np.int64]]]
    """tissue name -> for every group, the rows of its tiles"""
    group_numbers: dict[str, NDArray[np.int32]]
    """tissue name -> the bank's number of every group"""
    codes: dict[str, int]
    """tissue name -> the bank's tissue code"""

    @classmethod
    def open(cls, path: Path) -> TileBank:
        """Read a bank.

        Raises:
            InputError: the file is no tile bank.
        """
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
        _check_tissues(bank, options.classes)
        rng = np.random.default_rng([options.seed, 2])
        self.parts = deal_parts(rng, labels)
        """part of every case, 0..4"""
        self._groups = _deal_groups(rng, bank, options.classes, labels, self.parts)

    def groups_of(self, case_index: int) -> dict[str, NDArray[np.int64]]:
        """Tissue name -> positions (in `TileBank.tiles[tissue]`) of the groups that this case's patches come from."""
        return self._groups[case_index]

    def paint(self, layout: SlideLayout, subject: SlideSubject, rng: np.random.Generator) -> PaintedSlide:
        """Tiles for the patches of `layout`; `rng` belongs to this slide alone."""
        rows_N = np.empty(len(layout.cells), np.int64)
        tissue_N = np.empty(len(layout.cells), np.int8)
        group_N = np.empty(len(layout.cells), np.int32)
        for tissue, chosen_N in ((NORMAL_TISSUE, ~layout.tumour), (self._classes[subject.label], layout.tumour)):
            groups = self._groups[subject.case_index][tissue]
            regions = smooth_fields(rng, len(groups), layout.shape, GROUP_SIGMA).reshape(len(groups), -1)
            region_n = regions[:, layout.cells[chosen_N]].argmax(axis=0)
            rows_N[chosen_N] = self._draw_tiles(rng, tissue, groups, region_n)
            tissue_N[chosen_N] = self._bank.codes[tissue]
            group_N[chosen_N] = self._bank.group_numbers[tissue][groups[region_n]]
        return PaintedSlide(self._chunks(rows_N), tissue_N, group_N)

    def _draw_tiles(
        self, rng: np.random.Generator, tissue: str, groups: NDArray[np.int64], region_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        rows = np.empty(len(region_n), np.int64)
        for region, group in enumerate(groups):
            here = region_n == region
            rows[here] = rng.choice(self._bank.tiles[tissue][group], int(here.sum()))
        return rows

    def _chunks(self, rows_N: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows_N), ROWS_AT_ONCE):
            yield self._bank.features[rows_N[start : start + ROWS_AT_ONCE]].astype(np.float32)


def deal_parts(rng: np.random.Generator, labels: Sequence[int]) -> NDArray[np.int64]:
    """Part (0..4) of every case: each class is shuffled and dealt round, going on where the last class ended."""
    parts = np.empty(len(labels), np.int64)
    dealt = 0
    for label in sorted(set(labels)):
        cases = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        parts[cases] = (dealt + np.arange(len(cases))) % FOLDS
        dealt += len(cases)
    return parts


def kfold_rows(case_ids: Sequence[str], parts: NDArray[np.int64]) -> list[tuple[str, int, str, str]]:
    """Rows (scheme, fold, part, case_id): fold i tests part i, validates on part i + 1, trains on the other three."""
    rows = []
    for fold in range(FOLDS):
        for case_id, part in zip(case_ids, parts, strict=True):
            role = "test" if part == fold else "val" if part == (fold + 1) % FOLDS else "train"
            rows.append(("kfold", fold, role, case_id))
    return rows


def _check_tissues(bank: TileBank, classes: Sequence[str]) -> None:
    for name in (*classes, NORMAL_TISSUE):
        if len(bank.tiles.get(name, [])) < FOLDS:
            raise InputError(
                f"the tile bank has too little of tissue {name}",
                file=bank.path,
                expected=f"at least {FOLDS} groups, one for every fold",
                found=f"{len(bank.tiles.get(name, []))} groups; tissues {', '.join(bank.tiles)}",
                fix="name classes that the bank has",
            )


def _deal_groups(
    rng: np.random.Generator, bank: TileBank, classes: Sequence[str], labels: Sequence[int], parts: NDArray[np.int64]
) -> list[dict[str, NDArray[np.int64]]]:
    """For every case: tissue -> its groups. Disjoint between parts always, between cases where the bank allows it."""
    groups: list[dict[str, NDArray[np.int64]]] = [{} for _ in labels]
    for tissue in (*classes, NORMAL_TISSUE):
        order = rng.permutation(len(bank.tiles[tissue]))
        for part in range(FOLDS):
            pool = order[part::FOLDS]
            wanting = [
                case
                for case in np.flatnonzero(parts == part).tolist()
                if tissue in (NORMAL_TISSUE, classes[labels[case]])
            ]
            for turn, case in enumerate(wanting):
                own = pool[turn * GROUPS_A_CASE : (turn + 1) * GROUPS_A_CASE]
                enough = len(wanting) * GROUPS_A_CASE <= len(pool)
                groups[case][tissue] = own if enough else rng.choice(pool, min(GROUPS_A_CASE, len(pool)), replace=False)
    return groups
