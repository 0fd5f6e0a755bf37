"""The part files' share of `check_store`: footers, row groups, and (deep) hashes and finite values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from gimp_ray.cohort.convert import finite
from gimp_ray.cohort.manifest import Manifest
from gimp_ray.cohort.parts import PartReader, embeddings_of, row_groups
from gimp_ray.cohort.patch_tasks import stored_slide_sha256
from gimp_ray.cohort.schema import ROW_GROUP_ROWS, table_schema
from gimp_ray.errors import InputError

_Finding = tuple[str, str, str | None]


def findings(root: Path, slides: pa.Table, manifest: Manifest, deep: bool) -> Iterator[_Finding]:
    """(level, what, file) for the part files; one PASS each when all of them are sound."""
    reader = PartReader(pafs.LocalFileSystem(), str(root))
    dim = manifest.dim or 0
    by_file: dict[str, list[tuple[int, int, str, str]]] = {}
    columns = (slides[name].to_pylist() for name in ("file", "first_row_group", "n_patches", "slide_id", "sha256"))
    for file, *rest in zip(*columns, strict=True):
        by_file.setdefault(file, []).append((*rest,))  # type: ignore[arg-type]
    failed = False
    for name in sorted(by_file):
        for problem in _file_problems(reader, name, sorted(by_file[name]), dim, deep):
            failed = True
            yield "FAIL", problem, str(root / name)
    if not failed:
        depth = "every slide's hash and values" if deep else "every slide's row groups"
        yield "PASS", f"part files: {len(by_file):,}, {depth} as the tables say", None


def _file_problems(
    reader: PartReader, name: str, slides: list[tuple[int, int, str, str]], dim: int, deep: bool
) -> Iterator[str]:
    try:
        file = reader.open(name)
    except InputError as error:
        yield f"{name} cannot be read: {error.found}"
        return
    problems = table_schema("patches").differences(file.schema_arrow, dim=dim)
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
            yield from _content_problems(reader, name, slide_id, first, n_patches, dim, sha256)
    if next_group != footer.num_row_groups:
        yield f"{name}: {footer.num_row_groups - next_group} row groups belong to no slide"


def _content_problems(
    reader: PartReader, name: str, slide_id: str, first: int, n_patches: int, dim: int, sha256: str
) -> Iterator[str]:
    try:
        digest, _ = stored_slide_sha256(reader, name, first, n_patches, dim)
        if digest != sha256:
            yield f"{name}: slide {slide_id} is not what was ingested: its hash differs"
        groups = range(first, first + row_groups(n_patches))
        if not all(finite(embeddings_of(array, dim)) for array in reader.batches(name, groups, "embedding")):
            yield f"{name}: slide {slide_id} holds NaN or Inf"
    except InputError as error:
        yield f"{name}: slide {slide_id} cannot be read: {error.found}"
