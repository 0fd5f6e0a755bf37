"""What a run is: which stages it has, in which order, and what is written beside the models.

The only place that joins tasks, engine, evaluation and reports. Every verb of the command line and every file in
`jobs/` calls a function of this file. Running one again on the same run folder does what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from gimp_ray.config import Config
from gimp_ray.config_files import build_config, differences, load_config, read_yaml, to_yaml, with_absolute_paths
from gimp_ray.engine import stopping
from gimp_ray.engine.launch import Job, Workers, run_jobs
from gimp_ray.engine.loop import Saving
from gimp_ray.engine.trackers import require_trackers
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.feed.plan import effective
from gimp_ray.io.mirror import patient
from gimp_ray.io.places import is_uri
from gimp_ray.learn import ContrastivePretraining, Finetuning, GenePretraining, GimpPretraining, Supervised, cohort_work
from gimp_ray.learn.planned import open_store
from gimp_ray.runs.folder import (
    STAGES,
    RunFolder,
    as_place,
    attempt,
    environment,
    timestamp,
    unwritable,
    write_json,
    write_text,
)
from gimp_ray.stages import DEPENDS_ON, up_to_finetune, up_to_pretrain
from gimp_ray.store import CohortStore

TASKS: dict[str, Any] = {"genes": GenePretraining, "pretrain": GimpPretraining, "finetune": Finetuning}
PARTS = ["train", "val", "test"]
StagesOf = Callable[[Config, bool], list[str]]


def pretrain_genes(config: Config) -> RunFolder:
    """Stage `genes`: supervised pre-training of the gene encoder."""
    return _run(config, lambda *_: ["genes"])


def pretrain(config: Config) -> RunFolder:
    """Stage `pretrain`, with `genes` first where no gene encoder was given and the store has genes."""
    return _run(config, up_to_pretrain)


def finetune(config: Config) -> RunFolder:
    """Stage `finetune`, from this run's pre-trained model or as `finetune.init` says; of a compared method
    (`method.name`) all its training.
    """
    if config.method.recipe is not None or config.finetune.init == "scratch":
        return _run(config, up_to_finetune)
    run = _looked_at(config)
    if config.finetune.init == "pretrain" and not run.stage_done("pretrain"):
        raise InputError(
            "this run has no pre-trained model to fine-tune",
            file=run.place_of(run.model_file("pretrain")),
            fix="run `gimp pretrain` on it first, or give --finetune.init FILE.safetensors, or --finetune.init scratch",
        )
    return _run(config, lambda *_: ["finetune"])


def evaluate(config: Config) -> RunFolder:
    """Predictions, metrics with intervals, reference rows, figures and `summary.md` of a fine-tuned run."""
    run = _looked_at(config)
    if not run.stage_done("finetune"):
        raise InputError(
            "this run has no fine-tuned model to evaluate",
            file=run.place_of(run.model_file("finetune")),
            fix="run `gimp finetune` on it first",
        )
    return _run(config, lambda *_: [], evaluated=True)


def run_all(config: Config) -> RunFolder:
    """All stages in order, then evaluation and report; a compared method has one stage."""
    return _run(config, up_to_finetune, evaluated=True)


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


def _run(config: Config, stages_of: StagesOf, evaluated: bool = False) -> RunFolder:
    """Do the stages of a run that are not done, and the evaluation where asked.

    Args:
        config: of the run.
        stages_of: the stages in order, from the config and whether the store has genes.
        evaluated: whether it is evaluated too.

    Raises:
        Terminated: SIGTERM ended it; what was trained is saved.
    """
    config = with_absolute_paths(config)
    run = run_folder_of(config)
    store = open_store(config)
    with run.one_command(), unwritable(run.place), stopping.listening():
        run.pull()
        _do(config, run, store, stages_of(config, store.num_genes > 0), evaluated)
    return run


def _do(config: Config, run: RunFolder, store: CohortStore, stages: list[str], evaluated: bool) -> None:
    _open_run(run, config, store)
    jobs = [
        Job(stage, task_of(stage, config), {"config": config.model_dump(), "run": run.place})
        for stage in stages
        if not run.stage_done(stage)
    ]
    if jobs:
        require_trackers(config.log)
    _check_early(jobs)
    if evaluated and not getattr(store.split(config.split.scheme, config.split.fold), config.evaluate.part):
        raise InputError(
            f"the split has no {config.evaluate.part} part to evaluate on",
            file=store.path,
            found=f"scheme {config.split.scheme}, fold {config.split.fold}",
            fix="choose another scheme or fold, or evaluate.part",
        )
    with _attempt(run, stages) as ended:
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


def _check_early(jobs: list[Job]) -> None:
    """Refuse what can be refused before a cluster is started: a split that leaks, a class without two cases, a
    missing modality.
    """
    for job in jobs:
        task = job.factory(**job.arguments)
        task.preflight()
        asked, allowed = task.batching, effective(task.batching, task.index)
        if asked != allowed:
            changed = ", ".join(
                f"{k} {v} -> {getattr(allowed, k)}" for k, v in vars(asked).items() if v != getattr(allowed, k)
            )
            print(
                f"note: stage '{job.name}': the training split is too small for the mini-batch asked for: {changed}",
                flush=True,
            )


def _evaluation_jobs(config: Config, run: RunFolder) -> list[Job]:
    def job(stage: str, name: str, parts: list[str]) -> Job:
        return _embed_job(
            config, run.place_of(run.model_file(stage)), run.place_of(run.evaluation / f"{name}.parquet"), parts
        )

    jobs = [job("finetune", "embeddings", PARTS)]
    if config.finetune.init == "pretrain" and config.method.recipe is None:
        jobs.append(job("pretrain", "embeddings_pretrain", ["train"]))
    return jobs


def _embed_job(config: Config, model: str, out: str, parts: list[str] | None) -> Job:
    arguments = {"config": config.model_dump(), "model": model, "out": out, "parts": parts}
    return Job(f"embed {PurePosixPath(out).stem}", cohort_work, arguments, trains=False)


def task_of(stage: str, config: Config) -> Any:
    """What trains a stage: GiMP's task, or the one of a compared method or objective."""
    if stage == "finetune" and config.method.recipe is not None:
        return Supervised
    if stage == "pretrain" and config.objective.name != "gimp":
        return ContrastivePretraining
    return TASKS[stage]


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


