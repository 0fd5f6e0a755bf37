"""From a run's embeddings to its predictions, metrics and reference rows, on disk.

Reads `evaluation/embeddings.parquet` (written by the workers), asks `gimp_ray.evaluation` for figures, writes
`predictions.parquet`, `reference_predictions.parquet` and `metrics.json`. Left out: figures and `summary.md`, which
the reports make from these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray.cohort import CohortStore
from gimp_ray.cohort.splits import patient_of
from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.evaluation import (
    ReferenceRow,
    bootstrap_intervals,
    encode_labels,
    genes_alone,
    mean_pool_mlp,
    paired_difference,
)
from gimp_ray.feed.plan import index_cases
from gimp_ray.run_folder import RunFolder, whole_file, write_json
from gimp_ray.tasks.gene_side import needs_log

METHOD = "GiMP"


@dataclass(frozen=True)
class _Cases:
    """The embedded cases, in the order of the table."""

    ids: list[str]
    parts: list[str]
    labels: list[str]
    probabilities: NDArray[np.float64]
    mean_patch: NDArray[np.float64]


def score_run(run: RunFolder, config: Config, store: CohortStore) -> None:
    """Write the run's predictions and metrics, with the reference rows beside them."""
    classes = list(store.classes)
    cases = _read(run, classes)
    _write(run, "predictions.parquet", classes, cases.ids, cases.parts, cases.labels, cases.probabilities)
    rows = [_Row(METHOD, cases.ids, cases.parts, cases.probabilities)]
    references, notes = _references(config, store, cases) if config.evaluate.reference_rows else ([], [])
    if references:
        _write_references(run, classes, cases, references)
        rows += [_Row(row.method, row.case_ids, row.parts, row.probabilities) for row in references]
    write_json(run.evaluation / "metrics.json", _metrics(config, classes, cases, rows) | {"notes": notes})


@dataclass(frozen=True)
class _Row:
    method: str
    case_ids: list[str]
    parts: list[str]
    probabilities: NDArray[np.float64]

    def of_part(self, part: str) -> tuple[list[str], NDArray[np.float64]]:
        """Cases of a part sorted by id, with their probabilities."""
        chosen = sorted(
            (case, place)
            for place, (case, where) in enumerate(zip(self.case_ids, self.parts, strict=True))
            if where == part
        )
        return [case for case, _ in chosen], self.probabilities[[place for _, place in chosen]]


def _metrics(config: Config, classes: list[str], cases: _Cases, rows: list[_Row]) -> dict[str, Any]:
    part, resamples = config.evaluate.part, config.evaluate.resamples
    label_of = dict(zip(cases.ids, cases.labels, strict=True))
    ids, first = rows[0].of_part(part)
    labels = encode_labels([label_of[case] for case in ids], classes)
    patients = [patient_of(case) for case in ids]
    figures = []
    for row in rows:
        row_ids, probabilities = row.of_part(part)
        assert row_ids == ids, "every method predicts the same cases"
        figure = {
            "method": row.method,
            **bootstrap_intervals(patients, labels, probabilities, classes, resamples, config.seed),
        }
        if row is not rows[0]:
            figure["difference_of_gimp"] = paired_difference(
                patients, labels, first, probabilities, classes, resamples, config.seed
            )
        figures.append(figure)
    return {
        "part": part,
        "scheme": config.split.scheme,
        "fold": config.split.fold,
        "seed": config.seed,
        "n_cases": len(ids),
        "classes": classes,
        "transductive": config.split.transductive,
        "resamples": resamples,
        "rows": figures,
    }


def _references(config: Config, store: CohortStore, cases: _Cases) -> tuple[list[ReferenceRow], list[str]]:
    """The reference rows, and a note on each that the cohort does not allow."""
    parts = {
        part: [case for case, where in zip(cases.ids, cases.parts, strict=True) if where == part]
        for part in ("train", "val", "test")
    }
    classes = list(store.classes)

    def genes() -> ReferenceRow:
        log = config.genes.log if config.genes.log is not None else needs_log(store, index_cases(store, parts["train"]))
        return genes_alone(cases.ids, store.read_genes(cases.ids), cases.labels, parts, classes, linear=log)

    def patches() -> ReferenceRow:
        return mean_pool_mlp(cases.ids, cases.mean_patch, cases.labels, parts, classes, seed=config.seed)

    rows, notes = [], []
    for fit in [genes, patches] if store.num_genes else [patches]:
        try:
            rows.append(fit())
        except InputError as refusal:
            notes.append(f"a reference row could not be fitted: {refusal.what}")
            print(f"note: {notes[-1]}", flush=True)
    return rows, notes


def _read(run: RunFolder, classes: list[str]) -> _Cases:
    table = pq.read_table(run.evaluation / "embeddings.parquet")
    return _Cases(
        table["case_id"].to_pylist(),
        table["part"].to_pylist(),
        table["label"].to_pylist(),
        np.stack([table[f"prob_{name}"].to_numpy() for name in classes], axis=1),
        np.array(table["mean_patch"].to_pylist()),
    )


def _write(
    run: RunFolder,
    name: str,
    classes: list[str],
    ids: list[str],
    parts: list[str],
    labels: list[str],
    probabilities: NDArray[np.float64],
    method: list[str] | None = None,
) -> None:
    columns: dict[str, Any] = {} if method is None else {"method": method}
    columns |= {"case_id": ids, "part": parts, "label": labels}
    columns["predicted"] = [classes[best] for best in probabilities.argmax(axis=1)]
    columns |= {f"prob_{name}": probabilities[:, number] for number, name in enumerate(classes)}
    with whole_file(run.evaluation / name) as aside:
        pq.write_table(pa.table(columns), aside)


def _write_references(run: RunFolder, classes: list[str], cases: _Cases, rows: list[ReferenceRow]) -> None:
    label_of = dict(zip(cases.ids, cases.labels, strict=True))
    ids = [case for row in rows for case in row.case_ids]
    _write(
        run,
        "reference_predictions.parquet",
        classes,
        ids,
        [part for row in rows for part in row.parts],
        [label_of[case] for case in ids],
        np.concatenate([row.probabilities for row in rows]),
        [row.method for row in rows for _ in row.case_ids],
    )
