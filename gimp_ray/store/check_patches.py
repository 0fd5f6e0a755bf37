"""The part files' share of `check_store`: footers, row groups, and (deep) hashes and finite values."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.store.dtypes import not_finite, width
from gimp_ray.store.manifest import Manifest
from gimp_ray.store.parts import PartReader, SlideHash, row_groups
from gimp_ray.store.schema import ROW_GROUP_ROWS, table_schema

_Finding = tuple[str, str, str | None]
_THREADS = 8


def findings(
    filesystem: pafs.FileSystem, root: str, slides: pa.Table, manifest: Manifest, deep: bool
) -> Iterator[_Finding]:
    """(level, what, file) for the part files; one PASS each when all of them are sound."""
    reader = PartReader(filesystem, root)
    by_file: dict[str, list[tuple[int, int, str, str]]] = {}
    columns = (slides[name].to_pylist() for name in ("file", "first_row_group", "n_patches", "slide_id", "sha256"))
    for file, *rest in zip(*columns, strict=True):
        by_file.setdefault(file, []).append((*rest,))  # type: ignore[arg-type]
    failed, names = False, sorted(by_file)
    with ThreadPoolExecutor(_THREADS) as pool:  # most of it is waiting for the storage, or hashing
        found = pool.map(lambda name: list(_file_problems(reader, name, sorted(by_file[name]), manifest, deep)), names)
        for name, problems in zip(names, found, strict=True):
            for problem in problems:
                failed = True
                yield "FAIL", problem, name
    if not failed:
        depth = "every slide's hash and values" if deep else "every slide's row groups"
        yield "PASS", f"part files: {len(by_file):,}, {depth} as the tables say", None


def _file_problems(
    reader: PartReader, name: str, slides: list[tuple[int, int, str, str]], manifest: Manifest, deep: bool
) -> Iterator[str]:
    try:
        file = reader.open(name)
    except InputError as error:
        yield f"{name} cannot be read: {error.found}"
        return
    problems = table_schema("patches").differences(file.schema_arrow, width=width(manifest.dim or 0, manifest.dtype))
    if problems:
        yield f"{name}: {'; '.join(problems)}"
        return
    footer, next_group = file.metadata, 0
    for first, n_patches, slide_id, sha256 in slides:
        groups = range(first, first + row_groups(n_patches))
        if first != next_group or groups.stop > footer.num_row_groups:
            found = f"row groups {groups.start} to {groups.stop - 1}"
            yield f"{name}: slide {slide_id} has {found}, expected from {next_group} on, of {footer.num_row_groups}"
            return
        next_group = groups.stop
        rows = [footer.row_group(i).num_rows for i in groups]
        if sum(rows) != n_patches or any(r != ROW_GROUP_ROWS for r in rows[:-1]):
            yield f"{name}: slide {slide_id} has row groups of {sum(rows)} patches, slides.parquet says {n_patches}"
        elif deep:
            yield from _content_problems(reader, name, slide_id, first, n_patches, manifest, sha256)
    if next_group != footer.num_row_groups:
        yield f"{name}: {footer.num_row_groups - next_group} row groups belong to no slide"


def _content_problems(
    reader: PartReader, name: str, slide_id: str, first: int, n_patches: int, manifest: Manifest, sha256: str
) -> Iterator[str]:
    try:
        digest, bad = SlideHash(), False
        for embeddings, coords in reader.chunks(name, first, n_patches, manifest.dim or 0, manifest.dtype):
            digest.update(embeddings, coords)
            bad = bad or bool(not_finite(embeddings, manifest.dtype).any())
        if digest.hexdigest() != sha256:
            yield f"{name}: slide {slide_id} is not what was ingested: its hash differs"
        if bad:
            yield f"{name}: slide {slide_id} holds NaN or Inf"
    except InputError as error:
        yield f"{name}: slide {slide_id} cannot be read: {error.found}"
