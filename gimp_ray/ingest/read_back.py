"""Comparing a part file with what was to be written to it.

On a local disk, uncompressed, every row group is read back right after it was written, while the processor still has
it, and compared byte by byte; when the file is closed its footer must lead to the places compared. A compressed part,
and one in object storage, is read back whole afterwards and hashed. Left out: flushing the disk's own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO

import numpy as np
import pyarrow as pa

from gimp_ray.ingest.ahead import ahead
from gimp_ray.ingest.work import tick
from gimp_ray.store.parts import PartReader, SlideHash, SlideRecord


class WrittenBytes:
    """Compares row groups of a local, uncompressed part file as they are written.

    Args:
        path: the file, which exists already.
    """

    def __init__(self, path: str) -> None:
        self._file = FileIO(path)
        self._room = np.empty(0, dtype=np.uint8)
        self._places: list[int] = []
        self._coords: list[np.ndarray] = []
        self.wrong: str | None = None

    def close(self) -> None:
        self._file.close()

    def compare(self, slide_id: str, end: int, embeddings: np.ndarray, coords: np.ndarray) -> None:
        """Compare the row group that ends at byte `end` with its embeddings; keep its coordinates for later.

        The embeddings are the last of a row group's columns. The first slide that is not as it was to be is `wrong`.
        """
        size = embeddings.nbytes
        if len(self._room) < size:
            self._room = np.empty(size, dtype=np.uint8)
        self._file.seek(end - size)
        read = self._file.readinto(self._room[:size].data)
        same = read == size and pa.py_buffer(self._room[:size]).equals(pa.py_buffer(embeddings))
        if not same and self.wrong is None:
            self.wrong = slide_id
        self._places.append(end - size)
        self._coords.append(coords)

    def wrong_places(self, reader: PartReader, name: str) -> str | None:
        """What in the closed file does not lead to the places compared, or is another coordinate; None as a rule."""
        offsets = reader.places(name)
        if offsets is None or offsets.tolist() != self._places:
            return "its footer speaks of other places than were written to"
        for group, coords in enumerate(self._coords):
            packed = np.empty((2, len(coords), 4), dtype=np.uint8)
            found = min(reader.read(name, group, 0, packed[i], column) for i, column in enumerate("xy"))
            if found != len(coords) or not np.array_equal(packed.view("<i4")[:, :, 0].T, coords):
                return f"other coordinates in row group {group}"
        return None


def first_wrong(
    reader: PartReader, name: str, records: Sequence[SlideRecord], dim: int, dtype: str
) -> tuple[str, str, str] | None:
    """Read all of a part file: the first slide that is not as it was to be, what was expected, and what was found."""
    for record in records:
        digest, found = SlideHash(), 0
        for chunk in ahead(reader.chunks(name, record.first_row_group, record.n_patches, dim, dtype)):
            digest.update(*chunk)
            found += len(chunk[0])
        if digest.hexdigest() != record.sha256 or found != record.n_patches:
            expected = f"{record.n_patches} patches, sha256 {record.sha256}"
            return record.slide_id, expected, f"{found} patches, sha256 {digest.hexdigest()}"
        tick(0)
    return None
