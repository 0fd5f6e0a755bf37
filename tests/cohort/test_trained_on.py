"""Stores of the layout before are trained on, and complete cases are used where some lack a modality."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cohort_files import make_sources

from gimp_ray import pipeline
from gimp_ray.config_files import load_config
from gimp_ray.errors import InputError
from tests.conftest import TINY

OLD = Path(__file__).parents[1] / "fixtures" / "store_layout_2"
SHORT = {"train.epochs": 1, "genes.train.epochs": 1, "finetune.train.epochs": 1, "window.length": 16}


@pytest.mark.parametrize("name", ["A", "merged"])
def test_a_store_of_the_layout_before_is_trained_on(tmp_path: Path, name: str) -> None:
    store = Path(shutil.copytree(OLD, tmp_path / "old")) / name
    given = {"store": str(store), "run": str(tmp_path / "run"), **SHORT}
    run = pipeline.run_all(load_config(None, given, base=TINY))
    assert all(run.stage_done(stage) for stage in ("genes", "pretrain", "finetune"))
    with pytest.raises(InputError, match="no checksums to verify"):
        pipeline.pretrain_genes(
            load_config(None, {**given, "run": str(tmp_path / "b"), "feed.verify": True}, base=TINY)
        )


def test_a_stage_uses_the_cases_that_have_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [f"{kind}{i}" for kind in "AB" for i in range(8)]
    sources = make_sources(tmp_path, case_ids=cases)
    sources.write_genes([case for case in cases if case not in ("A3", "B4")])
    sources.rows[5][2] = ""
    sources.write_cases()
    sources.ingest(incomplete="keep")
    given = {"store": str(sources.out), "run": str(tmp_path / "run"), **SHORT, "feed.verify": True}
    given |= {"genes.fragments": 5, "genes.groups": 1}
    run = pipeline.run_all(load_config(None, given, base=TINY))
    assert run.stage_done("finetune")
    told = capsys.readouterr().out
    assert "stage 'pretrain' leaves out 3 cases without a label, patches or expression" in told
