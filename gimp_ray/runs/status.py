"""What a run folder says about its run: stage, progress, last figures, attempts, restarts and failures with reasons.

Reads only, a few small files, straight from where they are: of a run in object storage no copy is made or brought up
to date, so asking never disturbs a run. Left out: what a finished run found out (`summary.md`), and asking the machine
whether the process lives, which may be another machine; a run that wrote nothing for long is called silent.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import PurePosixPath
from statistics import median
from typing import Any

import yaml
from pyarrow import fs as pafs

from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.progress import duration
from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.files import parse_lines
from gimp_ray.io.storage import advice, as_location, read_bytes, resolve
from gimp_ray.runs.folder import STAGES

# a run that writes nothing for so long is called silent, unless its own lines are further apart
SILENT_S = 600.0
SILENT_GAPS = 5
# what a line of the log is about, as against what it measured
_ABOUT = ("time", "stage", "epoch", "epochs", "step", "steps", "mini_batches", "kind")
# of restarts, so many are told for people, and so many characters of the reason; the JSON has all
RESTARTS_SHOWN = 3
REASON_SHOWN = 160


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is.

    Attributes:
        name: `genes`, `pretrain` or `finetune`.
        state: `done` (its final model is there), `begun` or `waiting`.
        epoch: epochs that are whole.
        epochs: epochs it is to have; None where the config does not say.
        step: optimiser steps done, by the log.
        steps: optimiser steps it is to have with as many workers as there were last; None where the log does not say.
        checkpoint: optimiser steps at the newest checkpoint, where the next attempt goes on; None without one.
        last: figures of the newest step line (loss and its parts, cases/s, ...).
        validation: figures of the newest validation line.
        logged: when the newest line was written, in seconds since 1970; None without a line.
        eta: seconds the stage still needed when that line was written; None where the log does not say.
    """

    name: str
    state: str
    epoch: int
    epochs: int | None
    step: int
    steps: int | None
    checkpoint: int | None
    last: dict[str, float]
    validation: dict[str, float]
    logged: float | None
    eta: float | None