def _looked_at(config: Config) -> RunFolder:
    """The config's run folder, as it is now: the copy of one in object storage is brought up to date."""
    run = run_folder_of(config)
    run.pull()
    return run


def _absolute(place: str | Path) -> str:
    place = as_place(place)
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
    """Start a run folder, or check that this config may go on with one."""
    if run.config_file.exists():
        _check_same(run, config, store)
    write_text(run.config_file, to_yaml(config))
    write_json(run.path / "environment.json", environment())

    def change(record: dict[str, Any]) -> None:
        record.setdefault("created", timestamp())
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


def _check_same(run: RunFolder, config: Config, store: CohortStore) -> None:
    """A run folder is one computation: what was computed under other settings must not be continued under these."""
    old = build_config(read_yaml(run.config_file), run.config_file)
    begun = [stage for stage in STAGES if run.stage_done(stage) or run.checkpoints(stage).exists()]
    if begun:
        changed = _changed_for(begun, old, config)
        if changed:
            key, (before, now) = next(iter(changed.items()))
            raise ConfigError(
                f"the run folder was made with another '{key}'"
                + (f" (and {len(changed) - 1} more: {', '.join(list(changed)[1:])})" if len(changed) > 1 else ""),
                file=run.place,
                expected=str(before),
                found=str(now),
                fix="use the run's own config, or a new run folder; train.stop_after stops early and lets a run go on",
            )
    fingerprint = run.record().get("store", {}).get("fingerprint")
    if begun and fingerprint is not None and fingerprint != store.fingerprint:
        raise InputError(
            "the store is not the one this run was made with",
            file=store.path,
            expected=f"fingerprint {fingerprint}",
            found=f"fingerprint {store.fingerprint}",
            fix="use the run's own store, or a new run folder",
        )


def _changed_for(stages: list[str], old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """What differs between two configs of what the stages already begun depend on."""
    changed = differences(old, new, [section for stage in stages for section in DEPENDS_ON[stage]])
    for stage in stages:
        # what a stage inherits from `train` is its own as well
        before, after = (config.model_copy(update={"train": config.stage_train(stage)}) for config in (old, new))
        changed |= differences(before, after, ["train"])
    return changed


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
    with patient():  # what was computed is there, and only its note would be lost
        run.update(change)
