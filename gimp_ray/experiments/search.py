"""A sweep from beginning to end: what is left to do runs on Ray Tune, then the results are written.

The same command on the same folder goes on: the trials' records say which are over, and the others go on from their own
run folders.

    SWEEP/sweep.md, trials.parquet, trials.json, best.yaml, figures/   made from the records, any number of times
    SWEEP/sweep.yaml, records/                                         settings and base; one JSON a trial
    SWEEP/trials/t000, ..., shared/genes/<key>                         run folders, see `runs.py`
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from pathlib import Path

import yaml

from gimp_ray.config import Config
from gimp_ray.config_files import with_absolute_paths
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.records import Record, best_of, finished, new_record, read_records, write_file, write_record
from gimp_ray.experiments.report import write_outputs
from gimp_ray.experiments.space import Dimension
from gimp_ray.experiments.sweep import (
    PAPER,
    SweepConfig,
    check_same,
    check_sweep,
    planned,
    read_sweep,
    stage_of,
    to_file,
)
from gimp_ray.experiments.trial import Setting, check_unchanged
from gimp_ray.io.mirror import local_file
from gimp_ray.learn.stage import open_store
from gimp_ray.learn.targets import make_target
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
        session = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        setting = Setting(run.place, base.model_dump(), sweep, session)
        check_unchanged(setting, records)
        if left := _left(sweep, records):
            _run_left(setting, base, space, records, left)
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
    """Write the sweep's settings, or check that these may continue it."""
    file = f"{run.place}/sweep.yaml"
    with contextlib.suppress(InputError):  # of one in object storage that is not there
        if (here := local_file(file)).exists():
            before = yaml.safe_load(here.read_text())
            del before["base"]
            check_same(file, before, sweep)
    write_file(file, to_file(base, sweep).encode())


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
            record = new_record(number, params)
            write_record(run.place, record)
            records.append(record)
    return records


def _left(sweep: SweepConfig, records: list[Record]) -> int:
    """How many trials are left to run."""
    over = sum(finished(record) for record in records)
    return max(0, sweep.trials - over) if sweep.search == "optuna" else len(records) - over


def _run_left(setting: Setting, base: Config, space: list[Dimension], records: list[Record], left: int) -> None:
    from gimp_ray.experiments import tune

    over = sum(finished(record) for record in records)
    print(f"sweep: {left} trial(s) to run, {over} are over; see {setting.uri}/records", flush=True)
    tune.connect(base, setting.sweep)
    tune.run_on_tune(setting, base, space, records, base.stage_train(stage_of(setting.sweep)).epochs)
    waiting = [record["name"] for record in read_records(setting.uri) if not finished(record)]
    if waiting:
        print(f"note: {len(waiting)} trial(s) are not over; the same command goes on with them", flush=True)


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