@dataclass(frozen=True)
class RunStatus:
    """A run, as its folder tells it.

    Attributes:
        run: the folder as it was named.
        state: `empty`, `not begun`, `running`, `silent` (running by its record, but nothing was written for long),
            `stopped` (by `stop_after`), `preempted` (it was asked to end, and saved), `interrupted`, `failed` or
            `done`.
        stage: the stage it is in, or ended in; `evaluation` after the last one; None before the first.
        workers: training now, by the record; None where it does not say, or nothing runs.
        seconds_since_sign: since anything in the folder was written; None for an empty one.
        stages: those that were begun, or asked for by the last attempt.
        attempts: of the run's record: started, ended, command, host, stages, status.
        restarts: of workers, oldest first: `attempt` (counted from 1), `time`, `reason`, and `workers` and `step` it
            went on with where the record says them.
        failures: one sentence for each attempt that did not end well, oldest first.
        notes: what could not be read.
    """

    run: str
    state: str
    stage: str | None
    workers: int | None
    seconds_since_sign: float | None
    stages: tuple[StageStatus, ...]
    attempts: tuple[dict[str, Any], ...]
    restarts: tuple[dict[str, Any], ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def run_status(place: str, now: float | None = None) -> RunStatus:
    """Read the state of a run folder, whatever it is in: going on, ended, killed, or empty.

    Args:
        place: the folder's path or URI.
        now: the time to compare with, in seconds since 1970.

    Raises:
        InputError: there is no such folder, it is no run's, its record cannot be read, or the storage does not answer.
    """
    place = as_location(place)
    folder = _Folder(place)
    names = folder.names("")
    if not any(not name.startswith(".") for name in names):
        folder.must_exist()
        return RunStatus(place, "empty", None, None, None, (), (), (), (), ())
    _refuse_other(place, names)
    notes: list[str] = []
    record = folder.json("run.json") if "run.json" in names else {}
    attempts = tuple(record.get("attempts", []))
    config = _config(folder, names, notes)
    asked = attempts[-1].get("stages", []) if attempts else []
    stages = tuple(
        found for stage in STAGES if (found := _stage(folder, names, stage, config, stage in asked)) is not None
    )
    for other in ("evaluation", "figures"):
        folder.names(other)  # so that what evaluation writes counts as a sign of life
    since = None if folder.newest is None else max(0.0, (time.time() if now is None else now) - folder.newest)
    state = _state(attempts, since, folder.gap)
    return RunStatus(
        run=place,
        state=state,
        stage=_where(stages, state, bool(attempts)),
        workers=attempts[-1].get("workers") if state == "running" else None,
        seconds_since_sign=None if since is None else round(since, 1),
        stages=stages,
        attempts=attempts,
        restarts=tuple(_restarts(attempts)),
        failures=tuple(_failures(attempts, state)),
        notes=tuple(notes),
    )


class _Folder:
    """Names and small files of a folder, here or in object storage; remembers when anything in it last changed."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.newest: float | None = None
        self.gap = 0.0
        self._filesystem, self._root = resolve(place)

    def names(self, below: str) -> set[str]:
        """Names of what is in the folder or in one below it; none where that is missing."""
        try:
            found = self._filesystem.get_file_info(
                pafs.FileSelector(f"{self._root}/{below}".rstrip("/"), allow_not_found=True)
            )
        except OSError as error:
            raise self._cannot(below, error) from error
        for info in found:
            if info.type == pafs.FileType.File and info.mtime is not None:
                self.newest = max(self.newest or 0.0, info.mtime.timestamp())
        return {PurePosixPath(info.path).name for info in found}

    def text(self, name: str) -> str:
        try:
            return read_bytes(self._filesystem, f"{self._root}/{name}").decode("utf-8", errors="replace")
        except OSError as error:
            raise self._cannot(name, error) from error

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            InputError: it is none.
        """
        try:
            tree = json.loads(self.text(name))
        except json.JSONDecodeError as error:
            tree = str(error)
        if not isinstance(tree, dict):
            raise InputError(
                "the run's record cannot be read",
                file=f"{self.place}/{name}",
                expected="a JSON object",
                found=str(tree)[:200],
                fix="restore it, or remove it: models and checkpoints do not depend on it",
            )
        return tree

    def must_exist(self) -> None:
        """Refuse a folder that is not there."""
        try:
            kind = self._filesystem.get_file_info(self._root).type
        except OSError as error:
            raise self._cannot("", error) from error
        if kind != pafs.FileType.Directory:
            raise InputError(
                "there is no such run folder",
                file=self.place,
                found="a file" if kind == pafs.FileType.File else "nothing",
                fix="check the path; a run begins with `gimp run --run RUN`",
            )

    def _cannot(self, name: str, error: OSError) -> InputError:
        return InputError(
            "the run folder cannot be read",
            file=f"{self.place}/{name}".rstrip("/"),
            found=f"{type(error).__name__}: {str(error)[:300]}",
            fix=advice(self._filesystem, error) or "check the path, and that you may read it",
        )


def _refuse_other(place: str, names: set[str]) -> None:
    """Refuse a folder that is something else than a run's."""
    if names & {"run.json", "config.yaml", *STAGES}:
        return
    fix = "give the folder that was given to --run"
    if "manifest.json" in names:
        fix = "this is a store: `gimp info STORE`"
    elif names & {"trials.json", "tune"}:
        fix = "this is a search: give the folder of one of its trials"
    shown = ", ".join(sorted(names)[:5])
    raise InputError(
        "this is no run folder", file=place, expected="run.json, config.yaml or a stage's folder", found=shown, fix=fix
    )


def _config(folder: _Folder, names: set[str], notes: list[str]) -> Config | None:
    """The run's config; a config that is not this version's only costs the totals."""
    if "config.yaml" not in names:
        return None
    try:
        return build_config(yaml.safe_load(folder.text("config.yaml")) or {})
    except (GimpError, yaml.YAMLError) as error:
        notes.append(f"config.yaml: {str(error).splitlines()[0]}")
        return None


def _stage(folder: _Folder, names: set[str], stage: str, config: Config | None, asked: bool) -> StageStatus | None:
    """How far a stage is; None for one that nobody began or asked for."""
    done = {f"{stage}.safetensors", f"{stage}.json"} <= names
    inside = folder.names(stage) if stage in names else set()
    lines = parse_lines(folder.text(f"{stage}/metrics.jsonl")) if "metrics.jsonl" in inside else []
    checkpoints = folder.names(f"{stage}/checkpoints") if "checkpoints" in inside else set()
    saved = [int(name[5:]) for name in checkpoints if name.startswith("step-") and name[5:].isdigit()]
    if not (done or inside or asked):
        return None
    times = [line["time"] for line in lines if "time" in line]
    if times and not done:
        folder.newest = max(folder.newest or 0.0, times[-1])
        folder.gap = median([b - a for a, b in pairwise(times)] or [0.0])
    last = lines[-1] if lines else {}
    step = _newest(lines, "step")
    return StageStatus(
        name=stage,
        state="done" if done else "begun" if lines or saved else "waiting",
        epoch=max((line["epoch"] + 1 for line in lines if line.get("kind") == "epoch"), default=0),
        epochs=None if config is None else config.stage_train(stage).epochs,
        step=last.get("step", 0),
        steps=last.get("steps"),
        checkpoint=max(saved, default=None),
        last=_figures(step),
        validation=_figures(_newest(lines, "validation")),
        logged=last.get("time"),
        eta=step.get("eta"),
    )


def _newest(lines: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((line for line in reversed(lines) if line.get("kind") == kind), {})


def _figures(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in (*_ABOUT, "eta")}


def _state(attempts: tuple[dict[str, Any], ...], since: float | None, gap: float) -> str:
    if not attempts:
        return "not begun"
    status = str(attempts[-1].get("status", "running"))
    if status == "running":
        return "silent" if since is not None and since > max(SILENT_S, SILENT_GAPS * gap) else "running"
    if status.startswith("failed: KeyboardInterrupt"):
        return "interrupted"
    return status.partition(":")[0]


def _where(stages: tuple[StageStatus, ...], state: str, begun: bool) -> str | None:
    """The stage a run is in: the first that has no final model."""
    open_stages = [stage.name for stage in stages if stage.state != "done"]
    if open_stages:
        return open_stages[0]
    if not stages:
        return "evaluation" if begun else None
    return stages[-1].name if state in ("done", "not begun", "stopped") else "evaluation"


def _restarts(attempts: tuple[dict[str, Any], ...]) -> Iterable[dict[str, Any]]:
    for number, attempt in enumerate(attempts, start=1):
        for restart in attempt.get("restarts") or ():
            yield {"attempt": number} | restart


def _failures(attempts: tuple[dict[str, Any], ...], state: str) -> Iterable[str]:
    for number, attempt in enumerate(attempts, start=1):
        status = str(attempt.get("status", "running"))
        newest = number == len(attempts)
        if status.startswith("failed: "):
            yield f"attempt {number}: {status.removeprefix('failed: ').rstrip(': ')}"
        elif status == "running" and (not newest or state == "silent"):
            yield f"attempt {number}: ended without a recorded status (killed, or the machine failed)"


def format_status(status: RunStatus, now: float | None = None) -> str:
    """The status for people, a few lines."""
    since = status.seconds_since_sign
    rows = [("run", status.run), ("state", _state_words(status.state, since, status.workers))]
    if status.stage is not None:
        rows.append(("stage", status.stage))
    rows += [("" if i else "stages", _stage_words(stage, status, now)) for i, stage in enumerate(status.stages)]
    for stage in status.stages:
        if stage.name == status.stage and stage.last:
            rows.append(("last", f"step {stage.step}: {_numbers(stage.last)}"))
            rows += [("", f"validation: {_numbers(stage.validation)}")] if stage.validation else []
    rows += [
        ("" if i else "attempts", _attempt_words(i + 1, attempt, newest=i + 1 == len(status.attempts), status=status))
        for i, attempt in enumerate(status.attempts)
    ]
    rows += [("" if i else "restarts", words) for i, words in enumerate(_restart_rows(status.restarts))]
    rows += [("" if i else "failures", reason) for i, reason in enumerate(status.failures)]
    rows += [("note", note) for note in status.notes]
    return "\n".join(f"{name:10}{text}" for name, text in rows)


def _state_words(state: str, since: float | None, workers: int | None) -> str:
    ago = "" if since is None else f"{duration(since)} ago"
    at_work = f" with {_counted(workers, 'worker')}" if workers else ""
    return {
        "empty": "empty: nothing was run here yet",
        "not begun": "not begun: there is no attempt in its record",
        "running": f"running{at_work}, last sign of life {ago}",
        "silent": f"silent: by its record it runs, but its last sign of life was {ago}; if nothing runs, the same "
        "command goes on",
        "stopped": f"stopped as stop_after said, {ago}; the same command without it goes on",
        "preempted": f"preempted, {ago}; what was trained is saved, and the same command goes on",
        "interrupted": f"interrupted, {ago}; the same command goes on",
        "failed": f"failed, {ago}; see failures; the same command goes on",
        "done": f"done, {ago}",
    }.get(state, state)


def _stage_words(stage: StageStatus, status: RunStatus, now: float | None) -> str:
    if stage.state == "waiting":
        return f"{stage.name:10}waiting"
    words = [f"epoch {stage.epoch}/{stage.epochs or '?'}"]
    if stage.step:
        share = f" ({stage.step / stage.steps:.0%})" if stage.steps else ""
        words.append(f"step {stage.step}{f'/{stage.steps}' if stage.steps else ''}{share}")
    if stage.state == "done":
        if stage.epochs and 0 < stage.epoch < stage.epochs:
            return f"{stage.name:10}done, ended early after {words[0]}, step {stage.step}"
        return f"{stage.name:10}done, {', '.join(words)}" if stage.step else f"{stage.name:10}done"
    if status.state == "running" and stage.eta is not None and stage.logged is not None:
        left = stage.eta - ((time.time() if now is None else now) - stage.logged)
        words.append(f"about {duration(max(0.0, left))} left")
    if stage.checkpoint is not None:
        words.append(f"newest checkpoint step-{stage.checkpoint:08d}")
    return f"{stage.name:10}{', '.join(words)}"


def _attempt_words(number: int, attempt: dict[str, Any], newest: bool, status: RunStatus) -> str:
    ended = attempt.get("ended")
    outcome = str(attempt.get("status", "running")).partition(":")[0]
    if outcome == "running" and (not newest or status.state == "silent"):
        outcome = "no end noted"
    length = _between(attempt.get("started"), ended)
    took = "" if length is None else f" after {duration(length)}"
    restarts = len(attempt.get("restarts") or ())
    again = f", {_counted(restarts, 'restart')} of workers" if restarts else ""
    return f"{number}: {attempt.get('started', '?')} on {attempt.get('host', '?')}: {outcome}{took}{again}"


def _restart_rows(restarts: tuple[dict[str, Any], ...]) -> Iterable[str]:
    """How often workers were started again, and why the last few times."""
    if not restarts:
        return
    shown = restarts[-RESTARTS_SHOWN:]
    of_last = f", the last {len(shown)}:" if len(shown) < len(restarts) else ":"
    yield f"{len(restarts)}{of_last}"
    for restart in shown:
        workers, step = restart.get("workers"), restart.get("step")
        went_on = "" if workers is None else f" with {_counted(workers, 'worker')}"
        went_on += "" if step is None else f" from step {step}"
        reason = textwrap.shorten(str(restart.get("reason") or "no reason noted"), REASON_SHOWN, placeholder=" ...")
        yield (
            f"attempt {restart['attempt']}, {restart.get('time', '?')}: {reason}"
            f"{f'; went on{went_on}' if went_on else ''}"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _between(started: Any, ended: Any) -> float | None:
    try:
        first, last = (datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z") for text in (started, ended))
    except ValueError:
        return None
    return (last - first).total_seconds()


def _numbers(figures: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in figures.items()
    )
