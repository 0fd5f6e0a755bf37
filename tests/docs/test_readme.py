"""The README's examples run, in order, in an empty folder, and make what they promise.

The slow tier, for its length: nothing in the tour starts Ray.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

README = Path(__file__).parents[2] / "README.md"
# not run here: they need a checkout, the user's files or a cluster
UNTESTED = [
    ["make install", "make demo", "make test"],
    ["gimp ingest --patches FEATURES"],
    ["ray up cluster.yaml", "ray dashboard cluster.yaml", "ray job submit"],
    ["gimp run --store STORE", "gimp run --store STORE", "gimp table table1 --store", "gimp sweep --config sweep.yaml"],
]
PROMISED = {
    "cohort": ["patches/h5_files", "genes.tsv", "cases.csv"],
    "store": ["manifest.json", "patches/part-00000.parquet"],
    "runs/first": [
        *("config.yaml", "environment.json", "run.json", "summary.md"),
        *("genes/metrics.jsonl", "pretrain/tensorboard", "finetune/checkpoints"),
        *("genes.safetensors", "genes.json", "pretrain.safetensors", "pretrain.json"),
        *("finetune.safetensors", "finetune.json"),
        *("evaluation/predictions.parquet", "evaluation/reference_predictions.parquet"),
        *("evaluation/metrics.json", "evaluation/embeddings.parquet"),
        *("figures/confusion_matrix.png", "figures/tsne_finetune.png", "figures/curves_pretrain.png"),
    ],
    ".": ["embeddings.parquet", "runs/second/pretrain.safetensors"],
}


def _blocks() -> list[tuple[str, str]]:
    """(tag, text) of every fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _run(tag: str, text: str, folder: Path) -> None:
    # the command of this environment, as after activation
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", text] if tag == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README was followed from top to bottom."""
    folder = tmp_path_factory.mktemp("tour")
    for tag, text in _blocks():
        if tag in ("sh", "python"):
            _run(tag, text, folder)
    return folder


def test_only_the_named_blocks_are_untested() -> None:
    untested = [text for tag, text in _blocks() if tag not in ("sh", "python")]
    assert len(untested) == len(UNTESTED)
    for text, begins in zip(untested, UNTESTED, strict=True):
        for line, begin in zip(text.strip().splitlines(), begins, strict=True):
            assert line.startswith(begin)


@pytest.mark.ray
def test_the_tour_makes_what_the_readme_promises(toured: Path) -> None:
    names = [f"{folder}/{name}" for folder, inside in PROMISED.items() for name in inside]
    assert [name for name in names if not (toured / name).exists()] == []
    assert "genes alone" in (toured / "runs/first/summary.md").read_text()


@pytest.mark.ray
def test_every_patient_of_the_tour_is_embedded_once(toured: Path) -> None:
    cases = pq.read_table(toured / "embeddings.parquet")["case_id"].to_pylist()
    assert len(cases) == len(set(cases)) == 30


@pytest.mark.ray
def test_the_stopped_and_continued_run_of_the_readme_ends_in_the_same_bits(toured: Path) -> None:
    first, second = (toured / "runs" / name / "pretrain.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
