"""Run folders written by hand as a finished run leaves them, with made-up predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray import pipeline
from gimp_ray.config_files import to_yaml
from gimp_ray.evaluation import GENES_ALONE, MEAN_POOL
from gimp_ray.experiments.runs import Cell
from gimp_ray.experiments.spec import TableSpec, build_table
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import save_model
from gimp_ray.store import CohortStore

CLASSES = ("LUAD", "LUSC")


def table_of(store: Path, *rows: Mapping[str, Any], **more: Any) -> TableSpec:
    """A table on a store, one fold and one seed unless more is said."""
    return build_table(
        {"title": "A & B", "base": {"store": str(store)}, "rows": list(rows), "folds": 1, "seeds": 1} | more
    )


def made_up(cases: Sequence[str], seed: int) -> NDArray[np.float64]:
    """(N, 2) probabilities."""
    p_N = np.random.default_rng(seed).uniform(size=len(cases)).round(2)
    return np.stack([1 - p_N, p_N], axis=1)


def finished(cell: Cell, store: CohortStore, seed: int, references: bool = True, seconds: float = 10.0) -> None:
    """Write the folder of a cell as a finished run does."""
    run, config = RunFolder(cell.step.uri), cell.step.config
    run.evaluation.mkdir(parents=True)
    run.config_file.write_text(to_yaml(config))
    record = {
        "stages": {"finetune": {"seconds": seconds, "status": "done"}},
        "attempts": [{"status": "done"}],
    }
    run.record_file.write_text(json.dumps(record))
    save_model(run.model_file("finetune"), {}, {"inputs": pipeline.stage_inputs("finetune", config)})
    split = store.split(config.split.scheme, config.split.fold)
    parts = {case: part for part in ("train", "val", "test") for case in getattr(split, part)}
    columns = columns_of(store, parts, seed)
    pq.write_table(pa.table(columns), run.evaluation / "predictions.parquet")
    rows: list[dict[str, Any]] = [{"method": "the row"}]
    if references and config.evaluate.reference_rows:
        tables = [
            pa.table({"method": [name] * len(parts), **columns_of(store, parts, seed + 100 + number)})
            for number, name in enumerate((GENES_ALONE, MEAN_POOL))
        ]
        pq.write_table(pa.concat_tables(tables), run.evaluation / "reference_predictions.parquet")
        rows += [{"method": GENES_ALONE}, {"method": MEAN_POOL}]
    if config.evaluate.missing:
        add_missing_rows(run, parts, store, config.evaluate.missing, rows)
    (run.evaluation / "metrics.json").write_text(json.dumps({"kind": "class", "rows": rows, "notes": []}))


def add_missing_rows(
    run: RunFolder, parts: Mapping[str, str], store: CohortStore, missing: Sequence[str], rows: list[dict[str, Any]]
) -> None:
    """What the row says without a modality, as `evaluate.missing` writes it: beside the baselines."""
    file = run.evaluation / "reference_predictions.parquet"
    tables = [pq.read_table(file)] if file.exists() else []
    for number, modality in enumerate(missing):
        name = f"GiMP, {modality} missing"
        tables.append(pa.table({"method": [name] * len(parts), **columns_of(store, parts, 500 + number)}))
        rows.append({"method": name})
    pq.write_table(pa.concat_tables(tables), file)


def columns_of(store: CohortStore, parts: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Columns of predictions for some cases."""
    label_of = dict(zip(store.cases["case_id"].to_pylist(), store.cases["label"].to_pylist(), strict=True))
    cases = list(parts)
    p_NC = made_up(cases, seed)
    return {
        "case_id": cases,
        "part": list(parts.values()),
        "label": [label_of[case] for case in cases],
        "predicted": [CLASSES[best] for best in p_NC.argmax(axis=1)],
        **{f"prob_{name}": p_NC[:, number] for number, name in enumerate(CLASSES)},
    }


def reported(cell: Cell, name: str = "predictions.parquet") -> dict[str, Any]:
    """The test cases of a made run: ids, class numbers and probabilities, by id."""
    table = pq.read_table(RunFolder(cell.step.uri).evaluation / name)
    rows = sorted((row for row in table.to_pylist() if row["part"] == "test"), key=lambda row: row["case_id"])
    return {
        "cases": [row["case_id"] for row in rows],
        "labels": np.array([CLASSES.index(row["label"]) for row in rows]),
        "probabilities": np.array([[row[f"prob_{name}"] for name in CLASSES] for row in rows]),
    }
