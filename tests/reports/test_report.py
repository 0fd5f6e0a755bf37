"""The report of a run folder: complete from a finished run, honest from an unfinished one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.image import imread

from gimp_ray.errors import InputError
from gimp_ray.reports import write_report

CLASSES = ["LUAD", "LUSC"]
PARTS = {"train": 30, "val": 8, "test": 12}


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.05}


def row(method: str, value: float) -> dict[str, Any]:
    figures = {name: interval(value) for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}
    return {"method": method, **figures, "recall": {name: interval(value) for name in CLASSES}}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run, written by hand as the pipeline writes it."""
    run = tmp_path / "my run"
    config = {
        "seed": 7,
        "split": {"scheme": "kfold", "fold": 2, "transductive": False},
        "train": {"epochs": 15, "lr": 1e-4, "workers": 2, "precision": "fp32"},
        "window": {"length": 1024},
        "mask": {"ratio": 0.5, "reduction": "mean"},
        "triplet": {"margin": 0.8, "mining": "batch_hard"},
    }
    record = {
        "store": {"cases": 50, "slides": 61, "patches": 123456, "genes": 2000, "dim": 1024, "fingerprint": "abc123"},
        "stages": {"pretrain": {"seconds": 3725.0, "status": "done"}},
        "attempts": [{"command": "gimp run --config a.yaml", "started": "2026-01-02T03:04:05", "status": "done"}],
    }
    methods = {"GiMP": 0.875, "genes alone (logistic regression)": 0.8125, "mean-pooled patches + MLP": 0.625}
    metrics = {
        "part": "test",
        "scheme": "kfold",
        "fold": 2,
        "n_cases": 12,
        "classes": CLASSES,
        "transductive": False,
        "resamples": 1000,
        "rows": [row(method, value) for method, value in methods.items()],
    }
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps({"python": "3.11.9", "libraries": {"torch": "2.9.0"}}))
    (run / "run.json").write_text(json.dumps(record))
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    write_log(
        run, "pretrain", epochs=3, figures={"loss": 1.0, "loss_rec": 0.6, "loss_tri": 0.4, "active_triplets": 0.5}
    )
    write_log(run, "finetune", epochs=4, figures={"loss": 0.7, "accuracy": 0.8})
    write_tables(run)
    return run


@pytest.fixture
def without_figures(run_dir: Path) -> Path:
    """The same run with nothing to draw, for tests of words alone: figures take most of a report's time."""
    for file in (*run_dir.glob("*/metrics.jsonl"), *run_dir.glob("evaluation/*.parquet")):
        file.unlink()
    return run_dir


