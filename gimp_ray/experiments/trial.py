"""One trial: a run folder trained rung by rung, measured after each, and told to whoever decides whether it goes on.

A trial trains to a rung with `train.stop_after`, the same run continued, and is measured between two rungs. Another
way is a call at each epoch's end from inside the training loop. Rungs were chosen since they need nothing of the
engine, are the same for a trial in this process and for one on several workers, and a trial waits for the decision
with nothing in flight: stopped there it is a whole run folder, and killed anywhere it goes on from its own checkpoint.
The price is a new start a rung (seconds in this process; with workers 20 to 40 s, and again for the embedding), which
rungs that grow by a factor make small.

Population based training takes a better trial's checkpoint over with other values. A run folder is one computation
under one config, so what is taken over begins a run folder of its own (`t003-2`), with the checkpoint copied and the
new config; the record's `lineage` says from whom, when and which values. Left out: Ray (`on_tune.py`).
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.engine.checkpoint import adopt_checkpoint, latest_checkpoint
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.measure import figures_of
from gimp_ray.experiments.records import Record, finished, read_record, write_record
from gimp_ray.experiments.settings import SweepConfig, config_with, rungs_of, stage_of
from gimp_ray.experiments.space import Params
from gimp_ray.runs.folder import RunFolder, read_json, write_json, write_text

BUSY = "another command is at work on this run"
BUSY_S = 120.0  # a process that was killed with its cluster is gone within seconds
DONOR = "donor.json"
# figures of a measurement, and where what a better trial would hand on lies
Report = Callable[[dict[str, Any], Path | None], None]


@dataclass(frozen=True)
class Setting:
    """What all trials of a command share.

    Attributes:
        place: the sweep's folder, a path or URI.
        base: the base config as plain data.
        sweep: the settings.
        genes: the shared gene encoder, a path or URI; None where each trial trains its own.
        session: names the command; a scheduler of another knows nothing of this one's measurements.
    """

    place: str
    base: dict[str, Any]
    sweep: SweepConfig
    genes: str | None
    session: str


def run_trial(setting: Setting, name: str, params: Params, report: Report, given: Path | None = None) -> None:
    """Train and measure a trial until it is done; what was measured already is told again, not done again.

    Args:
        setting: the sweep's.
        name: of the trial.
        params: config key -> value.
        report: gets each measurement; does not return where the trial is to end.
        given: what `handed_on` made of a trial, to go on from; for population based training.

    Raises:
        GimpError: the trial cannot go on; its record has the reason.
    """
    record = read_record(setting.place, name)
    if record["status"] == "failed":  # tried again by somebody who does not know
        raise GimpError(str(record["reason"]))
    if finished(record):
        return
    try:
        _go_through(setting, record, params, report, given)
    except Exception as error:
        record["reason"] = reason_of(error)
        if isinstance(error, ConfigError | InputError):  # the same again another time
            record["status"] = "failed"
        write_record(setting.place, record)
        raise


def reason_of(error: BaseException) -> str:
    """One line that says why."""
    found = getattr(error, "found", None)
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    text = first if isinstance(error, GimpError) else f"{type(error).__name__}: {first}"
    return text + (f": {str(found).splitlines()[0]}" if found else "")


def config_of(setting: Setting, params: Params, run: str) -> Config:
    """A trial's config: the base with its values, in its folder, quiet."""
    changes: dict[str, Any] = params | {"run": run, "log.progress": False}
    if setting.genes is not None:
        changes["genes.checkpoint"] = setting.genes
    if setting.sweep.gpus_per_trial == 0:
        changes["train.use_gpu"] = False
    config = config_with(setting.base, changes)
    if config.train.workers == 0 and not config.train.threads:
        # trials share the machine: as many threads as CPUs were asked for
        changes["train.threads"] = max(1, int(config.train.cpus_per_worker))
        config = config_with(setting.base, changes)
    return config


def _go_through(setting: Setting, record: Record, params: Params, report: Report, given: Path | None) -> None:
    sweep, begun = setting.sweep, time.monotonic()
    if given is not None and _is_news(record, read_json(given / DONOR), params):
        _take_over(setting, record, params, given)
    elif record["session"] != setting.session and sweep.scheduler != "pbt":
        for earlier in record["reports"]:
            report(_told(earlier), None)
    record["session"] = setting.session
    write_record(setting.place, record)
    config = config_of(setting, record["params"], record["run"])
    run, stage = RunFolder(record["run"]), stage_of(sweep)
    before = record["reports"][-1]["seconds"] if record["reports"] else 0.0
    at = _epoch(record)
    rungs = rungs_of(sweep, config.stage_train(stage).epochs)
    for rung in [rung for rung in rungs if rung > at] or rungs[-1:]:
        _when_free(functools.partial(train_to, config, run, stage, rung, over=rung == rungs[-1]))
        over = rung == rungs[-1] or run.stage_done(stage)  # before its last rung by `patience`
        figures = figures_of(config, run, stage, sweep.probe, sweep.resamples)
        if figures[sweep.metric]["value"] is None:
            raise InputError(
                f"'{sweep.metric}' is not defined on the validation part",
                found="a class or label that no validation case has, or no event",
                fix="use another metric, such as accuracy of a class, or another split",
            )
        seconds = round(before + time.monotonic() - begun, 1)
        record["reports"].append({"epoch": rung, "figures": figures, "seconds": seconds})
        record["reason"] = None
        if over:
            # before it is told: whatever a scheduler thinks of the last measurement, the trial is over
            record["status"] = "done"
        write_record(setting.place, record)
        if sweep.scheduler == "pbt":
            with handed_on(run, stage, record) as folder:
                report(_told(record["reports"][-1]), folder)
        else:
            report(_told(record["reports"][-1]), None)
        if over:
            return


