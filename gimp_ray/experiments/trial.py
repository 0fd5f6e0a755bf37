"""One trial: a run folder trained rung by rung, measured after each, and reported to the scheduler.

A trial trains to a rung with `train.stop_after`, the same run continued, and is measured between two rungs; while it
waits for the scheduler's decision nothing is in flight, so stopped there it is a whole run folder, and killed anywhere
it goes on from its own checkpoint. The price is a new start a rung, which rungs that grow by a factor make small.

Population based training continues a better trial's checkpoint with other values. A run folder is one computation
under one config, so that begins a run folder of its own (`t003-2`), with the checkpoint copied and the new config; the
record's `lineage` says from which trial, at which epoch and which values.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.engine.checkpoint import adopt_checkpoint, latest_checkpoint
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.measure import metrics_of
from gimp_ray.experiments.records import Record, finished, read_record, run_of, write_record
from gimp_ray.experiments.runs import Step, encoder_of, shared_genes, why_missing, with_changes
from gimp_ray.experiments.space import Params
from gimp_ray.experiments.sweep import SweepConfig, rungs_of, stage_of
from gimp_ray.io.files import read_json, write_json, write_text
from gimp_ray.learn.stage import open_store
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import refuse_changed

BUSY = "another command is at work on this run"
BUSY_S = 120.0  # a process that was killed with its cluster is gone within seconds
DONOR = "donor.json"
# metrics of a measurement, and the folder with what another trial would continue from
Report = Callable[[dict[str, Any], Path | None], None]


@dataclass(frozen=True)
class Setting:
    """What all trials of a command share.

    Attributes:
        uri: the sweep's folder, a path or URI.
        base: the base config as plain data.
        sweep: the settings.
        session: names the command; a scheduler of another knows nothing of this one's measurements.
    """

    uri: str
    base: dict[str, Any]
    sweep: SweepConfig
    session: str


def run_trial(setting: Setting, name: str, params: Params, report: Report, given: Path | None = None) -> None:
    """Train and measure a trial until it is done; what was measured already is reported again, not done again.

    Args:
        setting: the sweep's.
        name: of the trial.
        params: config key -> value.
        report: gets each measurement; does not return where the trial is to end.
        given: what `handed_on` made of a trial, to go on from; for population based training.

    Raises:
        GimpError: the trial cannot go on; its record has the reason.
    """
    record = read_record(setting.uri, name)
    if record["status"] == "failed":  # Tune tries it again
        raise GimpError(str(record["reason"]))
    if finished(record):
        return
    try:
        _go_through(setting, record, params, report, given)
    except Exception as error:
        record["reason"] = reason_of(error)
        if isinstance(error, ConfigError | InputError):  # the same again another time
            record["status"] = "failed"
        write_record(setting.uri, record)
        raise


def reason_of(error: BaseException) -> str:
    """One line that says why."""
    found = getattr(error, "found", None)
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    text = first if isinstance(error, GimpError) else f"{type(error).__name__}: {first}"
    return text + (f": {str(found).splitlines()[0]}" if found else "")


def config_of(setting: Setting, params: Params, run: str) -> tuple[Config, Step | None]:
    """A trial's config, the base with its values in its folder; and the step that trains its gene encoder, which it
    shares with every trial that would train the same one.
    """
    changes: dict[str, Any] = params | {"run": run, "log.progress": False}
    if setting.sweep.gpus_per_trial == 0:
        changes["train.use_gpu"] = False
    config = load_config(None, changes, base=setting.base)
    if config.train.workers == 0 and not config.train.threads:
        # trials share the machine: as many threads as CPUs were reserved
        config = with_changes(config, {"train.threads": max(1, int(config.train.cpus_per_worker))})
    has_genes = open_store(config).num_genes > 0
    genes = shared_genes(config, setting.uri, has_genes, stage_of(setting.sweep))
    return (config if genes is None else with_changes(config, {"genes.checkpoint": encoder_of(genes)})), genes


def check_unchanged(setting: Setting, records: list[Record]) -> None:
    """Refuse to continue a sweep whose trials were made from something else than its base means now.

    Raises:
        ConfigError: another setting or seed; names the trial's run and the key.
        InputError: another store, or other content of a file that a stage starts from.
    """
    for record in records:
        run = run_of(setting.uri, record)
        if record["inputs"]:
            config, _ = config_of(setting, record["params"], run)
            for was in record["inputs"]:
                refuse_changed(was, pipeline.stage_inputs(was["stage"], config), run)


def _go_through(setting: Setting, record: Record, params: Params, report: Report, given: Path | None) -> None:
    sweep, begun = setting.sweep, time.monotonic()
    if given is not None and _is_new(record, read_json(given / DONOR), params):
        _take_over(setting, record, params, given)
    elif record["session"] != setting.session and sweep.scheduler != "pbt":
        for earlier in record["reports"]:
            report(_plain(earlier), None)
    record["session"] = setting.session
    write_record(setting.uri, record)
    config, genes = config_of(setting, record["params"], run_of(setting.uri, record))
    if genes is not None and why_missing(genes) is not None:
        _when_free(functools.partial(pipeline.pretrain_genes, genes.config), seconds=math.inf)
    run, stage = RunFolder(str(config.run)), stage_of(sweep)
    stages = pipeline.stages_up_to(stage, config, has_genes=True)
    before = record["reports"][-1]["seconds"] if record["reports"] else 0.0
    at = _epoch(record)
    rungs = rungs_of(sweep, config.stage_train(stage).epochs)
    for rung in [rung for rung in rungs if rung > at] or rungs[-1:]:
        _when_free(functools.partial(train_to, config, run, stages, rung, over=rung == rungs[-1]))
        over = rung == rungs[-1] or run.stage_done(stage)  # before its last rung by `patience`
        metrics = metrics_of(config, run, stage, sweep.probe, sweep.resamples)
        if metrics[sweep.metric]["value"] is None:
            raise InputError(
                f"'{sweep.metric}' is not defined on the validation part",
                found="a class or label that no validation case has, or no event",
                fix="use another metric, such as accuracy of a class, or another split",
            )
        seconds = round(before + time.monotonic() - begun, 1)
        record["reports"].append({"epoch": rung, "metrics": metrics, "seconds": seconds})
        record |= {"reason": None, "inputs": [pipeline.stage_inputs(name, config) for name in stages]}
        if over:
            # before it is reported: whatever a scheduler makes of the last measurement, the trial is over
            record["status"] = "done"
        write_record(setting.uri, record)
        if sweep.scheduler == "pbt":
            with handed_on(run, stage, record) as folder:
                report(_plain(record["reports"][-1]), folder)
        else:
            report(_plain(record["reports"][-1]), None)
        if over:
            return


def train_to(config: Config, run: RunFolder, stages: list[str], epoch: int, over: bool) -> None:
    """Train the last of a run's stages, and those before it, to an epoch, or to its end."""
    limit = None if over else epoch
    if stages[-1] == "pretrain":
        pipeline.pretrain(with_changes(config, {"train.stop_after": limit}))
        return
    run.pull()
    if "pretrain" in stages and not run.stage_done("pretrain"):
        pipeline.pretrain(config)
    section = config.trained_by["finetune"]
    pipeline.finetune(with_changes(config, {f"{section}.train.stop_after": limit}))


