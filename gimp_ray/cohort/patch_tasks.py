"""What the processes of an ingest do: look at patch files, pack slides into part files, write and verify those.

Which slide goes to which part file depends on the slides alone, not on workers or timing. A slide found bad while it
is written is taken out and its part file written again. Left out: what becomes of such slides (`roll.py`) and the
slides table (`patch_ingest.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import fs as pafs

from gimp_ray.cohort.convert import stored_chunks
from gimp_ray.cohort.parts import Chunk, PartReader, PartWriter, SlideHash, SlideRecord, embeddings_of, row_groups
from gimp_ray.cohort.readers import PatchSource, inspect_patches
from gimp_ray.cohort.work import tick
from gimp_ray.errors import InputError

PART_BYTES = 256 << 20
_SMALLEST_PART_BYTES = 32 << 20
_PARTS_WANTED = 16


@dataclass(frozen=True)
class InspectTask:
    """Files to look at, by slide."""

    files: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class PartTask:
    """A part file to write."""

    folder: Path
    name: str
    sources: tuple[PatchSource, ...]
    compression: str


@dataclass(frozen=True)
class PartResult:
    """What was written into a part file, and the slides that could not be."""

    name: str
    records: tuple[SlideRecord, ...]
    faults: dict[str, InputError]


def inspect(task: InspectTask) -> list[PatchSource | InputError]:
    """Look at the files of a task; a file that cannot be used gives its refusal."""
    results: list[PatchSource | InputError] = []
    for slide_id, path in task.files:
        try:
            results.append(inspect_patches(path, slide_id))
        except InputError as error:
            results.append(error)
        tick(1)
    return results


def inspect_tasks(files: Mapping[str, Path], slides: Sequence[str], size: int = 64) -> list[InspectTask]:
    """Tasks of `size` slides."""
    pairs = [(slide_id, files[slide_id]) for slide_id in slides]
    return [InspectTask(tuple(pairs[i : i + size])) for i in range(0, len(pairs), size)]


def part_tasks(sources: Sequence[PatchSource], folder: Path, compression: str) -> list[PartTask]:
    """Pack slides, in order, into part files of about 256 MB; a small cohort gets smaller ones, to be parallel."""
    total = sum(_stored_bytes(source) for source in sources)
    target = min(PART_BYTES, max(_SMALLEST_PART_BYTES, total // _PARTS_WANTED))
    packs: list[list[PatchSource]] = []
    filled = target
    for source in sources:
        if filled + _stored_bytes(source) > target:
            packs.append([])
            filled = 0
        packs[-1].append(source)
        filled += _stored_bytes(source)
    return [PartTask(folder, f"patches/part-{i:05d}.parquet", tuple(pack), compression) for i, pack in enumerate(packs)]


def write_part(task: PartTask) -> PartResult:
    """Write a part file and read it back; slides that cannot be stored are left out of it and returned as faults."""
    faults: dict[str, InputError] = {}
    records = _write(task, faults)
    while records is None:
        # all else that is wrong in this part file is found before it is written again
        for source in task.sources:
            if source.slide_id not in faults:
                _scan(source, faults)
        records = _write(task, faults)
    path = task.folder / task.name
    if records:
        _verify(task, records)
    else:
        path.unlink(missing_ok=True)
    return PartResult(task.name, tuple(records), faults)


def stored_slide_sha256(reader: PartReader, name: str, first: int, n_patches: int, dim: int) -> tuple[str, int]:
    """The hash of a slide as it is stored, and how many patches its row groups really hold."""
    groups = range(first, first + row_groups(n_patches))
    columns = [reader.batches(name, groups, column) for column in ("embedding", "x", "y")]
    digest, found = SlideHash(), 0
    for embedding, x, y in zip(*columns, strict=True):
        digest.update(embeddings_of(embedding, dim), np.stack([x.to_numpy(), y.to_numpy()], axis=1))
        found += len(embedding)
    return digest.hexdigest(), found


def _write(task: PartTask, faults: dict[str, InputError]) -> list[SlideRecord] | None:
    """Write the slides without a fault; at a new fault note it and return None: the file is then no good."""
    records = []
    with PartWriter(str(task.folder / task.name), task.sources[0].dim, task.compression) as writer:
        for source in task.sources:
            if source.slide_id in faults:
                continue
            try:
                records.append(writer.add_slide(source.slide_id, _ticking(source)))
            except InputError as error:
                faults[source.slide_id] = error
                return None
    return records


def _ticking(source: PatchSource) -> Iterator[Chunk]:
    for chunk in stored_chunks(source):
        yield chunk
        tick(len(chunk[0]))


def _scan(source: PatchSource, faults: dict[str, InputError]) -> None:
    try:
        for _ in stored_chunks(source):
            tick(0)
    except InputError as error:
        faults[source.slide_id] = error


def _verify(task: PartTask, records: Sequence[SlideRecord]) -> None:
    """Read a part file back and compare it with what was to be written."""
    reader = PartReader(pafs.LocalFileSystem(), str(task.folder))
    dim = task.sources[0].dim
    for record in records:
        digest, found = stored_slide_sha256(reader, task.name, record.first_row_group, record.n_patches, dim)
        if digest != record.sha256 or found != record.n_patches:
            raise InputError(
                "a part file does not hold what was written to it",
                file=task.folder / task.name,
                case=record.slide_id,
                expected=f"{record.n_patches} patches, sha256 {record.sha256}",
                found=f"{found} patches, sha256 {digest}",
                fix="check the disk, and ingest again",
            )
        tick(0)


def _stored_bytes(source: PatchSource) -> int:
    return source.n_patches * (2 * source.dim + 8)
