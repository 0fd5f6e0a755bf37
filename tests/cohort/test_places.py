"""Stores at other places than a local path: fsspec's protocols, file systems that are given, joined names."""

from __future__ import annotations

import pickle
import uuid

import fsspec
import numpy as np
import pytest
from cohort_files import Sources
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io import storage
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store


def _ingest(sources: Sources, out: str) -> CohortStore:
    ingest_cohort(
        patches=sources.patches, genes=sources.genes, cases=sources.cases, out=out,
        options=IngestOptions(workers=1, progress=False),
    )  # fmt: skip
    return CohortStore.open(out)


def test_a_store_in_a_file_system_of_fsspec_is_that_of_a_disk(sources: Sources) -> None:
    place = f"memory://{uuid.uuid4()}/store"
    there, here = _ingest(sources, place), _ingest(sources, str(sources.out))
    assert there.fingerprint == here.fingerprint
    for slide_id in sources.bags:
        np.testing.assert_array_equal(there.read_bag(slide_id), here.read_bag(slide_id))
        np.testing.assert_array_equal(there.read_coords(slide_id, 3, 5), here.read_coords(slide_id, 3, 5))
    np.testing.assert_array_equal(there.read_genes(["B1"]), here.read_genes(["B1"]))
    assert check_store(place, deep=True).ok
    again = ingest_cohort(
        patches=sources.patches, genes=sources.genes, cases=sources.cases, out=place,
        options=IngestOptions(workers=1, progress=False),
    )  # fmt: skip
    assert any("nothing is new" in note for note in again.notes)


@pytest.mark.parametrize("kind", ["pyarrow", "fsspec"])
def test_a_file_system_may_be_given(sources: Sources, kind: str) -> None:
    sources.ingest()
    root = str(sources.out.parent)
    given = pafs.SubTreeFileSystem(root, pafs.LocalFileSystem()) if kind == "pyarrow" else fsspec.filesystem("file")
    path = "STORE" if kind == "pyarrow" else str(sources.out)
    store = pickle.loads(pickle.dumps(CohortStore.open(path, filesystem=given)))
    np.testing.assert_array_equal(store.read_bag("A0-DX1"), sources.bags["A0-DX1"].astype(np.float16))


def test_a_protocol_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be used") as caught:
        CohortStore.open("zoo://bucket/store")
    assert caught.value.file == "zoo://bucket/store" and caught.value.fix


@pytest.mark.parametrize(
    ("place", "name", "joined"),
    [
        ("/a/b", "c.parquet", "/a/b/c.parquet"),
        ("/a/b", "../c/patches/p", "/a/c/patches/p"),
        ("s3://a/b", "../c/p", "s3://a/c/p"),
        ("s3://a/b?region=x", "c", "s3://a/b/c?region=x"),
        ("/a/b", "s3://c/d", "s3://c/d"),
        ("/a/b", "/c", "/c"),
    ],
)
def test_names_are_joined_to_places(place: str, name: str, joined: str) -> None:
    assert storage.join(place, name) == joined


def test_a_file_is_created_once(sources: Sources) -> None:
    place = str(sources.root / "lock")
    assert storage.create(place, b"a") and not storage.create(place, b"b")
    assert (sources.root / "lock").read_bytes() == b"a"
