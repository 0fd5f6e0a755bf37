"""Writing part files: inspect patch files, pack slides into part files, write those and verify them.

Which slide goes to which part file depends on the slides alone, not on workers or timing. A slide found bad while it
is written is taken out and its part file written again. On a local disk, uncompressed, every row group is read back
right after it was written, while it is still in the processor's cache, and compared byte by byte; a compressed part
file, and one in object storage, is read back whole afterwards and hashed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.ingest.patches import PatchSource, inspect_patches
from gimp_ray.ingest.patches.source import reading, unusable
from gimp_ray.ingest.work import tick
from gimp_ray.io import storage
from gimp_ray.io.ahead import read_ahead
from gimp_ray.store.dtypes import encode, largest, not_finite, width
from gimp_ray.store.part_writer import PartWriter, SlideHash, SlideRecord
from gimp_ray.store.parts import Chunk, PartReader
from gimp_ray.store.schema import ROW_GROUP_ROWS

# a part file is closed from the smallest size on when the next slide would take it beyond the target; only a slide
# that is larger alone makes a larger one, for no slide is in two files
SMALLEST_PART_BYTES = 128 << 20
PART_BYTES = 256 << 20
LARGEST_PART_BYTES = 512 << 20
_PARTS_WANTED = 16
# 8 MiB of float32 a chunk: large reads, yet it is still in the processor's cache when it is rounded
_CHUNK_VALUES = 2 << 20
_INSPECTED_AT_ONCE = 64


@dataclass(frozen=True)
class InspectTask:
    """Files to inspect, by slide; `units` of a task are for the progress bar."""

    files: tuple[tuple[str, Path], ...]

    @property
    def units(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class PartTask:
    """A part file to write: `name` below `folder`, a path or URI. Its units are patches."""

    folder: str
    name: str
    sources: tuple[PatchSource, ...]
    compression: str
    dtype: str

    @property
    def units(self) -> int:
        return sum(source.n_patches for source in self.sources)


@dataclass(frozen=True)
class PartResult:
    """What was written into a part file, and the slides that could not be."""

    name: str
    records: tuple[SlideRecord, ...]
    faults: dict[str, InputError]


def inspect(task: InspectTask) -> list[PatchSource | InputError]:
    """Inspect the files of a task; a file that cannot be used gives its refusal."""
    results: list[PatchSource | InputError] = []
    for slide_id, path in task.files:
        try:
            results.append(inspect_patches(path, slide_id))
        except InputError as error:
            results.append(error)
        tick(1)
    return results


def inspect_tasks(files: Mapping[str, Path], slides: Sequence[str]) -> list[InspectTask]:
    """Tasks of a few dozen slides each."""
    pairs, size = [(slide_id, files[slide_id]) for slide_id in slides], _INSPECTED_AT_ONCE
    return [InspectTask(tuple(pairs[i : i + size])) for i in range(0, len(pairs), size)]


def part_tasks(sources: Sequence[PatchSource], folder: str, names: str, compression: str, dtype: str) -> list[PartTask]:
    """Pack slides, in order, into part files of 128 to 512 MB, about 256 as a rule; `names` is a format of a number.

    A smaller cohort is one smaller file; one of a few GB gets files of 128 MB, to be written in parallel.
    """
    sizes = [source.n_patches * (width(source.dim, dtype) + 8) for source in sources]
    packs = pack(sizes, min(PART_BYTES, max(SMALLEST_PART_BYTES, sum(sizes) // _PARTS_WANTED)))
    return [
        PartTask(folder, names.format(i), tuple(sources[j] for j in slides), compression, dtype)
        for i, slides in enumerate(packs)
    ]


def pack(sizes: Sequence[int], target: int) -> list[range]:
    """Cut a sequence of sizes into runs of the smallest part size at least and about `target`, as far as possible."""
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
    """Write a part file and verify it; slides that cannot be stored are left out of it and returned as faults."""
    faults: dict[str, InputError] = {}
    filesystem, root = storage.resolve(task.folder)
    path = f"{root}/{task.name}"
    records = _write(task, filesystem, path, faults)
    while records is None:
        # all else that is wrong in this part file is found before it is written again
        for source in task.sources:
            if source.slide_id not in faults:
                try:
                    for _ in stored_chunks(source, task.dtype):
                        tick(0)
                except InputError as error:
                    faults[source.slide_id] = error
        records = _write(task, filesystem, path, faults)
    if not records:
        filesystem.delete_file(path)
    return PartResult(task.name, tuple(records), faults)


def stored_chunks(source: PatchSource, dtype: str = "float16") -> Iterator[Chunk]:
    """A slide's chunks as the store holds them: finite embeddings in the store's number format, int32 coordinates.

    Raises:
        InputError: at the first value the format cannot hold (NaN, Inf, float16 beyond 65,504), which would otherwise
            reach the loss as infinity.
    """
    first = 0
    with reading(source.path, source.slide_id):
        for features, known_coords in source.iter_chunks(chunk_rows(source.dim)):
            embeddings, finite = encode(features, dtype)
            if not finite:
                raise _not_storable(features, not_finite(embeddings, dtype), dtype, first)
            yield embeddings, np.full((len(embeddings), 2), -1, np.int32) if known_coords is None else known_coords
            first += len(embeddings)
        if first != source.n_patches:
            what = "the file holds another number of patches than its header says"
            raise unusable(what, f"{source.n_patches} patches", f"{first} patches")


def chunk_rows(dim: int) -> int:
    """Patches a chunk: a multiple of the row group."""
    return max(1, _CHUNK_VALUES // dim // ROW_GROUP_ROWS) * ROW_GROUP_ROWS


def _not_storable(features: np.ndarray, bad: np.ndarray, dtype: str, first: int) -> InputError:
    row, column = (int(i[0]) for i in np.nonzero(bad))
    value = float(features[row, column])
    found = f"{value} at patch {first + row}, dimension {column}"
    if np.isfinite(value):
        limit, fix = largest(dtype), "scale the features, or store them as float32 or bfloat16"
        return unusable(f"features overflow {dtype}", f"values between -{limit:g} and {limit:g}", found, fix)
    return unusable("features hold NaN or Inf", "finite values", found)


def _write(
    task: PartTask, filesystem: pafs.FileSystem, path: str, faults: dict[str, InputError]
) -> list[SlideRecord] | None:
    """Write the slides without a fault and verify them; at a new fault note it and return None: the file is then
    no good.

    Reading and rounding the next chunk, writing this one, and hashing it are done at the same time.
    """
    records: list[SlideRecord] = []
    sources = [source for source in task.sources if source.slide_id not in faults]
    compared_at_once = storage.is_local(filesystem) and task.compression == "none"
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(contextlib.closing(read_ahead(_items(sources, task.dtype), 1)))
        writer = PartWriter(path, task.sources[0].dim, task.compression, task.dtype, filesystem)
        written = stack.enter_context(contextlib.closing(WrittenBytes(path))) if compared_at_once else None
        with writer:
            writer.on_row_group = None if written is None else written.compare
            for slide_id, items in itertools.groupby(made, lambda item: item[0]):
                try:
                    records.append(writer.add_slide(slide_id, _ticking(items)))
                except InputError as error:
                    faults[slide_id] = error
                    return None
        if records:
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


def _verify(task: PartTask, records: Sequence[SlideRecord], written: WrittenBytes | None) -> None:
    """InputError unless the part file, now closed, holds what was to be written to it."""
    reader = PartReader(*storage.resolve(task.folder))
    case, expected, found = None, "the bytes that were written", None
    if written is None:
        wrong = first_wrong(reader, task.name, records, task.sources[0].dim, task.dtype)
        if wrong is not None:
            case, expected, found = wrong
    elif written.wrong is not None:
        case, found = written.wrong, "other bytes"
    else:
        found = written.wrong_offsets(reader, task.name)
    if found is not None:
        raise InputError(
            "a part file does not hold what was written to it",
            file=f"{task.folder}/{task.name}",
            case=case,
            expected=expected,
            found=found,
            fix="check the disk, and ingest again",
        )


class WrittenBytes:
    """Compares row groups of a local, uncompressed part file as they are written.

    Args:
        path: the file, which exists already.
    """

    def __init__(self, path: str) -> None:
        self._file = FileIO(path)
        self._buffer = np.empty(0, dtype=np.uint8)
        self._offsets: list[int] = []
        self._coords: list[np.ndarray] = []
        self.wrong: str | None = None

    def close(self) -> None:
        self._file.close()

    def compare(self, slide_id: str, end: int, embeddings: np.ndarray, coords: np.ndarray) -> None:
        """Compare the row group that ends at byte `end` with its embeddings; keep its coordinates for later.

        The embeddings are the last of a row group's columns. The first slide that differs is `wrong`.
        """
        size = embeddings.nbytes
        if len(self._buffer) < size:
            self._buffer = np.empty(size, dtype=np.uint8)
        self._file.seek(end - size)
        read = self._file.readinto(self._buffer[:size].data)
        same = read == size and pa.py_buffer(self._buffer[:size]).equals(pa.py_buffer(embeddings))
        if not same and self.wrong is None:
            self.wrong = slide_id
        self._offsets.append(end - size)
        self._coords.append(coords)

    def wrong_offsets(self, reader: PartReader, name: str) -> str | None:
        """How the closed file's footer or coordinates differ from what was compared; None where they do not."""
        offsets = reader.places(name)
        if offsets is None or offsets.tolist() != self._offsets:
            return "its footer gives other offsets than were written to"
        for group, coords in enumerate(self._coords):
            packed = np.empty((2, len(coords), 4), dtype=np.uint8)
            found = min(reader.read(name, group, 0, packed[i], column) for i, column in enumerate("xy"))
            if found != len(coords) or not np.array_equal(packed.view("<i4")[:, :, 0].T, coords):
                return f"other coordinates in row group {group}"
        return None


def first_wrong(
    reader: PartReader, name: str, records: Sequence[SlideRecord], dim: int, dtype: str
) -> tuple[str, str, str] | None:
    """Read all of a part file: the first slide that differs, what was expected, and what was found."""
    for record in records:
        digest, found = SlideHash(), 0
        for chunk in read_ahead(reader.chunks(name, record.first_row_group, record.n_patches, dim, dtype), 1):
            digest.update(*chunk)
            found += len(chunk[0])
        if digest.hexdigest() != record.sha256 or found != record.n_patches:
            expected = f"{record.n_patches} patches, sha256 {record.sha256}"
            return record.slide_id, expected, f"{found} patches, sha256 {digest.hexdigest()}"
        tick(0)
    return None
