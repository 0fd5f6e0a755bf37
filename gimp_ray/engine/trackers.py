"""Where a stage's figures go besides its own log: MLflow, Weights & Biases, and Ray's metrics (Prometheus).

A tracker never stops or slows a training: each has a thread of its own and a queue, and one that fails, or does not
answer, is warned about once and dropped. Only a package that is not installed is refused, before anything is computed.
A run that goes on writes to the tracker's run it began, also where workers were restarted before the first checkpoint.
Left out: TensorBoard, which is always written (`log.py`), and models and predictions, which stay in the run folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gimp_ray.errors import ConfigError
from gimp_ray.io.files import write_json

Figures = dict[str, float]

# lines a tracker may be behind, and how long a stage's end waits for it
BEHIND = 10_000
CLOSE_S = 30.0
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """One place figures go to; any error it raises ends it, and nothing else."""

    def write(self, kind: str, step: int, when: float, figures: Figures) -> None:
        """Figures of one line of the log, at an optimiser step and a time in seconds since 1970."""

    def close(self, failed: bool) -> None:
        """The stage ended, well or not."""


class Sender:
    """A tracker behind a queue and a thread, opened at its first line.

    Args:
        name: for the warning.
        open_tracker: makes the tracker, in the thread.
        close_s: seconds the end waits for what is still in the queue.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], close_s: float = CLOSE_S) -> None:
        self._name, self._open, self._close_s = name, open_tracker, close_s
        self._lines: queue.Queue[tuple[Any, ...] | bool] = queue.Queue(BEHIND)
        self._thread: threading.Thread | None = None
        self._dropped = False

    def write(self, kind: str, step: int, when: float, figures: Figures) -> None:
        """Hand over a line; returns at once."""
        if self._dropped:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self._name}", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait((kind, step, when, figures))
        except queue.Full:
            self._drop(f"it is {BEHIND} lines behind")

    def close(self, failed: bool) -> None:
        """Wait for what is still to be written, but not for long."""
        if self._dropped or self._thread is None:
            return
        try:
            self._lines.put_nowait(failed)
        except queue.Full:
            self._drop(f"it is {BEHIND} lines behind")
            return
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._drop(f"it did not answer within {self._close_s:g} s; its last figures may be missing")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not isinstance(line := self._lines.get(), bool):
                tracker.write(*line)
            tracker.close(line)
        except BaseException as error:  # clients exit and raise as they like; none of it is the training's business
            words = str(error).strip().splitlines()
            self._drop(f"{type(error).__name__}: {words[0][:300] if words else ''}")

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            print(f"note: {self._name} gets no more figures of this stage: {why}", flush=True)


def require_trackers(log: Any) -> None:
    """Refuse trackers whose package is not installed.

    Args:
        log: the config's section `log`, or None.

    Raises:
        ConfigError: names the key and the extra to install.
    """
    for name, package in PACKAGES.items():
        if getattr(log, name, None) and not _installed(package):
            raise ConfigError(
                f"log.{name} is set, but the package {package} is not installed",
                expected=f"the optional extra {name}",
                found="no such package in this environment",
                fix=f"pip install 'gimp-ray[{name}]' on every node, or --log.{name} null",
            )


def open_trackers(log: Any, settings: Any, run: str, stage: str, folder: Path, anew: bool) -> list[Sender]:
    """The trackers a config asks for, and Ray's metrics in a process that Ray started.

    Args:
        log: the config's section `log`, or None.
        settings: the stage's settings, for the trackers' parameters.
        run: the run folder as the user named it.
        stage: the stage's name.
        folder: the stage's folder; what is needed to go on with a tracker's run is kept there.
        anew: whether the stage begins at its first step; a run that an earlier attempt began in the tracker is then
            gone on with only if the settings are still the same, which is what the tracker shows of it.

    Raises:
        ConfigError: a package is not installed.
    """
    require_trackers(log)
    name = f"{run.rstrip('/').rpartition('/')[2]}-{stage}"
    senders = []
    params = _flat(settings)
    if uri := getattr(log, "mlflow", None):
        in_mlflow = _Kept(folder / "mlflow.json", uri, params, anew)
        senders.append(Sender("MLflow", lambda: _MLflow(uri, name, in_mlflow, params)))
    if project := getattr(log, "wandb", None):
        in_wandb = _Kept(folder / "wandb.json", project, params, anew)
        senders.append(Sender("Weights & Biases", lambda: _Wandb(project, name, in_wandb, params)))
    if _ray_is_up():
        senders.append(Sender("Ray's metrics", lambda: _RayGauges(stage)))
    return senders


