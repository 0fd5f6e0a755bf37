"""From a run's embeddings to its predictions, metrics and baselines, on disk.

Reads `evaluation/embeddings.parquet` (written by the workers), asks `gimp_ray.evaluation` for figures, writes
`predictions.parquet`, `reference_predictions.parquet` and `metrics.json`. Cases whose truth is not known are left out
and counted. Left out: the columns of the tables (`scoring_tables.py`); figures and `summary.md`, which the reports make
from these files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.evaluation import Baseline, difference_of, genes_alone, intervals_of, mean_pool
from gimp_ray.feed.plan import index_cases
from gimp_ray.learn.gene_side import needs_log
from gimp_ray.learn.missing import has_both_sides, predict_from_cls, without
from gimp_ray.learn.stage import patients_of
from gimp_ray.learn.targets import Target, left_out, saved_target
from gimp_ray.recipes import RECIPES
from gimp_ray.runs.folder import RunFolder, write_json
from gimp_ray.runs.model import read_card
from gimp_ray.scoring_tables import Cases, Row, read_cases, write_predictions
from gimp_ray.store import CohortStore

PARTS = ("train", "val", "test")
Rows = tuple[list[Row], list[str]]


def score_run(run: RunFolder, config: Config, store: CohortStore) -> None:
    """Write the run's predictions and metrics, with the baselines beside them.

    Raises:
        InputError: no case of the reported part has a known truth.
    """
    card = read_card(run.model_file("finetune"))
    target = saved_target(card, store)
    cases = read_cases(run, target)
    first = Row(_method(config), cases.ids, cases.predictions)
    write_predictions(run, "predictions.parquet", target, cases, [first], named=False)
    missing, notes = _missing_rows(run, config, card, target, cases)
    baselines, said = _baselines(config, store, cases) if config.evaluate.reference_rows else ([], [])
    beside, notes = [*missing, *baselines], [*notes, *said]
    if beside:
        write_predictions(run, "reference_predictions.parquet", target, cases, beside)
    for note in notes:
        print(f"note: {note}", flush=True)
    write_json(run.evaluation / "metrics.json", _metrics(config, store, target, cases, [first, *beside], notes))


def _method(config: Config) -> str:
    return "GiMP" if config.method.name == "gimp" else RECIPES[config.method.name].title


def _metrics(
    config: Config, store: CohortStore, target: Target, cases: Cases, rows: list[Row], notes: list[str]
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
    figures = []
    for row in rows:
        predictions = row.of(ids)
        figure = {"method": row.method, **intervals_of(truth, patients, predictions, resamples, config.seed)}
        if row is not rows[0]:
            figure["difference_of_first"] = difference_of(truth, patients, first, predictions, resamples, config.seed)
        figures.append(figure)
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
        "rows": figures,
        "notes": notes,
    }


def _missing_rows(run: RunFolder, config: Config, card: dict[str, Any], target: Target, cases: Cases) -> Rows:
    """What the model says of validation and test cases without one of its modalities, as far as that was asked for."""
    asked = config.evaluate.missing
    if not asked:
        return [], []
    if cases.cls_pat is None or not has_both_sides(card):
        return [], ["evaluate.missing is for GiMP with images and genes: this model has no two sides"]
    training_N = np.array([part == "train" for part in cases.parts], np.bool_)
    held = [row for row, part in enumerate(cases.parts) if part != "train"]
    rows = []
    for modality in asked:
        cls_pat_NF = without(modality, cases.cls_pat, training_N, card["model"]["dim"])
        predictions = predict_from_cls(run.model_file("finetune"), card, target, cls_pat_NF[held])
        rows.append(Row(f"{_method(config)}, {modality} missing", [cases.ids[row] for row in held], predictions))
    return rows, []


def _baselines(config: Config, store: CohortStore, cases: Cases) -> Rows:
    """The baselines that the store has data for, and a note on each that could not be fitted."""
    parts = {name: [cases.ids[row] for row in cases.of_part(name)] for name in PARTS}
    fits: list[Callable[[], Baseline]] = []

    def genes() -> Baseline:
        log = config.genes.log if config.genes.log is not None else needs_log(store, index_cases(store, parts["train"]))
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
        rows.append(Row(found.method, found.case_ids, found.predictions))
    return rows, notes
