"""Whole runs on Ray Train with two workers. Few fits, each proving much, because one costs 20 to 40 s."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gimp_ray import pipeline
from gimp_ray.config_files import load_config
from gimp_ray.errors import GimpError
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def gauges() -> set[tuple[str, str]]:
    """Names and stages of our gauges that Ray showed to Prometheus while `carried` ran."""
    return set()


@pytest.fixture(scope="module")
def carried(
    cluster: None, gauges: set[tuple[str, str]], store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """All stages in one go on two workers, windows carried by Ray Data."""
    with exported(gauges):
        return pipeline.run_all(_config(store_path, tmp_path_factory.mktemp("carried") / "run", "ray_data"))


@contextlib.contextmanager
def exported(seen: set[tuple[str, str]]) -> Iterator[None]:
    """Ask the node for its metrics while the block runs, as Prometheus does."""
    import ray

    node, over = ray.nodes()[0], threading.Event()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def look() -> None:
        while not over.wait(0.25):
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
                text = answer.read().decode()
                seen.update(re.findall(r'^ray_(gimp_\w+)\{.*\bstage="(\w+)"', text, re.MULTILINE))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_prometheus_gets_loss_speed_and_waits_of_every_stage(carried: RunFolder, gauges: set[tuple[str, str]]) -> None:
    names = ("gimp_loss", "gimp_cases_per_s", "gimp_data_wait_share")
    assert gauges == {(name, stage) for name in names for stage in ("genes", "pretrain", "finetune")}


@pytest.fixture(scope="module")
def continued(cluster: None, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same, with windows read in the workers, stopped after the first epoch of pre-training and continued."""
    config = _config(store_path, tmp_path_factory.mktemp("continued") / "run", "worker")
    stopped = pipeline.run_all(changed(config, train__stop_after=1))
    assert stopped.stage_done("genes") and not stopped.stage_done("pretrain")
    return pipeline.run_all(config)


def _config(store: Path, run: Path, read_in: str):
    return load_config(
        None, {"store": str(store), "run": str(run), "train.workers": 2, "feed.read_in": read_in}, base=TINY
    )


@pytest.mark.parametrize("stage", ["genes", "pretrain", "finetune"])
def test_stopped_and_continued_with_reads_at_the_edge_equals_one_go_with_reads_in_ray_data(
    carried: RunFolder, continued: RunFolder, stage: str
) -> None:
    assert metrics(carried, stage) == metrics(continued, stage)
    assert same_weights(carried.model_file(stage), continued.model_file(stage))


def test_all_cases_are_predicted_once(continued: RunFolder) -> None:
    table = pq.read_table(continued.evaluation / "predictions.parquet").to_pylist()
    assert len(table) == 20 == len({row["case_id"] for row in table})
    assert {row["part"] for row in table} == {"train", "val", "test"}
    assert all(row["prob_LUAD"] + row["prob_LUSC"] == pytest.approx(1) for row in table)


def test_the_run_folder_is_complete(continued: RunFolder) -> None:
    figures = {file.name for file in continued.figures.iterdir()}
    assert {"confusion_matrix.png", "tsne_pretrain.png", "tsne_finetune.png"} <= figures
    summary = (continued.path / "summary.md").read_text()
    assert "genes alone" in summary and "mean-pooled patches" in summary
    record = continued.record()
    assert [attempt["status"] for attempt in record["attempts"]] == ["stopped", "done"]
    config = load_config(continued.config_file)
    assert record["store"]["fingerprint"] == CohortStore.open(config.store or "").fingerprint
    rows = json.loads((continued.evaluation / "metrics.json").read_text())["rows"]
    assert [row["method"].split(" ")[0] for row in rows] == ["GiMP", "genes", "mean-pooled"]


def test_the_log_has_every_step_once_and_the_share_of_active_triplets(continued: RunFolder) -> None:
    lines = [line for line in read_lines(continued.metrics_log("pretrain")) if line["kind"] == "step"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(0 <= line["active_triplets"] <= 1 for line in lines)


def test_a_refusal_of_a_worker_ends_the_run_and_is_not_tried_again(cluster: None, tiny, tmp_path: Path) -> None:
    config = changed(tiny, run=str(tmp_path / "run"), genes__encoder="none", train__workers=1, train__max_failures=3)
    with pytest.raises(GimpError, match=r"is not finite in stage 'pretrain'"):
        pipeline.pretrain(changed(config, train__lr=1e30, train__clip_norm=0))
    (attempt,) = RunFolder(config.run or "").record()["attempts"]
    assert (
        attempt["status"].startswith("failed") and "is not finite" in attempt["status"] and not attempt.get("restarts")
    )
