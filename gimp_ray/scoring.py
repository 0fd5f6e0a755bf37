"""From a run's embeddings to its predictions, metrics and baselines, on disk.

Reads `evaluation/embeddings.parquet` (written by the workers); writes `predictions.parquet`,
`reference_predictions.parquet` and `metrics.json`. Cases whose truth is not known are left out and counted.

Columns of the predictions by kind of target, after case_id, part and label: a class, `predicted` and prob_<class>;
labels, true_<label> and prob_<label>; survival, time, event and risk, with outlives_bin_<k> of a discrete-time model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.evaluation import (
    Baseline,
    Truth,
    difference_of,
    encode_labels,
    genes_alone,
    intervals_of,
    mean_pool,
)
from gimp_ray.feed.plan import index_cases
from gimp_ray.io.files import whole_file, write_json
from gimp_ray.learn.gene_values import needs_log
from gimp_ray.learn.predict import has_both_sides, image_width, predict_from_cls, without
from gimp_ray.learn.stage import patients_of
from gimp_ray.learn.targets import Target, left_out, saved_target
from gimp_ray.methods import find
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import read_card
from gimp_ray.store import CohortStore

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Cases:
    """The embedded cases whose truth is known, in the order of the table. N cases.

    Attributes:
        ids: case ids.
        parts: train, val or test of each.
        columns: label, and what else is true of them, as the tables have it.
        truth: the same for the metrics.
        predictions: (N, P), columns as the target's.
        mean_patch: (N, E), None in a run without patches.
        cls_pat: (N, F), None of a method that has none.
    """

    ids: list[str]
    parts: list[str]
    columns: pa.Table
    truth: Truth
    predictions: NDArray[np.float64]
    mean_patch: NDArray[np.float64] | None
    cls_pat: NDArray[np.float32] | None

    def of_part(self, part: str) -> list[int]:
        """Rows of a part, sorted by case id."""
        return sorted((row for row, where in enumerate(self.parts) if where == part), key=lambda row: self.ids[row])


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of one method: (n, P), rows as `case_ids`; NaN where it has none."""

    method: str
    case_ids: list[str]
    predictions: NDArray[np.float64]

    def of(self, case_ids: list[str]) -> NDArray[np.float64]:
        """Predictions of some cases, in their order."""
        row_of = {case: row for row, case in enumerate(self.case_ids)}
        return self.predictions[[row_of[case] for case in case_ids]]


WithNotes = tuple[list[Prediction], list[str]]


def score_run(run: RunFolder, config: Config, store: CohortStore) -> None:
    """Write the run's predictions and metrics, with the baselines beside them.

    Raises:
        InputError: no case of the reported part has a known truth.
    """
    card = read_card(run.model_file("finetune"))
    target = saved_target(card, store)
    cases = cases_of(pq.read_table(run.evaluation / "embeddings.parquet"), target)
    first = Prediction(_method(config), cases.ids, cases.predictions)
    write_predictions(run, "predictions.parquet", target, cases, [first], named=False)
    missing, notes = _missing_rows(run, config, card, target, cases)
    baselines, more = _baselines(config, store, cases) if config.evaluate.reference_rows else ([], [])
    beside, notes = [*missing, *baselines], [*notes, *more]
    if beside:
        write_predictions(run, "reference_predictions.parquet", target, cases, beside)
    for note in notes:
        print(f"note: {note}", flush=True)
    write_json(run.evaluation / "metrics.json", _metrics(config, store, target, cases, [first, *beside], notes))


def _method(config: Config) -> str:
    return find(config.method.name).title


def _metrics(
    config: Config, store: CohortStore, target: Target, cases: Cases, rows: list[Prediction], notes: list[str]
) -> dict[str, Any]:
    part, resamples = config.evaluate.part, config.evaluate.resamples
    split = store.split(config.split.scheme, config.split.fold)
    without_truth = left_out(target, {name: getattr(split, name) for name in PARTS})
    chosen = cases.of_part(part)
    if not chosen:
        raise InputError(
            f"no {part} case has a known target to be compared with",
            file=store.path,
            found=f"{without_truth[part]} {part} cases, all without one",
            fix="choose another evaluate.part, fold or target",
        )
    ids, truth = [cases.ids[row] for row in chosen], cases.truth.of(chosen)
    patients = patients_of(store, ids)
    first = rows[0].of(ids)
    found = []
    for row in rows:
        predictions = row.of(ids)
        metrics = {"method": row.method, **intervals_of(truth, patients, predictions, resamples, config.seed)}
        if row is not rows[0]:
            metrics["difference_of_first"] = difference_of(truth, patients, first, predictions, resamples, config.seed)
        found.append(metrics)
    return {
        "part": part,
        "scheme": config.split.scheme,
        "fold": config.split.fold,
        "seed": config.seed,
        "n_cases": len(ids),
        "n_patients": len(set(patients)),
        "left_out": without_truth,
        "kind": target.kind,
        "target": target.card(),
        "classes": list(target.outputs) if target.kind == "class" else [],
        "transductive": config.split.transductive,
        "resamples": resamples,
        "rows": found,
        "notes": notes,
    }


