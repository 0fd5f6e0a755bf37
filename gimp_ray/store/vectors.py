"""Reading the values of a vector modality by case: only the row groups that hold the cases asked for.

Each row group is decoded once as far as they fit in `KEPT_BYTES`: training draws its cases in another order every
epoch, and a mini-batch touches as many row groups as it has cases.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import storage

# of a process: 1,100 cases of 60,483 genes
KEPT_BYTES = 256 << 20


class VectorReader:
    """Reads rows of a table of values (`expression.parquet`); threads may share it."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._lock = threading.Lock()
        self._source: Any = None
        self._footer: pq.FileMetaData | None = None
        self._starts = np.zeros(0, dtype=np.int64)
        self._kept: dict[int, tuple[list[str], np.ndarray]] = {}
        self._room = KEPT_BYTES

    def read(self, case_ids: Sequence[str], rows: Sequence[int], num_features: int) -> np.ndarray:
        """Values of `case_ids`, which are at `rows` of the table: (n, num_features) float32, in the order given."""
        file = self._open()
        values = np.empty((len(rows), num_features), dtype=np.float32)
        wanted = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(groups, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            if not len(some):
                continue
            group = int(groups[some[0]])
            ids, block = self._row_group(file, group, num_features)
            for position in some.tolist():
                row = int(wanted[position] - self._starts[group])
                # keyed by id: the row is where to look, the id decides
                if row >= len(ids) or ids[row] != case_ids[position]:
                    raise self._damaged(f"case {case_ids[position]} in row {wanted[position]}")
                values[position] = block[row]
        return values

    def _open(self) -> pq.ParquetFile:
        try:
            local = storage.is_local(self._filesystem)
            with self._lock:
                if self._footer is None:
                    self._source = pa.memory_map(self._path) if local else self._filesystem.open_input_file(self._path)
                    footer = pq.ParquetFile(self._source).metadata
                    sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
                    self._starts, self._footer = np.cumsum([0, *sizes])[:-1], footer
            return pq.ParquetFile(
                self._source, metadata=self._footer, pre_buffer=not local, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(
                "a readable Parquet table", str(error), storage.advice(self._filesystem, error)
            ) from error

    def _row_group(self, file: pq.ParquetFile, group: int, num_features: int) -> tuple[list[str], np.ndarray]:
        """The case ids and the (rows, num_features) float32 values of a row group."""
        kept = self._kept.get(group)
        if kept is None:
            kept = self._decoded(file, group, num_features)
            with self._lock:
                if group not in self._kept and kept[1].nbytes <= self._room:
                    self._kept[group] = kept
                    self._room -= kept[1].nbytes
        return kept

    def _decoded(self, file: pq.ParquetFile, group: int, num_features: int) -> tuple[list[str], np.ndarray]:
        try:
            table = file.read_row_group(group, columns=["case_id", "values"], use_threads=False).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(f"row group {group}", str(error), storage.advice(self._filesystem, error)) from error
        packed = table["values"].chunk(0)
        if packed.type != pa.binary(4 * num_features):
            raise self._damaged(f"{num_features} values a case", str(packed.type))
        flat = np.frombuffer(packed.buffers()[1], dtype="<f4")
        block = flat[packed.offset * num_features : (packed.offset + len(packed)) * num_features].reshape(
            -1, num_features
        )
        return table["case_id"].to_pylist(), block

    def _damaged(self, expected: str, found: str | None = None, fix: str | None = None) -> InputError:
        fix = fix or "`gimp check STORE` lists what is damaged; copy the store again or ingest the sources again"
        file = storage.display_uri(self._filesystem, self._path)
        return InputError("the store is damaged", file=file, expected=expected, found=found, fix=fix)
