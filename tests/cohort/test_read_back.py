"""What is on the disk is compared with what was to be written; steps of an ingest run beside each other in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_files import Sources, features, grid, write_h5
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.ingest.patches import inspect_patches
from gimp_ray.ingest.patches.write import WrittenBytes, first_wrong, stored_chunks
from gimp_ray.io.ahead import read_ahead
from gimp_ray.store.part_writer import PartWriter
from gimp_ray.store.parts import PartReader


def _write(folder: Path, compression: str = "none") -> tuple[WrittenBytes, list[object]]:
    """A part file of two slides; what was compared of it, and its records."""
    path = str(folder / "part.parquet")
    with PartWriter(path, 8, compression) as writer:
        written = WrittenBytes(path)
        writer.on_row_group = written.compare if compression == "none" else None
        chunks = [(features(n, seed=n).astype(np.float16), grid(n).astype(np.int32)) for n in (1024, 300)]
        records: list[object] = [writer.add_slide("a", chunks), writer.add_slide("b", chunks[1:])]
    return written, records


def test_a_sound_part_file_is_as_it_was_to_be(tmp_path: Path) -> None:
    written, records = _write(tmp_path)
    reader = PartReader(pafs.LocalFileSystem(), str(tmp_path))
    assert (written.wrong, written.wrong_offsets(reader, "part.parquet")) == (None, None)
    assert first_wrong(reader, "part.parquet", records, 8, "float16") is None  # type: ignore[arg-type]


def test_other_coordinates_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = PartWriter._table
    monkeypatch.setattr(PartWriter, "_table", lambda self, e, c: table(self, e, c + (len(c) < 512)))
    written, _ = _write(tmp_path)
    reader = PartReader(pafs.LocalFileSystem(), str(tmp_path))
    assert written.wrong is None, "the embeddings are as they were to be"
    assert written.wrong_offsets(reader, "part.parquet") == "other coordinates in row group 2"


def test_a_footer_that_leads_elsewhere_is_noticed(tmp_path: Path) -> None:
    written, _ = _write(tmp_path)
    reader = PartReader(pafs.LocalFileSystem(), str(tmp_path))
    written._offsets[1] += 16
    assert "other offsets" in (written.wrong_offsets(reader, "part.parquet") or "")


def test_one_changed_bit_is_noticed_in_a_row_group_as_it_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "part.parquet")
    embeddings, coords = features(600).astype(np.float16), grid(600).astype(np.int32)
    with PartWriter(path, 8) as writer:
        written = WrittenBytes(path)

        def spoil(slide_id: str, end: int, rows: np.ndarray, xy: np.ndarray) -> None:
            if len(rows) < 512:
                with Path(path).open("r+b") as stream:
                    stream.seek(end - 1)
                    stream.write(bytes([rows.view(np.uint8).reshape(-1)[-1] ^ 1]))
            written.compare(slide_id, end, rows, xy)

        writer.on_row_group = spoil
        writer.add_slide("a", [(embeddings[:512], coords[:512])])
        assert written.wrong is None
        writer.add_slide("b", [(embeddings[512:], coords[512:])])
    assert written.wrong == "b"


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_part_file_that_is_hashed_names_the_first_slide_that_differs(tmp_path: Path, compression: str) -> None:
    _, records = _write(tmp_path, compression)
    reader = PartReader(pafs.LocalFileSystem(), str(tmp_path))
    assert first_wrong(reader, "part.parquet", records, 8, "float16") is None  # type: ignore[arg-type]
    records[1] = replace(records[1], sha256="0" * 64)  # type: ignore[type-var]
    wrong = first_wrong(reader, "part.parquet", records, 8, "float16")  # type: ignore[arg-type]
    assert wrong is not None and wrong[0] == "b"


def test_a_file_that_yields_fewer_patches_than_its_header_says_is_refused(tmp_path: Path) -> None:
    source = inspect_patches(write_h5(tmp_path / "a.h5", features(700), grid(700)), "a")
    short = replace(source, chunks=lambda s, rows: iter([next(source.chunks(source, 512))]))
    with pytest.raises(InputError, match="another number of patches than its header says") as caught:
        list(stored_chunks(short))
    assert (caught.value.expected, caught.value.found) == ("700 patches", "512 patches")


def test_slides_of_one_part_file_are_written_in_order_whatever_runs_ahead(sources: Sources) -> None:
    store = sources.store()
    for slide_id, bag in sources.bags.items():
        np.testing.assert_array_equal(store.read_bag(slide_id), bag.astype(np.float16))
        np.testing.assert_array_equal(store.read_coords(slide_id), sources.coords[slide_id])


def test_items_made_ahead_come_in_order_one_at_a_time_in_a_thread() -> None:
    made: list[int] = []

    def items() -> Iterator[tuple[int, str]]:
        for i in range(5):
            made.append(i)
            yield i, threading.current_thread().name

    for i, name in read_ahead(items(), 1):
        assert len(made) <= i + 2 and name.startswith("gimp-ahead")
    assert made == [0, 1, 2, 3, 4]


def test_what_making_an_item_raises_comes_where_the_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    stream = read_ahead(items(), 1)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="the second"):
        next(stream)


def test_a_stream_that_is_closed_makes_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    stream = read_ahead(items(), 1)
    next(stream)
    stream.close()
    assert len(made) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gimp-ahead")]