def _missing_rows(run: RunFolder, config: Config, card: dict[str, Any], target: Target, cases: Cases) -> WithNotes:
    """Predictions for validation and test cases without one of the model's modalities (`evaluate.missing`)."""
    if not config.evaluate.missing:
        return [], []
    if cases.cls_pat is None or not has_both_sides(card):
        return [], ["evaluate.missing is for GiMP with images and genes: this model has no two sides"]
    training_N = np.array([part == "train" for part in cases.parts], np.bool_)
    held = [row for row, part in enumerate(cases.parts) if part != "train"]
    rows = []
    for modality in config.evaluate.missing:
        cls_pat_NF = without(modality, cases.cls_pat, training_N, image_width(card))
        predictions = predict_from_cls(run.model_file("finetune"), card, target, cls_pat_NF[held])
        rows.append(Prediction(f"{_method(config)}, {modality} missing", [cases.ids[row] for row in held], predictions))
    return rows, []


def _baselines(config: Config, store: CohortStore, cases: Cases) -> WithNotes:
    """The baselines that the store has data for, and a note on each that could not be fitted."""
    parts = {name: [cases.ids[row] for row in cases.of_part(name)] for name in PARTS}
    fits: list[Callable[[], Baseline]] = []

    def genes() -> Baseline:
        said = getattr(getattr(config, "genes", None), "log", None)
        log = said if said is not None else needs_log(store, index_cases(store, parts["train"]))
        return genes_alone(cases.ids, store.read_genes(cases.ids), cases.truth, parts, linear=log)

    if store.num_genes:
        fits.append(genes)
    if (pooled := cases.mean_patch) is not None:
        fits.append(lambda: mean_pool(cases.ids, pooled, cases.truth, parts, seed=config.seed))
    rows, notes = [], []
    for fit in fits:
        try:
            found = fit()
        except InputError as refusal:
            notes.append(f"a baseline could not be fitted: {refusal.what}")
            continue
        notes += [f"{found.method}, {note}" for note in found.notes]
        rows.append(Prediction(found.method, found.case_ids, found.predictions))
    return rows, notes


def cases_of(table: pa.Table, target: Target) -> Cases:
    """The cases of a table of embeddings, with predictions, whose truth is known."""
    known = set(target.known(table["case_id"].to_pylist()))
    table = table.filter(pa.array([case in known for case in table["case_id"].to_pylist()], pa.bool_()))
    ids = table["case_id"].to_pylist()
    truths = target.truths(ids)
    columns = {"label": table["label"]} | {name: pa.chunked_array([value]) for name, value in truths.items()}
    return Cases(
        ids,
        table["part"].to_pylist(),
        pa.table(columns),
        _truth(target, truths),
        np.stack([table[name].to_numpy() for name in target.columns], axis=1).astype(np.float64),
        _vectors(table, "mean_patch", np.float64),
        _vectors(table, "cls_pat", np.float32),
    )


def write_predictions(
    run: RunFolder, name: str, target: Target, cases: Cases, rows: list[Prediction], named: bool = True
) -> None:
    """Write the predictions of methods below one another; `named` adds the column `method`."""
    row_of = {case: row for row, case in enumerate(cases.ids)}
    tables = []
    for row in rows:
        where = [row_of[case] for case in row.case_ids]
        columns: dict[str, Any] = {"method": [row.method] * len(where)} if named else {}
        columns |= {"case_id": row.case_ids, "part": [cases.parts[at] for at in where]}
        truths = cases.columns.take(pa.array(where, pa.int64()))
        columns |= {column: truths[column] for column in truths.column_names}
        if target.kind == "class":
            columns["predicted"] = [target.outputs[best] for best in row.predictions.argmax(axis=1)]
        # what only the trained model knows, such as the probability to outlive a bin, is null for the others
        wide = np.full((len(where), len(target.columns)), np.nan)
        wide[:, : row.predictions.shape[1]] = row.predictions
        columns |= {c: pa.array(wide[:, p], from_pandas=True) for p, c in enumerate(target.columns)}
        tables.append(pa.table(columns))
    with whole_file(run.evaluation / name) as aside:
        pq.write_table(pa.concat_tables(tables), aside)


def _truth(target: Target, truths: dict[str, pa.Array]) -> Truth:
    if target.kind == "class":
        labels = encode_labels(truths["label"].to_pylist(), target.outputs)
        return Truth(target.kind, target.outputs, {"label": labels})
    if target.kind == "survival":
        time = truths["time"].to_numpy(zero_copy_only=False).astype(np.float64)
        return Truth(target.kind, (), {"time": time, "event": _bools(truths["event"])})
    values = [truths[f"true_{name}"] for name in target.outputs]
    known = np.stack([value.is_valid().to_numpy(zero_copy_only=False) for value in values], axis=1)
    truth = np.stack([_bools(value.fill_null(False)) for value in values], axis=1)
    return Truth(target.kind, target.outputs, {"truth": truth, "known": known})


def _bools(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def _vectors(table: pa.Table, column: str, kind: type[np.floating[Any]]) -> NDArray[Any] | None:
    if column not in table.column_names:
        return None
    lists = table[column].combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), kind).reshape(len(lists), -1)