def train_to(config: Config, run: RunFolder, stage: str, epoch: int, over: bool) -> None:
    """Train a run's stage, and what comes before it, to an epoch, or to its end."""
    limit = None if over else epoch
    if stage == "pretrain":
        pipeline.pretrain(config_with(config.model_dump(), {"train.stop_after": limit}))
        return
    run.pull()
    compared = config.method.recipe is not None  # such a method has one stage
    if config.finetune.init == "pretrain" and not compared and not run.stage_done("pretrain"):
        pipeline.pretrain(config)
    section = "method" if compared else "finetune"
    pipeline.finetune(config_with(config.model_dump(), {f"{section}.train.stop_after": limit}))


@contextlib.contextmanager
def handed_on(run: RunFolder, stage: str, record: Record) -> Iterator[Path]:
    """A folder with what another trial needs to go on from this one: gene encoder, log, newest checkpoint.

    Args:
        run: the trial's.
        stage: being trained.
        record: the trial's.
    """
    run.pull_models()
    run.pull_stage(stage)
    found = latest_checkpoint(run.checkpoints(stage))
    assert found is not None, "a rung ends with a checkpoint"
    with tempfile.TemporaryDirectory(prefix="gimp-handed-on-") as name:
        folder = Path(name)
        for file in (run.model_file("genes"), run.model_card("genes")):
            if file.exists():
                shutil.copy2(file, folder)
        (folder / stage / "checkpoints").mkdir(parents=True)
        shutil.copy2(run.metrics_log(stage), folder / stage)
        shutil.copytree(found[0], folder / stage / "checkpoints" / found[0].name)
        write_json(
            folder / DONOR,
            {"name": record["name"], "run": record["run"], "params": record["params"], "epoch": _epoch(record)},
        )
        yield folder


def _take_over(setting: Setting, record: Record, params: Params, given: Path) -> None:
    """Make a run folder of what another trial handed on, under other values."""
    donor = read_json(given / DONOR)
    run = RunFolder(f"{setting.place}/trials/{record['name']}-{len(record['lineage']) + 2}")
    if run.path.exists():  # half made by a process that was killed
        shutil.rmtree(run.path)
    shutil.copytree(given, run.path)
    config = config_of(setting, params, run.place)
    write_text(run.config_file, to_yaml(config))
    adopt_checkpoint(run.checkpoints("pretrain"), pipeline.stage_inputs("pretrain", config))
    run.push()
    run.push_stage("pretrain")
    step = {key: donor[key] for key in ("name", "run", "epoch")}
    record["lineage"].append(step | {"from": donor["params"], "before": record["params"], "after": params})
    record |= {"params": params, "run": run.place}
    # the figures of the values it had are another trial's history now
    record["reports"] = [one for one in record["reports"] if one["epoch"] <= donor["epoch"]]


def _is_news(record: Record, donor: dict[str, Any], params: Params) -> bool:
    """Whether what was given is another trial's, and not taken over already."""
    if donor["name"] == record["name"]:
        return False
    last = record["lineage"][-1] if record["lineage"] else {}
    return (last.get("run"), last.get("epoch"), last.get("after")) != (donor["run"], donor["epoch"], params)


def _epoch(record: Record) -> int:
    """Epochs that are done: by measurement, or by what was taken over since."""
    measured = record["reports"][-1]["epoch"] if record["reports"] else 0
    taken = record["lineage"][-1]["epoch"] if record["lineage"] else 0
    return max(int(measured), int(taken))


def _told(report: dict[str, Any]) -> dict[str, Any]:
    """A measurement as a scheduler wants it: plain numbers."""
    values = {name: figure["value"] for name, figure in report["figures"].items()}
    return {"epoch": report["epoch"]} | {name: value for name, value in values.items() if value is not None}


def _when_free(work: Callable[[], None]) -> None:
    """Do work on a run folder; wait for a process that was killed with its cluster and still holds it."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            work()
        except InputError as error:
            if error.what != BUSY or time.monotonic() > until:
                raise
        else:
            return
        time.sleep(1.0)
