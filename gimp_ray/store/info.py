"""`store_info`: what is in a store, for a person or as JSON, without reading a patch.

Counts and sizes come from a few columns of the tables and from listing folders, so a store of a million slides takes
seconds.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs as pafs

from gimp_ray.io import storage
from gimp_ray.store.manifest import RNA, Bag, Manifest
from gimp_ray.store.schema import table_schema
from gimp_ray.store.splits import PARTS
from gimp_ray.store.store import CohortStore

_BAR = 40
_SHOWN_FOLDS = 10
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Spread:
    """Least, middle, mean and largest of some numbers."""

    min: int
    median: float
    mean: float
    max: int

    def __str__(self) -> str:
        return f"min {self.min:,}, median {self.median:,.0f}, mean {self.mean:,.0f}, max {self.max:,}"


@dataclass(frozen=True)
class Bin:
    """Slides of `low` to `high` patches, both included."""

    low: int
    high: int
    slides: int


@dataclass(frozen=True)
class Fold:
    """Cases of the parts of one fold."""

    fold: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class PartFiles:
    """The part files: how many, how many of them are missing, and bytes."""

    files: int
    missing: int
    bytes: int
    size: Spread | None


@dataclass(frozen=True)
class StoreInfo:
    """What is in a store.

    Attributes:
        store: its place.
        manifest: its manifest.
        class_counts: cases of each class.
        slides_per_case: slides -> cases that have so many.
        patches_per_slide, patches_per_case: None without patches.
        histogram: slides by their patches.
        columns: table -> its columns beyond the schema's, with their types.
        splits: scheme -> its folds.
        parts: the part files, the members' included; None without patches.
        table_bytes: file of each table -> its size.
    """

    store: str
    manifest: Manifest
    class_counts: dict[str, int]
    slides_per_case: dict[int, int]
    patches_per_slide: Spread | None
    patches_per_case: Spread | None
    histogram: tuple[Bin, ...]
    columns: dict[str, dict[str, str]]
    splits: dict[str, tuple[Fold, ...]]
    parts: PartFiles | None
    table_bytes: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """Plain data; the manifest's fields stand under `manifest`."""
        return {**asdict(self), "manifest": json.loads(self.manifest.to_json())}

    def __str__(self) -> str:
        m = self.manifest
        lines = [f"Store {self.store}", f"  contents     {m.fingerprint}"]
        lines.append(f"  made         {m.created_at} by {m.created_by}, revision {m.revision}, layout {m.version}")
        lines += [f"  merged from  {place} ({fingerprint[:16]})" for place, fingerprint in m.members.items()]
        classes = ", ".join(f"{label} {count:,}" for label, count in self.class_counts.items())
        without = m.num_cases - sum(self.class_counts.values())
        classes += f"{', ' if classes else ''}without a label {without:,}" if without else ""
        lines.append(f"  cases        {m.num_cases:,}: {classes}")
        for name, one in m.modalities.items():
            if one.num_cases < m.num_cases:
                lines.append(f"  lacking      {m.num_cases - one.num_cases:,} cases have no {name}")
        lines += [f"  columns      {table}: {_named(columns)}" for table, columns in self.columns.items() if columns]
        if m.patches is not None:
            lines += self._patch_lines(m.patches)
        for name, vector in m.vectors.items():
            count, marks = f"{vector.num_features:,}", vector.feature_list_sha256[:16]
            lines.append(f"  {'genes' if name == RNA else name:<12} {count}, unit {vector.unit}, list {marks}")
        for scheme, folds in self.splits.items():
            lines.append(f"  split        {scheme}: {len(folds)} folds (train / val / test)")
            lines += [f"               {f.fold}: {f.train:,} / {f.val:,} / {f.test:,}" for f in folds[:_SHOWN_FOLDS]]
            lines += [f"               and {len(folds) - _SHOWN_FOLDS} more"] if len(folds) > _SHOWN_FOLDS else []
        lines += self._byte_lines()
        return "\n".join(lines)

    def _patch_lines(self, bag: Bag) -> list[str]:
        per_case = ", ".join(f"{cases:,} with {slides}" for slides, cases in self.slides_per_case.items())
        scale = [
            f"magnification {bag.magnification:g}x" if bag.magnification is not None else "",
            f"patch size {bag.patch_size} px" if bag.patch_size is not None else "",
            f"overlap {bag.overlap} px" if bag.overlap is not None else "",
        ]
        lines = [
            f"  slides       {bag.num_slides:,} (cases by slides: {per_case})",
            f"  patches      {bag.num_patches:,}; coordinates: {bag.coordinates}",
            f"  embeddings   {bag.dim} x {bag.dtype}, compression {bag.compression}, {bag.row_group_rows} rows a row "
            f"group, checksums {bag.checksums or 'none'}",
            f"  encoder      {bag.encoder or 'not named'}; {', '.join(filter(None, scale)) or 'scale not named'}",
            f"  a case       {self.patches_per_case} patches",
            f"  a slide      {self.patches_per_slide} patches",
        ]
        most = max((one.slides for one in self.histogram), default=1)
        edge = max((len(f"{one.high:,}") for one in self.histogram), default=1)
        for one in self.histogram:
            bar = "#" * -(-one.slides * _BAR // most)
            lines.append(f"               {one.low:>{edge},} to {one.high:>{edge},}  {bar:<{_BAR}} {one.slides:,}")
        return lines

    def _byte_lines(self) -> list[str]:
        lines = []
        if self.parts is not None:
            missing = f" ({self.parts.missing:,} of them MISSING)" if self.parts.missing else ""
            lines.append(f"  part files   {_bytes(self.parts.bytes)} in {self.parts.files:,} files{missing}")
            lines += [f"  a part file  {self.parts.size} bytes"] if self.parts.size is not None else []
        tables = ", ".join(f"{name} {_bytes(size)}" for name, size in self.table_bytes.items())
        return [*lines, f"  tables       {_bytes(sum(self.table_bytes.values()))}: {tables}"]


def store_info(path: str | os.PathLike[str]) -> StoreInfo:
    """What is in the store at `path`, a local path or URI.

    Raises:
        InputError: there is no store, or a table is damaged.
    """
    store = CohortStore.open(path)
    manifest, where = store.manifest, storage.resolve(store.path)
    has_patches = manifest.dim is not None
    sizes = store.slide_sizes
    per_slide = sizes["n_patches"].to_numpy()
    codes = pc.index_in(sizes["case_id"], store.cases["case_id"]).fill_null(0).to_numpy()
    per_case = np.bincount(codes, weights=per_slide, minlength=manifest.num_cases).astype(np.int64)
    slides_of = np.bincount(np.bincount(codes, minlength=manifest.num_cases))
    labels = _counts(store.cases["label"].drop_null())
    return StoreInfo(
        store=store.path,
        manifest=manifest,
        class_counts={label: labels[label] for label in sorted(labels)},
        slides_per_case={n: int(slides_of[n]) for n in np.flatnonzero(slides_of).tolist()} if has_patches else {},
        patches_per_slide=_spread(per_slide) if has_patches else None,
        patches_per_case=_spread(per_case) if has_patches else None,
        histogram=_histogram(per_slide),
        columns={name: _further(store, name) for name in ("cases", "slides", "genes") if name in manifest.files},
        splits=_splits(store),
        parts=_part_files(*where, store) if has_patches else None,
        table_bytes=_table_bytes(*where, manifest),
    )


def _spread(values: NDArray[np.int64]) -> Spread | None:
    if not len(values):
        return None
    return Spread(int(values.min()), float(np.median(values)), float(values.mean()), int(values.max()))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(column.combine_chunks()).to_pylist()}


