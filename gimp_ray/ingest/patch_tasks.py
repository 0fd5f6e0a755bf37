"""What the processes of an ingest do: look at patch files, pack slides into part files, write and verify those.

Which slide goes to which part file depends on the slides alone, not on workers or timing. A slide found bad while it
is written is taken out and its part file written again. Left out: what becomes of such slides (`roll.py`) and the
slides table (`patch_ingest.py`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.ingest.ahead import ahead
from gimp_ray.ingest.convert import stored_chunks
from gimp_ray.ingest.read_back import WrittenBytes, first_wrong
from gimp_ray.ingest.readers import PatchSource, inspect_patches
from gimp_ray.ingest.work import tick
from gimp_ray.io import places
from gimp_ray.store.dtypes import width
from gimp_ray.store.parts import Chunk, PartReader, PartWriter, SlideRecord

# a part file is closed from the smallest size on when the next slide would take it beyond the target; only a slide
# that is larger alone makes a larger one, for no slide is in two files
SMALLEST_PART_BYTES = 128 << 20
PART_BYTES = 256 << 20
LARGEST_PART_BYTES = 512 << 20
_PARTS_WANTED = 16


@dataclass(frozen=True)
class InspectTask:
    """Files to look at, by slide."""

    files: tuple[tuple[str, Path], ...]

    @property
    def units(self) -> int:
        """Slides, for the progress bar."""
        return len(self.files)


@dataclass(frozen=True)
class PartTask:
    """A part file to write: `name` below the place `folder`, a path or URI."""

    folder: str
    name: str
    sources: tuple[PatchSource, ...]
    compression: str
    dtype: str

    @property
    def units(self) -> int:
        """Patches, for the progress bar."""
        return sum(source.n_patches for source in self.sources)


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


def part_tasks(sources: Sequence[PatchSource], folder: str, names: str, compression: str, dtype: str) -> list[PartTask]:
    """Pack slides, in order, into part files of 128 to 512 MB, about 256 as a rule; `names` has a place for a number.

    A smaller cohort is one smaller file; one of a few GB gets files of 128 MB, to be written in parallel.
    """
    sizes = [_stored_bytes(source, dtype) for source in sources]
    packs = pack(sizes, min(PART_BYTES, max(SMALLEST_PART_BYTES, sum(sizes) // _PARTS_WANTED)))
    return [
        PartTask(folder, names.format(i), tuple(sources[j] for j in pack_), compression, dtype)
        for i, pack_ in enumerate(packs)
    ]


def pack(sizes: Sequence[int], target: int) -> list[range]:
    """Cut a row of sizes into runs of the smallest part size at least and about `target`, as far as that goes."""
    runs: list[range] = []
    start, filled = 0, 0
    for i, size in enumerate(sizes):
        if filled and filled + size > (target if filled >= SMALLEST_PART_BYTES else LARGEST_PART_BYTES):
            runs.append(range(start, i))
            start, filled = i, 0
        filled += size
    if not sizes:
        return []
    last = range(start, len(sizes))
    if runs and filled < SMALLEST_PART_BYTES and sum(sizes[runs[-1].start :]) <= LARGEST_PART_BYTES:
        last = range(runs.pop().start, len(sizes))
    return [*runs, last]


def write_part(task: PartTask) -> PartResult:
    """Write a part file and read it back; slides that cannot be stored are left out of it and returned as faults."""
    faults: dict[str, InputError] = {}
    filesystem, root = places.resolve(task.folder)
    path = f"{root}/{task.name}"
    records = _write(task, filesystem, path, faults)
    while records is None:
        # all else that is wrong in this part file is found before it is written again
        for source in task.sources:
            if source.slide_id not in faults:
                _scan(source, task.dtype, faults)
        records = _write(task, filesystem, path, faults)
    if not records:
        filesystem.delete_file(path)
    return PartResult(task.name, tuple(records), faults)


def _write(
    task: PartTask, filesystem: pafs.FileSystem, path: str, faults: dict[str, InputError]
) -> list[SlideRecord] | None:
    """Write the slides without a fault and read them back; at a new fault note it and return None: the file is then
    no good.

    Reading and rounding the next chunk, writing this one, and hashing it are done at the same time.
    """
    records: list[SlideRecord] = []
    sources = [source for source in task.sources if source.slide_id not in faults]
    at_once = places.is_local(filesystem) and task.compression == "none"
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(contextlib.closing(ahead(_items(sources, task.dtype))))
        writer = PartWriter(path, task.sources[0].dim, task.compression, task.dtype, filesystem)
        written = stack.enter_context(contextlib.closing(WrittenBytes(path))) if at_once else None
        with writer:
            writer.on_row_group = None if written is None else written.compare
            for slide_id, items in itertools.groupby(made, lambda item: item[0]):
                try:
                    records.append(writer.add_slide(slide_id, _ticking(items)))
                except InputError as error:
                    faults[slide_id] = error
                    return None
        _verify(task, records, written)
    return records


def _items(sources: Sequence[PatchSource], dtype: str) -> Iterator[tuple[str, Chunk | InputError]]:
    """The chunks of the slides in order, each with its slide; a refusal in place of a chunk."""
    for source in sources:
        try:
            for chunk in stored_chunks(source, dtype):
                yield source.slide_id, chunk
        except InputError as error:
            yield source.slide_id, error


def _ticking(items: Iterator[tuple[str, Chunk | InputError]]) -> Iterator[Chunk]:
    for _, item in items:
        if isinstance(item, InputError):
            raise item
        yield item
        tick(len(item[0]))


def _scan(source: PatchSource, dtype: str, faults: dict[str, InputError]) -> None:
    try:
        for _ in stored_chunks(source, dtype):
            tick(0)
    except InputError as error:
        faults[source.slide_id] = error


def _verify(task: PartTask, records: Sequence[SlideRecord], written: WrittenBytes | None) -> None:
    """InputError unless the part file, now closed, holds what was to be written to it."""
    if not records:
        return
    reader = PartReader(*places.resolve(task.folder))
    case, expected, found = None, "the bytes that were written", None
    if written is None:
        wrong = first_wrong(reader, task.name, records, task.sources[0].dim, task.dtype)
        if wrong is not None:
            case, expected, found = wrong
    elif written.wrong is not None:
        case, found = written.wrong, "other bytes"
    else:
        found = written.wrong_places(reader, task.name)
    if found is not None:
        raise InputError(
            "a part file does not hold what was written to it",
            file=f"{task.folder}/{task.name}",
            case=case,
            expected=expected,
            found=found,
            fix="check the disk, and ingest again",
        )


def _stored_bytes(source: PatchSource, dtype: str) -> int:
    return source.n_patches * (width(source.dim, dtype) + 8)
