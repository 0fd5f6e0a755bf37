"""What a run is: which stages it has, in which order, and what is written beside the models.

The only place that joins tasks, engine, evaluation and reports. Every verb of the command line and every file in
`jobs/` calls a function of this file. Running one again on the same run folder does what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from gimp_ray.config import Config
from gimp_ray.config_files import load_config, read_yaml, to_yaml, with_absolute_paths
from gimp_ray.engine import stopping
from gimp_ray.engine.checkpoint import checkpoint_folders, latest_checkpoint
from gimp_ray.engine.launch import Job, Workers, run_jobs
from gimp_ray.engine.loop import Saving
from gimp_ray.engine.trackers import require_trackers
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.feed.plan import effective
from gimp_ray.io.files import write_json, write_text
from gimp_ray.io.storage import as_location, is_uri, waiting_for_storage
from gimp_ray.learn.predict import CohortWork
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.stage import open_store
from gimp_ray.learn.supervise import Supervised
from gimp_ray.methods import find
from gimp_ray.methods.base import Supervise
from gimp_ray.runs.folder import RunFolder, attempt, environment, timestamp, unwritable
from gimp_ray.runs.model import Inputs, read_card, refuse_changed
from gimp_ray.store import CohortStore

PARTS = ["train", "val", "test"]


def stages_up_to(last: str, config: Config, has_genes: bool) -> list[str]:
    """Names of the stages of a run in order, `last` the last; without those whose model the config names a file for.

    Args:
        last: `genes`, `pretrain` or `finetune`.
        config: of the run.
        has_genes: whether the store has any.
    """
    return find(config.method.name).stages_up_to(last, config, has_genes)


def stage_inputs(stage: str, config: Config) -> Inputs:
    """What a stage would be made from under a config, whether its run is there or not; `digest_of` it is its digest."""
    config = with_absolute_paths(config)
    return make_stage(stage, config, config.run or ".").inputs


def make_stage(stage: str, config: Config, run: str) -> Supervised | Pretraining:
    """A stage of a run, given what it needs of the config."""
    return task_of(stage, config)(config.model_dump(), run, stage)


def task_of(stage: str, config: Config) -> type[Supervised] | type[Pretraining]:
    """What trains a stage, by what the config's method says of it."""
    return Supervised if isinstance(find(config.method.name).stage(stage), Supervise) else Pretraining


def pretrain_genes(config: Config) -> RunFolder:
    """Stage `genes`: supervised pre-training of the gene encoder."""
    return _run(config, "genes")


def pretrain(config: Config) -> RunFolder:
    """Stage `pretrain`, with `genes` first where no gene encoder was given and the store has genes."""
    return _run(config, "pretrain")


def finetune(config: Config) -> RunFolder:
    """Stage `finetune`, from this run's pre-trained model or as `finetune.init` says; of a method of one stage all its
    training.
    """
    if "pretrain" in stages_up_to("finetune", config, has_genes=False):
        _require(
            config,
            "pretrain",
            "pre-trained model to fine-tune",
            "run `gimp pretrain` on it first, or give --finetune.init FILE.safetensors, or --finetune.init scratch",
        )
    return _run(config, "finetune")


def evaluate(config: Config) -> RunFolder:
    """Predictions, metrics with intervals, baselines, figures and `summary.md` of a fine-tuned run."""
    _require(config, "finetune", "fine-tuned model to evaluate", "run `gimp finetune` on it first")
    return _run(config, "finetune", evaluated=True)


def run_all(config: Config) -> RunFolder:
    """All stages in order, then evaluation and report; a compared method has one stage."""
    return _run(config, "finetune", evaluated=True)


def _require(config: Config, stage: str, what: str, fix: str) -> None:
    """Refuse a run folder, brought up to date, that lacks a stage's model."""
    run = run_folder_of(config)
    run.pull()
    if not run.stage_done(stage):
        raise InputError(f"this run has no {what}", file=run.place_of(run.model_file(stage)), fix=fix)


def embed(config: Config, model: str | Path, out: str | Path, parts: list[str] | None = None) -> str | Path:
    """CLS_pat of every case of the config's store, or of some parts of its split, under a trained model, as Parquet; of
    a compared method its predictions.

    Args:
        config: of the run the model is of.
        model: the model's file, here or in object storage.
        out: the file to write, here or in object storage.
        parts: parts of the split; all cases of the store without it.

    Returns:
        `out`, absolute.
    """
    config, model, out = with_absolute_paths(config), _absolute(model), _absolute(out)
    run = run_folder_of(config, default=out.rpartition("/")[0])
    with stopping.listening():
        if run_jobs([_embed_job(config, model, out, parts)], run, workers_of(config)) == "preempted":
            raise stopping.Terminated
    return out if is_uri(out) else Path(out)