def _histogram(values: NDArray[np.int64]) -> tuple[Bin, ...]:
    """Bins between 1, 2, 5, 10, 20, 50, ...: bags differ by factors of a hundred."""
    if not len(values):
        return ()
    edges = np.array([step * 10**power for power in range(12) for step in (1, 2, 5)])
    first = max(int(np.searchsorted(edges, values.min(), side="right")) - 1, 0)
    last = int(np.searchsorted(edges, values.max(), side="right"))
    used = edges[first : last + 1]
    counts = np.histogram(values, bins=used)[0]
    return tuple(
        Bin(int(low), int(high) - 1, int(count)) for low, high, count in zip(used, used[1:], counts, strict=False)
    )


def _further(store: CohortStore, name: str) -> dict[str, str]:
    known = table_schema(name).arrow().names
    return {field.name: str(field.type) for field in store.schema(name) if field.name not in known}


def _splits(store: CohortStore) -> dict[str, tuple[Fold, ...]]:
    table = store.table("splits", ["scheme", "fold", "part"])
    counted = table.group_by(["scheme", "fold", "part"]).aggregate([([], "count_all")])
    sizes: dict[tuple[str, int], dict[str, int]] = {}
    for row in counted.to_pylist():
        sizes.setdefault((row["scheme"], row["fold"]), dict.fromkeys(PARTS, 0))[row["part"]] = row["count_all"]
    folds: dict[str, tuple[Fold, ...]] = {}
    for (scheme, fold), parts in sorted(sizes.items()):
        folds[scheme] = (*folds.get(scheme, ()), Fold(fold, parts["train"], parts["val"], parts["test"]))
    return folds


def _part_files(filesystem: pafs.FileSystem, root: str, store: CohortStore) -> PartFiles:
    names = store.table("slides", ["file"])["file"].unique().to_pylist()
    sizes = _sizes(filesystem, root, names)
    known = np.array([size for size in sizes.values() if size is not None], dtype=np.int64)
    return PartFiles(len(sizes), len(sizes) - len(known), int(known.sum()), _spread(known))


def _table_bytes(filesystem: pafs.FileSystem, root: str, manifest: Manifest) -> dict[str, int]:
    sizes = _sizes(filesystem, root, manifest.tables)
    return {name: sizes[name] or 0 for name in sorted(sizes)}


def _sizes(filesystem: pafs.FileSystem, root: str, names: Iterable[str]) -> dict[str, int | None]:
    """Bytes of files named from a store, None where there is no such file; each folder is listed once."""
    by_folder: dict[tuple[str, str], list[str]] = {}
    for name in names:
        base, _, query = name.partition("?")
        by_folder.setdefault((posixpath.dirname(base), query), []).append(name)
    sizes: dict[str, int | None] = {}
    for some in by_folder.values():
        where, path = storage.resolve(some[0]) if storage.is_uri(some[0]) else (filesystem, storage.join(root, some[0]))
        listed = where.get_file_info(pafs.FileSelector(posixpath.dirname(path), allow_not_found=True))
        found = {info.base_name: info.size for info in listed if info.type == pafs.FileType.File}
        for name in some:
            sizes[name] = found.get(posixpath.basename(name.partition("?")[0]))
    return sizes


def _named(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())


def _bytes(count: int) -> str:
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