class _Kept:
    """What is needed to go on with a tracker's run: a small file in the stage's folder.

    Args:
        file: the file.
        where: the tracker's place that the config names; a run at another place is not gone on with.
        params: the stage's settings as the tracker shows them.
        anew: whether the stage begins at its first step; see `open_trackers`.

    Attributes:
        run: the tracker's run that an earlier attempt began; None where there is none to go on with.
    """

    def __init__(self, file: Path, where: str, params: dict[str, str], anew: bool) -> None:
        self.folder = file.parent
        self._file, self._tree = file, {"where": where, "params": params}
        self.run: str | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or it is damaged
            tree = json.loads(file.read_text())
            if tree["where"] == where and (not anew or tree["params"] == params):
                self.run = str(tree["run"])

    def keep(self, run: str) -> None:
        """Note the tracker's run."""
        write_json(self._file, {"run": run} | self._tree)


class _MLflow:
    """A run of an MLflow experiment, through the client: nothing global is set."""

    def __init__(self, uri: str, name: str, kept: _Kept, params: dict[str, str]) -> None:
        if "://" not in uri or uri.startswith("file:"):
            # newer versions ask for this before they write files, which is what the config asks for
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        if kept.run is None:
            found = self._client.get_experiment_by_name("gimp_ray")
            experiment = self._client.create_experiment("gimp_ray") if found is None else found.experiment_id
            self._run = self._client.create_run(experiment, run_name=name).info.run_id
            self._client.log_batch(self._run, params=[Param(key, value) for key, value in params.items()])
            kept.keep(self._run)
        else:
            self._run = kept.run
            self._client.set_terminated(kept.run, "RUNNING")

    def write(self, kind: str, step: int, when: float, figures: Figures) -> None:
        self._client.log_batch(
            self._run,
            metrics=[self._metric(f"{kind}/{name}", value, int(when * 1000), step) for name, value in figures.items()],
        )

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Wandb:
    """A run of a Weights & Biases project; nothing leaves the machine unless the environment says that it may."""

    def __init__(self, project: str, name: str, kept: _Kept, params: dict[str, str]) -> None:
        import wandb

        number = kept.run or uuid.uuid4().hex[:8]
        kept.keep(number)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=project,
            name=name,
            id=number,
            resume="allow",
            mode=mode,
            dir=str(kept.folder),
            config=params,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="optimiser_step")

    def write(self, kind: str, step: int, when: float, figures: Figures) -> None:
        self._run.log({"optimiser_step": step, **{f"{kind}/{name}": value for name, value in figures.items()}})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _RayGauges:
    """Ray's own metrics, which its dashboard exports to Prometheus as `ray_gimp_...`."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Gauge

        about = {
            "loss": "loss, mean since the last line of the log",
            "cases_per_s": "cases a second over all workers",
            "data_wait_share": "share of the time the first worker waited for batches",
        }
        self._gauges = {name: Gauge(f"gimp_{name}", text, tag_keys=("stage",)) for name, text in about.items()}
        self._tags = {"stage": stage}

    def write(self, kind: str, step: int, when: float, figures: Figures) -> None:
        if kind != "step":
            return
        shown = dict(figures)
        if figures.get("seconds"):
            shown["data_wait_share"] = figures.get("data_wait", 0.0) / figures["seconds"]
        for name, gauge in self._gauges.items():
            if name in shown:
                gauge.set(shown[name], tags=self._tags)

    def close(self, failed: bool) -> None:
        """Gauges end with the process, which goes on to the next stage; no case is trained on in this one any more."""
        self._gauges["cases_per_s"].set(0.0, tags=self._tags)


def numbers(figures: dict[str, Any]) -> Figures:
    """Those figures that are numbers."""
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}


def send(senders: list[Sender], kind: str, step: int, figures: dict[str, Any]) -> None:
    """Hand one line to all trackers."""
    now = time.time()
    for sender in senders:
        sender.write(kind, step, now, numbers(figures))


def _installed(package: str) -> bool:
    if package in sys.modules:
        return True
    return importlib.util.find_spec(package) is not None


def _ray_is_up() -> bool:
    """Whether this process is one of Ray's; it is never imported for this."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _flat(settings: Any) -> dict[str, str]:
    """A stage's settings as a tracker's parameters."""
    tree = settings.model_dump() if hasattr(settings, "model_dump") else {}
    return {key: str(value) for key, value in tree.items() if not isinstance(value, dict)}
