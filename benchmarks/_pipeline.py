"""The whole pipeline on real genes and real tiles: GiMP with and without pre-training, genes alone, mean-pool alone.

The cohort: real TCGA-NSCLC expression and labels; each case's patches are real H&E tile embeddings of its class, about
1.5 % of them tumour, laid out on a slide. Tile groups never cross parts of a fold. Every fold is an ordinary run of the
product, ingest included; every case is tested once, so figures are over all cases. Image and genes of a case belong to
different patients who share a diagnosis: the table compares methods, it says nothing about what images add in a clinic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.evaluation import bootstrap_intervals, encode_labels, paired_difference
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.learn.gene_side import load_gene_side
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part
from gimp_ray.store import CohortStore
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

GIMP, SCRATCH, GROUP_MSA = "GiMP", "GiMP without pre-training", "genes alone (GroupMSA)"
IMAGES = "images alone (GiMP's aggregator, no pre-training)"

# small enough for two cores; chosen before any test part was looked at, and the same for both GiMP rows
SETTINGS: dict[str, Any] = {
    "train": {"epochs": 30, "lr": 5e-4, "workers": 0},
    "window": {"length": 256},
    "batch": {"classes": 2, "cases_per_class": 8},
    "model": {"dim": 64, "heads": 4, "dim_head": 16, "landmarks": 32},
    "genes": {
        "top_genes": 3000,
        "select_by": "variance",
        "order": "stored",
        "fragments": 300,
        "groups": 12,
        "mixup": 0.4,
        "train": {"epochs": 15, "lr": 3e-3},
    },
    "finetune": {"batch_size": 4, "hidden": 64, "train": {"epochs": 12, "lr": 5e-4}},
    "checkpoint": {"every_epochs": 10, "keep": 1},
}


@dataclass(frozen=True)
class Prediction:
    """Test probabilities (n, C) of some cases under one method."""

    case_ids: list[str]
    probabilities: NDArray[np.float64]


def make_store(data: Path, work: Path, cases: int, seed: int) -> CohortStore:
    """The cohort of the module's docstring, through the product's own synth and ingest."""
    sources, store = work / "cohort", work / "store"
    if not sources.exists():
        options = SynthOptions(
            cases=cases,
            seed=seed,
            min_patches=300,
            median_patches=600,
            max_patches=1500,
            tile_bank=data / "patches" / "lc25000_lung_efflite0.h5",
            genes_file=data / "rna" / "tcga_nsclc_log2fpkm.h5",
        )
        made = write_synthetic_cohort(sources, options)
        ingest_cohort(
            patches=made.patches,
            genes=made.genes,
            cases=made.cases,
            splits=made.splits,
            out=store,
            options=IngestOptions(strict=True, gene_unit=made.gene_unit),
        )
    return CohortStore.open(store)


def measure_pipeline(data: Path, work: Path, cases: int, folds: int, seeds: int, threads: int) -> dict[str, Any]:
    """Rows of figures, with the differences of GiMP to each, and the time each part took."""
    store = make_store(data, work, cases, 0)
    runs = [_one_fold(store, work, fold, seed, threads) for seed in range(seeds) for fold in range(folds)]
    methods = list(runs[0])
    pooled = {method: _pool([run[method] for run in runs]) for method in methods}
    label_of = dict(zip(store.cases["case_id"].to_pylist(), store.cases["label"].to_pylist(), strict=True))
    classes = list(store.classes)
    ids = pooled[GIMP].case_ids
    labels = encode_labels([label_of[case] for case in ids], classes)
    rows = []
    for method in methods:
        probabilities = pooled[method].probabilities
        row = {"method": method, **bootstrap_intervals(ids, labels, probabilities, classes)}
        row["gimp_minus_this"] = paired_difference(ids, labels, pooled[GIMP].probabilities, probabilities, classes)
        rows.append(row)
    return {
        "cases": len(ids),
        "patches": store.manifest.num_patches,
        "genes": store.num_genes,
        "folds": folds,
        "seeds": seeds,
        "settings": SETTINGS,
        "rows": rows,
        "seconds": _training_seconds(work),
    }


def pipeline_text(result: dict[str, Any]) -> str:
    """What was measured, in words."""
    train, finetune = result["settings"]["train"], result["settings"]["finetune"]["train"]
    return (
        f"{result['cases']} cases with real TCGA expression ({result['genes']:,} genes) and labels; their "
        f"{result['patches']:,} patches are real H&E tile embeddings, about 1.5 % of them tumour of the case's class; "
        f"tile groups never cross parts of a fold. {result['folds']} folds, {result['seeds']} seed(s), every case "
        f"tested once a seed; 60/20/20 train, validation and test. L = {result['settings']['window']['length']}, "
        f"d = {result['settings']['model']['dim']}, {train['epochs']} epochs of pre-training, {finetune['epochs']} of "
        "fine-tuning, the epoch chosen on validation; settings fixed before any test part was predicted. Genes and "
        "tiles of a case are of different patients with one diagnosis: the table compares methods. 95 % intervals over "
        "patients (1,000 bootstrap resamples), differences paired."
    )


def pipeline_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| method | accuracy | GiMP minus this | AUC | GiMP minus this |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row["method"]]
        for metric in ("accuracy", "auroc"):
            cells += [
                _interval(row[metric]),
                "" if row["method"] == GIMP else _interval(row["gimp_minus_this"][metric], "+"),
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _one_fold(store: CohortStore, work: Path, fold: int, seed: int, threads: int) -> dict[str, Prediction]:
    """Both GiMP runs of a fold, and the rows beside them, on the fold's test part."""
    folder = work / f"seed-{seed}-fold-{fold}"
    base = load_config(
        None,
        {"store": str(store.path), "split.fold": fold, "seed": seed, "train.threads": threads},
        base=SETTINGS,
    )
    gimp = pipeline.run_all(_changed(base, run=folder / "gimp"))
    genes = str(gimp.model_file("genes"))
    scratch = pipeline.run_all(
        _changed(base, run=folder / "scratch", **{"finetune.init": "scratch", "genes.checkpoint": genes})
    )
    classes = list(store.classes)
    images = pipeline.run_all(
        _changed(base, run=folder / "images", **{"finetune.init": "scratch", "genes.encoder": "none"})
    )
    runs = {GIMP: gimp, SCRATCH: scratch, IMAGES: images}
    found = {method: _predicted(run, classes) for method, run in runs.items()}
    found[GROUP_MSA] = _genes_stage(gimp, store, list(found[GIMP].case_ids))
    references = pq.read_table(gimp.evaluation / "reference_predictions.parquet").to_pylist()
    for method in dict.fromkeys(row["method"] for row in references):
        found[method] = _test_rows([row for row in references if row["method"] == method], classes)
    return found