@contextlib.contextmanager
def handed_on(run: RunFolder, stage: str, record: Record) -> Iterator[Path]:
    """A folder with what another trial needs to go on from this one: log and newest checkpoint.

    Args:
        run: the trial's.
        stage: being trained.
        record: the trial's.
    """
    run.pull_stage(stage)
    found = latest_checkpoint(run.checkpoints(stage))
    assert found is not None, "a rung ends with a checkpoint"
    with tempfile.TemporaryDirectory(prefix="gimp-handed-on-") as name:
        folder = Path(name)
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
    name = f"trials/{record['name']}-{len(record['lineage']) + 2}"
    run = RunFolder(f"{setting.uri}/{name}")
    if run.path.exists():  # half made by a process that was killed
        shutil.rmtree(run.path)
    shutil.copytree(given, run.path)
    config, _ = config_of(setting, params, run.place)
    write_text(run.config_file, to_yaml(config))
    adopt_checkpoint(run.checkpoints("pretrain"), pipeline.stage_inputs("pretrain", config))
    run.push()
    run.push_stage("pretrain")
    step = {key: donor[key] for key in ("name", "run", "epoch")}
    record["lineage"].append(step | {"from": donor["params"], "before": record["params"], "after": params})
    record |= {"params": params, "run": name}
    # the metrics of the values it had are another trial's history now
    record["reports"] = [one for one in record["reports"] if one["epoch"] <= donor["epoch"]]


def _is_new(record: Record, donor: dict[str, Any], params: Params) -> bool:
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


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    """A measurement as plain numbers, for a scheduler."""
    values = {name: metric["value"] for name, metric in report["metrics"].items()}
    return {"epoch": report["epoch"]} | {name: value for name, value in values.items() if value is not None}


def _when_free(work: Callable[[], Any], seconds: float = BUSY_S) -> None:
    """Do work on a run folder; wait for another process that holds it."""
    until = time.monotonic() + seconds
    while True:
        try:
            work()
        except InputError as error:
            if error.what != BUSY or time.monotonic() > until:
                raise
        else:
            return
        time.sleep(1.0)
