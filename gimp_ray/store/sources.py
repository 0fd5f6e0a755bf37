"""How the files a store was made from looked, so that a change is noticed later: sources.parquet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gimp_ray.store.schema import table_schema


@dataclass(frozen=True)
class Signature:
    """Size and dates of a file, or of all files of a folder; a rewrite changes at least one of them."""

    bytes: int
    mtime_ns: int
    ctime_ns: int


def signature(path: Path) -> Signature:
    """How `path` looks now; a folder (zarr) by all that is in it."""
    if not path.is_dir():
        stat = path.stat()
        return Signature(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    stats = [(Path(top) / name).stat() for top, _, names in os.walk(path) for name in names]
    return Signature(
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
        max((s.st_ctime_ns for s in stats), default=0),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sources_table(
    patches: Mapping[str, Path],
    tables: Mapping[Path, tuple[str, str | None]],
    kept: Iterable[Mapping[str, object]] = (),
) -> pa.Table:
    """sources.parquet: the patch file of each slide, the kind and, if known, hash of each table, and rows kept."""
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in kept:
        if row["kind"] != "patches" or row["id"] not in patches:
            rows[str(row["kind"]), str(row["id"]), str(row["file"])] = dict(row)
    for slide_id, path in patches.items():
        rows["patches", slide_id, str(path)] = _row("patches", slide_id, path, None)
    for path, (kind, sha256) in tables.items():
        rows[kind, path.name, str(path)] = _row(kind, path.name, path, sha256 or sha256_of(path))
    ordered = [rows[key] for key in sorted(rows)]
    return pa.Table.from_pylist(ordered, schema=table_schema("sources").arrow())


def _row(kind: str, name: str, path: Path, sha256: str | None) -> dict[str, object]:
    s = signature(path)
    return {
        "kind": kind,
        "id": name,
        "file": str(path),
        "bytes": s.bytes,
        "mtime_ns": s.mtime_ns,
        "ctime_ns": s.ctime_ns,
        "sha256": sha256,
    }