def load_run_config(run: str | Path, overrides: dict[str, Any], file: Path | None = None) -> Config:
    """The config of a run folder, with a file and overrides laid over it; defaults for a new folder."""
    folder = RunFolder(run)
    folder.pull()
    saved = folder.config_file
    base = read_yaml(saved) if saved.exists() else {}
    sections = (base, *(base.get(name, {}) for name in ("genes", "finetune", "method")))
    for train in (section.get("train") for section in sections):
        if train:
            train.pop("stop_after", None)  # holds for the command that gave it
    return with_absolute_paths(load_config(file, overrides | {"run": folder.place}, base=base))


def _run(config: Config, last: str, evaluated: bool = False) -> RunFolder:
    """Do the stages of a run that are not done, and the evaluation where asked.

    Args:
        config: of the run.
        last: the stage up to which it is trained.
        evaluated: whether it is evaluated too.

    Raises:
        Terminated: SIGTERM ended it; what was trained is saved.
    """
    config = with_absolute_paths(config)
    run = run_folder_of(config)
    store = open_store(config)
    with run.one_command(), unwritable(run.place), stopping.listening():
        run.pull()
        _do(config, run, store, last, evaluated)
    return run


def _do(config: Config, run: RunFolder, store: CohortStore, last: str, evaluated: bool) -> None:
    names = stages_up_to(last, config, store.num_genes > 0)
    missing = _accepted(config, run, store, names)
    if missing:
        require_trackers(config.log)
    if evaluated and not getattr(store.split(config.split.scheme, config.split.fold), config.evaluate.part):
        raise InputError(
            f"the split has no {config.evaluate.part} part to evaluate on",
            file=store.path,
            found=f"scheme {config.split.scheme}, fold {config.split.fold}",
            fix="choose another scheme or fold, or evaluate.part",
        )
    _open_run(run, config, store)
    jobs = [
        Job(name, task_of(name, config), {"stage": name, "config": config.model_dump(), "run": run.place})
        for name in missing
    ]
    with _attempt(run, names) as ended:
        embeds = _evaluation_jobs(config, run) if evaluated else []
        ended["status"] = outcome = run_jobs(jobs + embeds, run, workers_of(config))
        if outcome == "done" and evaluated:
            from gimp_ray.scoring import score_run

            run.pull()
            score_run(run, config, store)
            run.push()
    if outcome == "preempted":
        print("preempted: the run is saved, and the same command goes on", flush=True)
        raise stopping.Terminated
    from gimp_ray.reports import write_report

    write_report(run.place)


def _accepted(config: Config, run: RunFolder, store: CohortStore, names: list[str]) -> list[str]:
    """Which of some stages are to be trained; nothing is written and no cluster started.

    Every stage of the run that is done or begun must have been made from what it would be made from now. A stage is
    trained where it is the last or makes a file that one to be trained starts from.

    Raises:
        GimpError: what is there was made from something else, or a stage cannot be trained on this store and split.
    """
    known = dict.fromkeys([*names, *stages_up_to("finetune", config, store.num_genes > 0)])
    stages = {
        name: make_stage(name, config, run.place)
        for name in known
        if name in names or run.stage_done(name) or checkpoint_folders(run.checkpoints(name))
    }
    for name, stage in stages.items():
        refuse_changed_stage(run, name, stage.inputs, stage.files)
    wanted: list[str] = []
    for name in reversed(names):
        makes_a_start = any(str(run.model_file(name)) in stages[later].files.values() for later in wanted)
        if not run.stage_done(name) and (name == names[-1] or makes_a_start):
            wanted.insert(0, name)
    for name in wanted:
        stages[name].preflight()
        asked, allowed = stages[name].batching, effective(stages[name].batching, stages[name].index)
        if asked != allowed:
            changed = ", ".join(
                f"{k} {v} -> {getattr(allowed, k)}" for k, v in vars(asked).items() if v != getattr(allowed, k)
            )
            print(
                f"note: stage '{name}': the training split is too small for the mini-batch asked for: {changed}",
                flush=True,
            )
    return wanted


