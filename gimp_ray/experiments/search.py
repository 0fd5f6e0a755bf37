"""A sweep from beginning to end: what is left to do is done on Ray Tune, and what came out is written.

The same command on the same folder goes on: the trials' records say which are over, and the others go on from their own
run folders. Left out: what a trial does (`trial.py`), who decides on trials (`on_tune.py`).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from gimp_ray.config import Config
from gimp_ray.config_files import with_absolute_paths
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.outputs import write_outputs
from gimp_ray.experiments.records import Record, best_of, finished, new_record, read_records, write_file, write_record
from gimp_ray.experiments.settings import (
    PAPER,
    SweepConfig,
    check_same,
    check_sweep,
    planned,
    read_sweep,
    shares_genes,
    stage_of,
    to_file,
)
from gimp_ray.experiments.space import Dimension
from gimp_ray.experiments.trial import Setting
from gimp_ray.learn.stage import open_store
from gimp_ray.learn.targets import make_target
from gimp_ray.pipeline import stages_up_to
from gimp_ray.runs.folder import RunFolder, unwritable

__all__ = ["PAPER", "SweepConfig", "read_sweep", "search"]


def search(base: Config, sweep: SweepConfig) -> Path:
    """Run a sweep in the folder `base.run`, or what is left of it.

    Args:
        base: what every trial shares; its store and run must be given.
        sweep: the settings.

    Returns:
        The folder on this machine, a copy where `base.run` is in object storage.

    Raises:
        ConfigError: no run folder or store was given, a key of the space is unknown, or the sweep was begun with other
            settings.
        InputError: the split has no validation cases to measure on, or another command is at work on the sweep.
        GimpError: no trial came to an end.
    """
    if base.run is None or base.store is None:
        raise ConfigError(
            "a search needs a store and a folder", expected="--store STORE --run SWEEPDIR", found="one of them missing"
        )
    base = with_absolute_paths(base)
    space = check_sweep(base, sweep)
    _check_validation(base, sweep)
    run = RunFolder(base.run or "")
    with run.one_command(), unwritable(run.place):
        _begin(run, base, sweep)
        records = _records(run, sweep, space)
        if _left(sweep, records):
            _run_left(run, base, sweep, space, records)
            records = read_records(run.place)
        write_outputs(run, base, sweep, space, records)
    counts = Counter(record["status"] for record in records)
    print("sweep: " + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())), flush=True)
    if best_of(records, sweep.metric) is None:
        reasons = [record["reason"] for record in records if record["reason"]]
        raise GimpError(
            "no trial came to an end",
            file=run.place_of(run.path / "trials.json"),
            found=str(reasons[0] if reasons else "no trial was begun"),
        )
    return run.path


def _begin(run: RunFolder, base: Config, sweep: SweepConfig) -> None:
    """Write the sweep's settings, or check that these may go on with it."""
    file = run.path / "sweep.yaml"
    text = to_file(base, sweep)
    saved = _saved(run)
    if saved is not None:
        check_same(run.place_of(file), saved, base, sweep)
    write_file(f"{run.place}/sweep.yaml", text.encode())


def _saved(run: RunFolder) -> dict[str, Any] | None:
    from gimp_ray.io.mirror import local_file

    place = f"{run.place}/sweep.yaml"
    try:
        file = local_file(place)
    except InputError:  # of one in object storage
        return None
    if not file.exists():
        return None
    tree = yaml.safe_load(file.read_text())
    return {"base": tree.pop("base"), "sweep": tree}


def _records(run: RunFolder, sweep: SweepConfig, space: list[Dimension]) -> list[Record]:
    """All trials' records; those of a search that knows its trials beforehand are made now."""
    records = read_records(run.place)
    if sweep.retry_failed:
        for record in records:
            if record["status"] == "failed":
                record |= {"status": "waiting", "reason": None}
                write_record(run.place, record)
    if sweep.search == "optuna":
        return records
    plan = planned(sweep, space)
    if len(plan) < sweep.trials and sweep.search == "random":
        print(
            f"note: the space has {len(plan)} different settings, and {sweep.trials} trials were asked for", flush=True
        )
    for number, params in enumerate(plan):
        if number >= len(records):
            record = new_record(run.place, number, params)
            write_record(run.place, record)
            records.append(record)
    return records


def _left(sweep: SweepConfig, records: list[Record]) -> int:
    """How many trials are left to run."""
    over = sum(finished(record) for record in records)
    return max(0, sweep.trials - over) if sweep.search == "optuna" else len(records) - over


def _run_left(run: RunFolder, base: Config, sweep: SweepConfig, space: list[Dimension], records: list[Record]) -> None:
    from gimp_ray.experiments import on_tune

    over, left = sum(finished(record) for record in records), _left(sweep, records)
    print(f"sweep: {left} trial(s) to run, {over} are over; see {run.place}/records", flush=True)
    on_tune.connect(base, sweep)
    genes = None
    if _has_genes(base, sweep) and shares_genes(base, sweep, space):
        genes = on_tune.train_genes(base, RunFolder(f"{run.place}/genes"))
    session = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    setting = Setting(run.place, base.model_dump(), sweep, genes, session)
    on_tune.run_on_tune(setting, base, space, records, base.stage_train(stage_of(sweep)).epochs)
    waiting = [record["name"] for record in read_records(run.place) if not finished(record)]
    if waiting:
        print(f"note: {len(waiting)} trial(s) are not over; the same command goes on with them", flush=True)


def _has_genes(base: Config, sweep: SweepConfig) -> bool:
    """Whether trials would train a gene encoder in a stage of its own."""
    return "genes" in stages_up_to(stage_of(sweep), base, open_store(base).num_genes > 0)


def _check_validation(base: Config, sweep: SweepConfig) -> None:
    """Refuse a split whose validation part cannot be measured on."""
    store = open_store(base)
    split = store.split(base.split.scheme, base.split.fold)
    where = f"scheme {base.split.scheme}, fold {base.split.fold}"
    if not split.val:
        raise InputError(
            "the split has no validation part to measure trials on",
            file=store.path,
            found=where,
            fix="choose another scheme or fold",
        )
    if sweep.objective == "finetune":
        target = make_target(base, store, split.train)
        if not target.known(split.val):
            raise InputError(
                f"no validation case has a known {target.kind} to measure trials by",
                file=store.path,
                found=where,
                fix="choose another split or target",
            )
    cases = store.cases.to_pydict()
    label_of = dict(zip(cases["case_id"], cases["label"], strict=True))
    missing = sorted(set(store.classes) - {label_of[case] for case in split.val})
    classes = base.target.kind == "class" and not base.target.columns
    if sweep.metric == "auroc" and missing and classes:
        raise InputError(
            "AUROC is not defined on a validation part that lacks a class",
            file=store.path,
            expected="validation cases of every class",
            found=f"none of {', '.join(missing)} ({where})",
            fix="choose another split, or --metric accuracy",
        )