def _training_seconds(work: Path) -> float:
    """What all the stages of all runs took, whether in one go or continued after an interruption."""
    records = [RunFolder(file.parent).record() for file in work.glob("seed-*/*/run.json")]
    return float(sum(stage["seconds"] for record in records for stage in record["stages"].values()))


def _changed(config: Config, run: Path, **overrides: str) -> Config:
    return load_config(None, {**overrides, "run": str(run)}, base=config.model_dump())


def _predicted(run: RunFolder, classes: list[str]) -> Prediction:
    return _test_rows(pq.read_table(run.evaluation / "predictions.parquet").to_pylist(), classes)


def _test_rows(rows: list[dict[str, Any]], classes: list[str]) -> Prediction:
    chosen = sorted((row for row in rows if row["part"] == "test"), key=lambda row: row["case_id"])
    probabilities = [[row[f"prob_{name}"] for name in classes] for row in chosen]
    return Prediction([row["case_id"] for row in chosen], np.array(probabilities))


@torch.no_grad()
def _genes_stage(run: RunFolder, store: CohortStore, case_ids: list[str]) -> Prediction:
    """What the gene stage's own linear head predicts."""
    file = run.model_file("genes")
    side, head = load_gene_side(file, store), part(load_weights(file), "head")
    cls_ge = side.encoder.eval()(torch.from_numpy(side.read(store, case_ids)))
    logits = cls_ge @ head["0.weight"].T + head["0.bias"]
    return Prediction(case_ids, torch.softmax(logits.double(), dim=-1).numpy())


def _pool(predictions: list[Prediction]) -> Prediction:
    """All folds together; a case tested under several seeds gets the mean of its probabilities."""
    by_case: dict[str, list[NDArray[np.float64]]] = {}
    for prediction in predictions:
        for case, probability in zip(prediction.case_ids, prediction.probabilities, strict=True):
            by_case.setdefault(case, []).append(probability)
    ids = sorted(by_case)
    return Prediction(ids, np.stack([np.mean(by_case[case], axis=0) for case in ids]))


def _interval(value: dict[str, Any], sign: str = "") -> str:
    form = f"{sign}.3f"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
