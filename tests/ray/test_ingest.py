"""Ingest as a Ray Data job: the same store as local processes make, and the same refusals."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from gimp_ray.errors import InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.work import RayWork
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _ingest(sources: Path, out: Path, on_cluster: bool, strict: bool = True) -> Manifest:
    options = IngestOptions(progress=False, gene_unit="FPKM", strict=strict)
    where = {"make_work": functools.partial(RayWork, None)} if on_cluster else {}
    return ingest_cohort(
        patches=sources / "patches", genes=sources / "genes.tsv", cases=sources / "cases.csv", out=out,
        options=options, **where,  # type: ignore[arg-type]
    ).manifest  # fmt: skip


def test_the_cluster_makes_the_same_store(
    cohort_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # several part files, so that several tasks run
    monkeypatch.setattr("gimp_ray.ingest.patches.write.SMALLEST_PART_BYTES", 20_000)
    here = _ingest(cohort_sources, tmp_path / "here", on_cluster=False)
    there = _ingest(cohort_sources, tmp_path / "there", on_cluster=True)
    assert len(list((tmp_path / "there" / "patches").iterdir())) > 1
    assert there.fingerprint == here.fingerprint
    assert check_store(tmp_path / "there", deep=True).ok


def test_a_refusal_comes_back_whole(cohort_sources: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(cohort_sources, sources)
    bad = sorted((sources / "patches").rglob("*.h5"))[0]
    bad.write_bytes(b"not an h5 file")
    with pytest.raises(InputError, match="strict") as caught:
        _ingest(sources, tmp_path / "out", on_cluster=True)
    assert caught.value.case == bad.stem and caught.value.file == str(bad) and caught.value.fix
    assert not (tmp_path / "out").exists()
