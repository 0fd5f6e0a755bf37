"""`summary.md` of a run: what was trained, on which data, with which results, and how to run it again.

One page for a reader who did not run it, made from the run folder alone; what is not there yet is named as missing.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from gimp_ray.io.files import read_json, write_text
from gimp_ray.reports import tables
from gimp_ray.reports.figures import confusion_figure, curves_figure, save_figure, survival_figure, tsne_figure
from gimp_ray.reports.reading import RunData, read_run, vectors
from gimp_ray.runs.folder import STAGES, RunFolder

EMBEDDING_TITLES = {
    "pretrain": "CLS_pat after pre-training, by case",
    "finetune": "CLS_pat after fine-tuning, by case",
}
AIMS = {
    "class": "predict the class of a case",
    "labels": "predict the labels of a case",
    "survival": "predict which patients have the event earlier",
}
HOW_TO_READ = {
    "class": "*Genes alone* is often hard to beat (RNA separates LUAD from LUSC almost perfectly).",
    "labels": "Chance is an AUROC of 0.5, and an average precision of the share of positive cases.",
    "survival": "The C-index is the share of comparable pairs of patients that are ranked correctly; chance is 0.5.",
}


def write_report(run_dir: str | Path) -> Path:
    """Draw the figures of a run and write its `summary.md`; both may be made again at any time.

    Args:
        run_dir: a run folder, finished or not, here or in object storage.

    Returns:
        Path of `summary.md` on this machine.

    Raises:
        InputError: the folder does not exist, or a file in it is damaged.
    """
    folder = RunFolder(run_dir)
    folder.pull()
    run = read_run(run_dir)
    figures = _draw(run)
    sections = [
        _head(run),
        _what_was_run(run),
        _data(run),
        _results(run),
        _pictures(figures),
        _time(run),
        _choices(run),
        _environment(run),
        _rerun(run),
    ]
    summary = run.path / "summary.md"
    write_text(summary, "\n\n".join(section for section in sections if section) + "\n")
    folder.push()
    return summary


def _draw(run: RunData) -> dict[str, str]:
    """Write the figures; returns file name -> what it shows."""
    folder = RunFolder(run.path).figures
    drawn: dict[str, str] = {}
    note = " (transductive run)" if run.transductive else ""
    classes, part = _classes(run), (run.metrics or {}).get("part", "test")
    rows = [] if run.predictions is None else [r for r in run.predictions.to_pylist() if r["part"] in (part, None)]
    title = f"{_method(run)}, {part} cases{note}"
    if rows and "predicted" in rows[0]:
        figure = confusion_figure([r["label"] for r in rows], [r["predicted"] for r in rows], classes, title)
        drawn[save_figure(figure, folder / "confusion_matrix.png").name] = f"Confusion matrix of the {part} cases"
    if rows and "risk" in rows[0]:
        figure = survival_figure(
            [r["time"] for r in rows], [r["event"] for r in rows], [r["risk"] for r in rows], title
        )
        what = f"Kaplan-Meier curves of the {part} cases, the half with the higher predicted risk and the other half"
        drawn[save_figure(figure, folder / "survival_curves.png").name] = what
    for stage, embedding in run.embeddings.items():
        if "cls_pat" not in embedding.column_names:
            continue
        title = EMBEDDING_TITLES[stage] + note
        labels = embedding["label"].to_pylist()
        figure = tsne_figure(
            vectors(embedding), labels, classes or sorted(set(labels)), title, embedding["part"].to_pylist()
        )
        drawn[save_figure(figure, folder / f"tsne_{stage}.png").name] = f"Map (t-SNE) of {title}"
    for stage, lines in run.logs.items():
        curves = curves_figure(stage, lines)
        if curves is not None:
            drawn[save_figure(curves, folder / f"curves_{stage}.png").name] = f"Training curves of stage {stage}"
    return drawn


def _classes(run: RunData) -> list[str]:
    named = (run.metrics or {}).get("classes") or _store(run).get("classes") or []
    seen: set[str] = set()
    for table in (run.predictions, *run.embeddings.values()):
        if table is not None:
            seen |= set(table["label"].to_pylist())
            seen |= set(table["predicted"].to_pylist()) if "predicted" in table.column_names else set()
    return [*named, *sorted(seen - set(named))]


def _head(run: RunData) -> str:
    title = f"# Run {run.name}"
    return f"{title}\n\n{tables.TRANSDUCTIVE}" if run.transductive else title


def _what_was_run(run: RunData) -> str:
    lines = ["## What was run", ""]
    aim = AIMS[tables.kind_of({"kind": run.setting("target.kind") or "class"})]
    if _method(run) == "GiMP":
        lines.append(
            "GiMP learns one vector per patient from slide patches and gene expression: first a gene encoder, then "
            f"pre-training on both together, then fine-tuning to {aim}."
        )
    else:
        lines.append(f"{_method(run)}, a method compared with GiMP, was trained to {aim}.")
    attempts = run.record.get("attempts") or []
    if attempts:
        last = attempts[-1]
        lines.append(
            f"\nLast command: `{last.get('command', '?')}`, started {last.get('started', '?')}, "
            f"{last.get('status', '?')}."
        )
        lines.append(_how_it_went(run, attempts))
    if run.setting("seed") is not None:
        lines.append(
            f"\nSeed {run.setting('seed')}, {run.setting('train.workers')} worker(s), "
            f"precision {run.setting('train.precision')}."
        )
    return "\n".join(lines)


def _method(run: RunData) -> str:
    return str(run.record.get("method", "GiMP"))


def _how_it_went(run: RunData, attempts: list[dict[str, Any]]) -> str:
    """Attempts, restarts of workers and skipped steps."""
    ended = Counter(_outcome(attempt, newest=attempt is attempts[-1]) for attempt in attempts)
    how = ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
    made = f"The run took {len(attempts)} attempts ({how})" if len(attempts) > 1 else "The run took one attempt"
    restarts = sum(len(attempt.get("restarts") or ()) for attempt in attempts)
    again = f"{restarts} restart{'s' * (restarts > 1)} of its workers" if restarts else "no restart of workers"
    each = ", ".join(f"{stage} {count}" for stage, count in _skipped(run).items())
    skipped = f"Training steps skipped because loss or gradient was not finite: {each}." if each else ""
    return f"\n{made}, with {again}. {skipped or 'No training step was skipped.'}"


def _outcome(attempt: dict[str, Any], newest: bool) -> str:
    outcome = str(attempt.get("status", "running")).partition(":")[0]
    return outcome if newest or outcome != "running" else "ended without a recorded status"


def _skipped(run: RunData) -> dict[str, int]:
    """Stage -> optimiser steps skipped, from its card, or from its log where it is not finished."""
    folder, found = RunFolder(run.path), {}
    for stage in STAGES:
        if folder.stage_done(stage):
            count = read_json(folder.model_card(stage)).get("skipped_batches")
        else:
            lines = [line for line in run.logs.get(stage, []) if line.get("kind") == "skipped"]
            count = lines[-1].get("skipped", len(lines)) if lines else None
        if count:
            found[stage] = int(count)
    return found


def _data(run: RunData) -> str:
    store = _store(run)
    rows: list[list[Any]] = []
    for key, name in (("cases", "cases"), ("slides", "slides"), ("patches", "patches"), ("genes", "genes")):
        if store.get(key) is not None:
            rows.append([name, f"{store[key]:,}" if isinstance(store[key], int) else store[key]])
    if store.get("dim"):
        rows.append(["patch embedding", f"width {store['dim']}, encoder {store.get('encoder') or 'not recorded'}"])
    if store.get("gene_unit"):
        rows.append(["unit of genes", store["gene_unit"]])
    if _classes(run):
        rows.append(["classes", ", ".join(_classes(run))])
    if run.setting("split.scheme") is not None:
        rows.append(["split", f"{run.setting('split.scheme')}, fold {run.setting('split.fold')}, by patient"])
    rows += _part_rows(run)
    if store.get("fingerprint"):
        rows.append(["store fingerprint", f"`{store['fingerprint']}`"])
    return f"## Data\n\n{tables.markdown_table(['what', 'value'], rows)}" if rows else "## Data\n\nNot recorded yet."


def _part_rows(run: RunData) -> list[list[Any]]:
    """Cases of each class in each split part."""
    table = run.embeddings.get("finetune") or run.predictions
    if table is None:
        return []
    counted = Counter(zip(table["part"].to_pylist(), table["label"].to_pylist(), strict=True))
    events: Counter[str] = Counter()
    if "event" in table.column_names:
        pairs = zip(table["part"].to_pylist(), table["event"].to_pylist(), strict=True)
        events.update(part for part, event in pairs if event)
    rows = []
    for part in ("train", "val", "test"):
        counts = {label: count for (where, label), count in sorted(counted.items(), key=str) if where == part}
        if counts:
            each = ", ".join(f"{label} {count}" for label, count in counts.items())
            seen = f"; {events[part]} events" if "event" in table.column_names else ""
            rows.append([f"{part} cases", f"{sum(counts.values())} ({each}{seen})"])
    return rows


def _results(run: RunData) -> str:
    if not run.metrics or not run.metrics.get("rows"):
        return "## Results\n\nNot evaluated yet: run `gimp evaluate`."
    notes = (
        "How to read it: the baselines are simple models fitted on the same training cases. "
        f"{HOW_TO_READ[tables.kind_of(run.metrics)]} *Mean-pooled patches* uses the image without attention. "
        "Where intervals overlap widely, there are too few patients to tell the methods apart. The intervals cover "
        "the choice of patients, not of seeds or splits."
    )
    blocks = ["## Results", tables.results_table(run.metrics, run.transductive), notes]
    if len(run.metrics["rows"]) < 2:
        blocks.append("The baselines were switched off; without them the result cannot be judged.")
    if run.metrics.get("notes"):
        blocks.append("Notes:\n\n" + "\n".join(f"- {note}" for note in run.metrics["notes"]))
    detail = tables.detail_table(run.metrics, run.transductive)
    return "\n\n".join([*blocks, detail] if detail else blocks)


def _pictures(figures: dict[str, str]) -> str:
    if not figures:
        return ""
    return "## Figures\n\n" + "\n\n".join(f"![{what}](figures/{name})\n\n*{what}.*" for name, what in figures.items())


def _time(run: RunData) -> str:
    table = tables.stages_table(run)
    return f"## Time\n\n{table}" if table else ""


def _choices(run: RunData) -> str:
    if not run.config:
        return ""
    return (
        "## Settings\n\nStated in the paper (bold where this run differs):\n\n"
        f"{tables.given_table(run)}\n\nNot stated in the paper, as chosen here:\n\n{tables.choices_table(run)}"
    )


def _environment(run: RunData) -> str:
    environment = run.environment
    if not environment:
        return ""
    libraries = environment.get("libraries") or {}
    rows = [
        [name, value]
        for name, value in environment.items()
        if name != "libraries" and not isinstance(value, dict | list)
    ]
    rows += [[name, version] for name, version in libraries.items() if version]
    return f"## Environment\n\n{tables.markdown_table(['what', 'value'], rows)}"


def _rerun(run: RunData) -> str:
    config, name = shlex.quote(f"{run.place}/config.yaml"), shlex.quote(f"{run.place}-again")
    return (
        "## How to run it again\n\n"
        f"```\ngimp run --config {config} --run {name}\n```\n\n"
        "The same config, store and seed give the same split, the same windows and the same masks. The same command "
        "on this run folder resumes it."
    )


def _store(run: RunData) -> dict[str, Any]:
    store = run.record.get("store")
    return store if isinstance(store, dict) else {}
