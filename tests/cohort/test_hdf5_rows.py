"""Rows read by their places in an HDF5 file are those the library gives, or the library is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gimp_ray.ingest.patches.hdf5 import DatasetRows

VALUES = np.random.default_rng(0).standard_normal((1000, 24)).astype(np.float32)


def _write(path: Path, values: np.ndarray = VALUES, **how: Any) -> Path:
    with h5py.File(path, "w", **how.pop("file", {})) as file:
        file.create_dataset("features", data=values, **how)
    return path


def _check(path: Path, start: int, stop: int, by_offset: bool) -> None:
    with h5py.File(path) as file, DatasetRows(file["features"], path) as rows:
        assert rows.by_offset == by_offset
        got, dataset = rows.read(start, stop), file["features"]
        expected = dataset[0, start:stop] if dataset.ndim == 3 else dataset[start:stop]
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


PLAIN: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "one a chunk": {"chunks": (1, 24)},
    "extensible": {"chunks": (32, 24), "maxshape": (None, 24)},
    "last chunk cut": {"chunks": (999, 24)},
    "chunk larger than all": {"chunks": (4096, 24), "maxshape": (None, 24)},
    "(1, N, D)": {"values": VALUES[None]},
    "(1, N, D) in chunks": {"values": VALUES[None], "chunks": (1, 7, 24)},
    "float64": {"values": VALUES.astype(np.float64), "chunks": (5, 24)},
    "float16": {"values": VALUES.astype(np.float16)},
    "big-endian": {"values": VALUES.astype(">f4")},
    "newest format": {"file": {"libver": "latest"}, "chunks": (3, 24), "maxshape": (None, 24)},
}


@pytest.mark.parametrize("how", PLAIN.values(), ids=PLAIN)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bounds=st.tuples(st.integers(0, 999), st.integers(1, 1000)).filter(lambda b: b[0] < b[1]))
def test_plain_values_are_read_by_offset(tmp_path: Path, how: dict[str, Any], bounds: tuple[int, int]) -> None:
    path = tmp_path / "a.h5"
    if not path.exists():
        _write(path, **how)
    _check(path, *bounds, by_offset=True)


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "gzip", "chunks": (100, 24)},
        {"shuffle": True, "chunks": (100, 24)},
        {"fletcher32": True, "chunks": (100, 24)},
        {"chunks": (100, 12)},
        {"file": {"userblock_size": 512}},
    ],
    ids=str,
)
def test_other_values_go_through_the_library(tmp_path: Path, how: dict[str, Any]) -> None:
    _check(_write(tmp_path / "a.h5", **how), 17, 903, by_offset=False)


def test_a_virtual_data_set_and_one_with_missing_chunks_go_through_the_library(tmp_path: Path) -> None:
    _write(tmp_path / "a.h5")
    layout = h5py.VirtualLayout((1000, 24), np.float32)
    layout[:] = h5py.VirtualSource(tmp_path / "a.h5", "features", shape=(1000, 24))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    _check(tmp_path / "b.h5", 0, 1000, by_offset=False)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("features", (1000, 24), "f4", chunks=(10, 24), fillvalue=3)[100:200] = VALUES[:100]
    _check(tmp_path / "c.h5", 0, 1000, by_offset=False)


def test_chunks_written_alternately_and_out_of_order(tmp_path: Path) -> None:
    """As appending to features and coordinates in turn leaves them, and as parallel writers do."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (1000, 24), "f4", chunks=(10, 24))
        between = file.create_dataset("between", (1000, 3000), "f4", chunks=(10, 3000))
        for i in np.random.default_rng(1).permutation(100):
            features[10 * i : 10 * i + 10] = VALUES[10 * i : 10 * i + 10]
            if i % 3:
                between[10 * i : 10 * i + 10] = i
    for start, stop in ((0, 1000), (5, 995), (333, 334)):
        _check(path, start, stop, by_offset=True)


def test_offsets_that_do_not_give_what_the_library_gives_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.h5", chunks=(10, 24))
    true = h5py.h5d.DatasetID.chunk_iter

    class Shifted:
        def __init__(self, chunk: Any) -> None:
            self.chunk_offset, self.size = chunk.chunk_offset, chunk.size
            self.byte_offset = chunk.byte_offset + 4

    with h5py.File(path) as file:
        dataset = file["features"]

        class Id:
            def __getattr__(self, name: str) -> Any:
                return getattr(dataset.id, name)

            def chunk_iter(self, note: Any) -> None:
                true(dataset.id, lambda chunk: note(Shifted(chunk)))

        class Wrapped:
            id = Id()

            def __getattr__(self, name: str) -> Any:
                return getattr(dataset, name)

            def __getitem__(self, key: Any) -> Any:
                return dataset[key]

        with DatasetRows(Wrapped(), path) as rows:  # type: ignore[arg-type]
            assert not rows.by_offset
            np.testing.assert_array_equal(rows.read(3, 500), VALUES[3:500])


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.h5")
    with h5py.File(path) as file, DatasetRows(file["features"], path) as rows:
        offset = file["features"].id.get_offset()
        with path.open("r+b") as stream:
            stream.truncate(offset + 500 * 96)
        np.testing.assert_array_equal(rows.read(0, 500), VALUES[:500])
        with pytest.raises(OSError, match="the file ends at byte"):
            rows.read(400, 501)