def write_log(run: Path, stage: str, epochs: int, figures: dict[str, float]) -> None:
    lines = []
    for epoch in range(epochs):
        common = {"time": 1e9 + epoch, "stage": stage, "epoch": epoch, "step": epoch + 1}
        lines.append({**common, "kind": "step", "lr": 1e-4, **figures})
        lines.append({**common, "kind": "epoch", "seconds": 20.25, **figures})
        lines.append({**common, "kind": "validation", "loss": 0.9, "accuracy": 0.75})
    (run / stage).mkdir()
    (run / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn": ')


def write_tables(run: Path, width: int = 6) -> None:
    rng = np.random.default_rng(0)
    parts = [part for part, count in PARTS.items() for _ in range(count)]
    labels = [CLASSES[i % 2] for i in range(len(parts))]
    flat = pa.array(rng.normal(size=len(parts) * width).astype(np.float32))
    columns = {"case_id": [f"c{i}" for i in range(len(parts))], "part": parts, "label": labels}
    vectors = pa.FixedSizeListArray.from_arrays(flat, width)
    pq.write_table(pa.table({**columns, "cls_pat": vectors}), run / "evaluation" / "embeddings.parquet")
    predicted = pa.table({**columns, "predicted": labels[::-1]})
    pq.write_table(predicted, run / "evaluation" / "predictions.parquet")


def test_a_finished_run_gets_a_whole_page(run_dir: Path) -> None:
    summary = write_report(run_dir)
    assert summary == run_dir / "summary.md"
    text = summary.read_text()
    for section in (
        "What was run",
        "Data",
        "Results",
        "Figures",
        "Time",
        "Settings",
        "Environment",
        "How to run it again",
    ):
        assert f"\n## {section}\n" in text
    assert "| GiMP | 0.875 [0.775, 0.925] |" in text
    assert "| genes alone (logistic regression) | 0.812 [" in text and "| mean-pooled patches + MLP | 0.625 [" in text
    assert "fold 2 (kfold), n = 12" in text and "1000 bootstrap resamples" in text
    assert "Recall by class" in text and "| method | LUAD | LUSC |" in text
    assert "123,456" in text and "| test cases | 12 (LUAD 6, LUSC 6) |" in text
    assert "| pretrain | 3 | 1 h 2 min | done |" in text
    assert "| finetune | 4 | 1 min 21 s | not finished |" in text  # 4 x 20.25 s
    assert "gimp run --config a.yaml" in text and "--config '" in text  # the folder's name has a space
    assert "torch | 2.9.0" in text and "abc123" in text
    assert "ransductive" not in text


def test_the_page_says_in_how_many_attempts_the_result_took(without_figures: Path) -> None:
    alone = "The run took one attempt, with no restart of workers. No training step was skipped."
    assert alone in write_report(without_figures).read_text()
    file = without_figures / "run.json"
    died = {"time": "2026-01-02T03:04:05", "reason": "killed"}
    attempts = [
        {"status": "running", "restarts": [died, died]},
        {"status": "preempted"},
        {"status": "failed: GimpError: no", "restarts": [died]},
        {"status": "done", "command": "gimp run"},
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attempts": attempts}))
    for name, text in (("finetune.json", '{"skipped_batches": 2}'), ("finetune.safetensors", "w")):
        (without_figures / name).write_text(text)
    skipped = [{"epoch": 0, "step": i, "kind": "skipped", "skipped": i} for i in (1, 2, 3)]
    (without_figures / "pretrain/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
    text = write_report(without_figures).read_text()
    assert "took 4 attempts (1 ended without a recorded status, 1 preempted, 1 failed, 1 done)" in text
    assert "with 3 restarts of its workers" in text
    assert "Training steps skipped because loss or gradient was not finite: pretrain 3, finetune 2." in text


def test_what_differs_from_the_paper_stands_out(without_figures: Path) -> None:
    text = write_report(without_figures).read_text()
    assert "| window length L, patches | 6000 | **1024** | `window.length` |" in text
    assert "| share of the window that is masked | 0.5 | 0.5 | `mask.ratio` |" in text
    assert "| which triplets count | batch_hard | `triplet.mining` |" in text
    assert "`model.landmarks`" not in text  # the config does not have it


def test_every_figure_exists_and_is_linked(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    written = sorted(path.name for path in (run_dir / "figures").iterdir())
    assert written == ["confusion_matrix.png", "curves_finetune.png", "curves_pretrain.png", "tsne_finetune.png"]
    for name in written:
        assert f"](figures/{name})" in text
        pixels = imread(run_dir / "figures" / name)
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02  # not a blank page


def test_a_transductive_run_is_named_in_every_caption(run_dir: Path) -> None:
    file = run_dir / "evaluation" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transductive": True}))
    text = write_report(run_dir).read_text()
    captions = [line for line in text.splitlines() if "bootstrap resamples" in line]
    assert len(captions) == 2 and all("Transductive run" in line for line in captions)
    assert text.splitlines()[2].startswith("**Transductive run")
    assert "(transductive run)](figures/tsne_finetune.png)" in text


def test_a_run_before_evaluation_says_so(run_dir: Path) -> None:
    for file in (run_dir / "evaluation").iterdir():
        file.unlink()
    text = write_report(run_dir).read_text()
    assert "Not evaluated yet" in text and "curves_pretrain.png" in text and "confusion" not in text


def test_an_empty_run_folder_gives_a_page(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text()
    assert "Not evaluated yet" in text and "Not recorded yet" in text


def test_a_result_without_baselines_is_marked(without_figures: Path) -> None:
    file = without_figures / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    file.write_text(json.dumps(metrics | {"rows": metrics["rows"][:1]}))
    assert "cannot be judged" in write_report(without_figures).read_text()


def test_a_metric_that_is_not_defined_says_why(without_figures: Path) -> None:
    file = without_figures / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["rows"][0]["auroc"] = {"value": None, "low": None, "high": None, "reason": "no case of class LUSC"}
    file.write_text(json.dumps(metrics))
    assert "not defined (no case of class LUSC)" in write_report(without_figures).read_text()


def test_a_page_on_survival_has_the_c_index_and_how_many_are_not_counted(without_figures: Path) -> None:
    file = without_figures / "evaluation" / "metrics.json"
    none = {"value": None, "low": None, "high": None, "reason": "no event was seen"}
    rows = [
        {"method": "GiMP", "c_index": interval(0.625), "n_events": 7},
        {"method": "genes alone (Cox, ridge)", "c_index": none, "n_events": 7},
    ]
    changes = {"kind": "survival", "rows": rows, "classes": [], "left_out": {"test": 3, "train": 1}}
    changes["notes"] = ["a baseline could not be fitted: no patches"]
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    text = write_report(without_figures).read_text()
    assert "| method | C-index |" in text and "| GiMP | 0.625 [0.525, 0.675] |" in text
    assert "not defined (no event was seen)" in text and "Recall" not in text
    assert "7 of the cases had an event. 3 further cases without a known target are not counted." in text
    assert "- a baseline could not be fitted: no patches" in text


def test_a_page_on_labels_has_the_means_and_every_label(without_figures: Path) -> None:
    file = without_figures / "evaluation" / "metrics.json"
    labels = {
        name: {"auroc": interval(value), "average_precision": interval(value), "n_known": 11, "n_positive": 4}
        for name, value in (("TP53", 0.75), ("KRAS", 0.5))
    }
    rows = [
        {"method": name, "auroc": interval(0.625), "average_precision": interval(0.625), "labels": labels}
        for name in ("GiMP", "genes alone (logistic regression)")
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "labels", "rows": rows, "classes": []}))
    text = write_report(without_figures).read_text()
    assert "| method | AUROC, mean over labels | average precision, mean over labels |" in text
    assert "| TP53 | 4 of 11 | 0.750 [0.650, 0.800] | 0.750 [0.650, 0.800] |" in text


def test_a_compared_method_is_called_by_its_name(without_figures: Path) -> None:
    file = without_figures / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": "ABMIL"}))
    text = write_report(without_figures).read_text()
    assert "ABMIL, a method compared with GiMP" in text and "first a gene encoder" not in text


@pytest.mark.slow
def test_a_second_report_replaces_the_first_and_leaves_nothing_aside(run_dir: Path) -> None:
    first = write_report(run_dir).read_text()
    assert write_report(run_dir).read_text() == first
    assert not list(run_dir.rglob(".*"))


def test_damaged_files_are_named(run_dir: Path) -> None:
    broken = run_dir / "evaluation" / "embeddings.parquet"
    broken.write_bytes(b"PAR1 torn")
    with pytest.raises(InputError) as caught:
        write_report(run_dir)
    assert caught.value.file == str(broken)
    with pytest.raises(InputError, match="does not exist"):
        write_report(run_dir / "nowhere")