def refuse_changed_stage(run: RunFolder, stage: str, inputs: Inputs, files: dict[str, str]) -> None:
    """Refuse a stage that was made from something else than `inputs`, or was begun and has no whole checkpoint."""
    if run.stage_done(stage):
        refuse_changed(read_card(run.model_file(stage))["inputs"], inputs, run.place, files)
    else:
        latest_checkpoint(run.checkpoints(stage), inputs, files=files)


def _evaluation_jobs(config: Config, run: RunFolder) -> list[Job]:
    def job(stage: str, name: str, parts: list[str]) -> Job:
        return _embed_job(
            config, run.place_of(run.model_file(stage)), run.place_of(run.evaluation / f"{name}.parquet"), parts
        )

    jobs = [job("finetune", "embeddings", PARTS)]
    if "pretrain" in stages_up_to("finetune", config, has_genes=False):
        jobs.append(job("pretrain", "embeddings_pretrain", ["train"]))
    return jobs


def _embed_job(config: Config, model: str, out: str, parts: list[str] | None) -> Job:
    arguments = {"config": config.model_dump(), "model": model, "out": out, "parts": parts}
    return Job(f"embed {PurePosixPath(out).stem}", CohortWork, arguments, trains=False)


def workers_of(config: Config) -> Workers:
    """How the config's workers are launched."""
    train, feed, checkpoint = config.train, config.feed, config.checkpoint
    return Workers(
        count=train.most_workers,
        at_least=train.fewest_workers,
        resize_seconds=config.cluster.resize_seconds,
        start_seconds=config.cluster.start_seconds,
        progress=config.log.progress,
        use_gpu=train.use_gpu,
        cpus=train.cpus_per_worker,
        threads=train.threads,
        max_failures=train.max_failures,
        read_in=feed.read_in,
        ahead=feed.ahead,
        address=config.cluster.address,
        num_cpus=config.cluster.num_cpus,
        saving=Saving(checkpoint.every_steps, checkpoint.every_epochs, checkpoint.keep, checkpoint.every_minutes),
    )


def _absolute(place: str | Path) -> str:
    place = as_location(place)
    return place if is_uri(place) else str(Path(place).resolve())


def run_folder_of(config: Config, default: str | Path | None = None) -> RunFolder:
    """The config's run folder; refuses a config that names none."""
    path = config.run or default
    if path is None:
        raise ConfigError(
            "no run folder was given",
            expected="run: PATH",
            found="nothing",
            fix="add --run RUNDIR, or run: in the config",
        )
    return RunFolder(path)


def _open_run(run: RunFolder, config: Config, store: CohortStore) -> None:
    """Write what a run is, once it may go on."""
    write_text(run.config_file, to_yaml(config))
    write_json(run.path / "environment.json", environment())

    def change(record: dict[str, Any]) -> None:
        record.setdefault("created", timestamp())
        record["method"] = find(config.method.name).title
        record["store"] = {
            "path": config.store,
            "fingerprint": store.fingerprint,
            "cases": store.manifest.num_cases,
            "slides": store.manifest.num_slides,
            "patches": store.manifest.num_patches,
            "genes": store.num_genes,
            "dim": store.dim,
            "encoder": store.manifest.encoder,
            "gene_unit": store.manifest.gene_unit,
            "classes": list(store.classes),
        }

    run.update(change)
    # before anything is computed: a storage that cannot be written to is found now
    run.push()


@contextmanager
def _attempt(run: RunFolder, stages: list[str]) -> Iterator[dict[str, str]]:
    """Note an attempt in the run's record, and how it ended: the `status` put into what is yielded, or the failure."""
    run.update(lambda record: record.setdefault("attempts", []).append(attempt(stages)))
    ended = {"status": "done"}

    def change(record: dict[str, Any]) -> None:
        record["attempts"][-1] |= ended | {"ended": timestamp()}

    try:
        yield ended
    except BaseException as error:
        ended["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if isinstance(error, stopping.Terminated):
            ended["status"] = "preempted"
        try:
            run.update(change)
        except (GimpError, OSError) as second:  # the first is what the user must see
            print(
                f"note: the failure could not be noted in the run's record: {str(second).splitlines()[0]}", flush=True
            )
        raise
    with waiting_for_storage():  # what was computed is there, and only its note would be lost
        run.update(change)
