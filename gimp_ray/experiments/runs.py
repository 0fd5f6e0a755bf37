"""From settings to run folders: which runs a table needs, what runs share, which of them are done.

    OUT/runs/<row>/fold-<k>/seed-<s>   the run of a row, fold and seed
    OUT/trials/t003                    the run of a sweep's trial
    OUT/shared/genes/<key>             a run with stage `genes` alone, for every run with the same encoder

A row with `after` is fine-tuned from the pre-trained model of another row's run of the same fold and seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import (
    differences,
    flatten,
    load_config,
    method_of,
    nested_keys,
    with_absolute_paths,
    without_others_keys,
)
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.experiments.spec import RowSpec, TableSpec
from gimp_ray.io.files import read_json
from gimp_ray.methods import find
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import changed_inputs, digest_of
from gimp_ray.store import CohortStore

# a table's runs train in their Ray task, unless the table says otherwise
IN_ITS_TASK = {"train.workers": 0}


@dataclass(frozen=True)
class Step:
    """One command on one run folder.

    Attributes:
        name: shown to the user.
        does: `genes` for stage genes alone, `run` for a whole run.
        config: its config; `config.run` is its folder.
        needs: steps that must be done before.
    """

    name: str
    does: Literal["genes", "run"]
    config: Config
    needs: tuple[Step, ...] = ()

    @property
    def uri(self) -> str:
        """The run folder."""
        return str(self.config.run)


@dataclass(frozen=True)
class Cell:
    """The run of a row, fold and seed."""

    row: RowSpec
    fold: int
    seed: int
    step: Step


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with dotted keys changed, checked."""
    return load_config(None, dict(changes), base=config.model_dump())


def shared_genes(config: Config, out: str, has_genes: bool, last: str = "finetune") -> Step | None:
    """The step that trains a run's gene encoder for all runs that would train the same one; None where it trains none.

    Args:
        config: of the run.
        out: folder of the table or sweep.
        has_genes: whether the store has genes.
        last: the run's last stage.
    """
    if "genes" not in pipeline.stages_up_to(last, config, has_genes):
        return None
    key = digest_of(pipeline.stage_inputs("genes", config))[:12]
    name = f"gene encoder {key}, fold {config.split.fold}, seed {config.seed}"
    return Step(name, "genes", with_changes(config, {"run": f"{out}/shared/genes/{key}"}))


def encoder_of(genes: Step) -> str:
    """The gene encoder's file, once the step is done."""
    return f"{genes.uri}/genes.safetensors"


# which runs a table needs


def plan_cells(table: TableSpec, store: CohortStore, out: str) -> list[Cell]:
    """The runs of a table: rows in order, then folds, then seeds; every config is checked before anything runs.

    Args:
        table: whose `base` names the store.
        store: the store, open.
        out: folder of the table, absolute or a URI.

    Raises:
        ConfigError: a config key is unknown or impossible, with the row; or rows do not fit together.
        InputError: the store has no such folds.
    """
    configs = {row.name: _row_config(table, row) for row in table.rows}
    _check_comparable(table, configs)
    for row in table.rows:
        if row.after is not None:
            _check_after(row, configs[row.name], configs[row.after])
    steps: dict[tuple[str, int, int], Step] = {}
    cells: list[Cell] = []
    # rows that come after another are planned last, and stand where the table has them
    for row in sorted(table.rows, key=lambda row: row.after is not None):
        config = configs[row.name]
        # baselines depend on fold and seed alone: unless the table says more, the first row's runs fit them
        if row is table.rows[0] or "evaluate.reference_rows" not in flatten(table.base):
            config = with_changes(config, {"evaluate.reference_rows": row is table.rows[0]})
        for fold in _folds(table, config, store):
            for seed in range(table.seeds):
                uri = f"{out}/runs/{row.slug}/fold-{fold}/seed-{seed}"
                here = with_changes(config, {"run": uri, "split.fold": fold, "seed": seed})
                needed = shared_genes(here, out, store.num_genes > 0)
                if row.after is not None:
                    needed = steps[row.after, fold, seed]
                    here = with_changes(here, {"finetune.init": f"{needed.uri}/pretrain.safetensors"})
                elif needed is not None:
                    here = with_changes(here, {"genes.checkpoint": encoder_of(needed)})
                needs = () if needed is None else (needed,)
                step = Step(f"{row.name}, fold {fold}, seed {seed}", "run", here, needs)
                steps[row.name, fold, seed] = step
                cells.append(Cell(row, fold, seed, step))
    order = {row.name: number for number, row in enumerate(table.rows)}
    return sorted(cells, key=lambda cell: order[cell.row.name])


def rows_left_out(table: TableSpec, store: CohortStore) -> dict[str, str]:
    """Rows whose method this store, target or config does not allow, with the reason.

    Raises:
        ConfigError: a row's config cannot be used.
    """
    why = {row.name: _why_left_out(_row_config(table, row), store) for row in table.rows}
    return {name: reason for name, reason in why.items() if reason is not None}


def _why_left_out(config: Config, store: CohortStore) -> str | None:
    has = {name for name, there in (("patches", store.dim is not None), ("genes", store.num_genes > 0)) if there}
    return find(config.method.name).why_not(config, has)


def _row_config(table: TableSpec, row: RowSpec) -> Config:
    """The config of a row: the table's base with the row's own keys over it."""
    for key in flatten(row.config):
        if key in ("run", "store", "seed", "split.fold"):
            raise ConfigError(
                f"row '{row.name}' sets '{key}', which the table sets", found=key, fix="remove it from the row"
            )
    try:
        # what the base says for the method of another row is no key of this one's
        name, *others = (method_of(nested_keys(one.config), method_of(table.base)) for one in (row, *table.rows))
        base = flatten(without_others_keys(nested_keys(table.base), name, others))
        return with_absolute_paths(load_config(None, IN_ITS_TASK | base | flatten(row.config)))
    except ConfigError as error:
        raise ConfigError(
            f"row '{row.name}': {error.what}",
            file=error.file,
            expected=error.expected,
            found=error.found,
            fix=error.fix,
        ) from error


def _folds(table: TableSpec, config: Config, store: CohortStore) -> list[int]:
    schemes = store.split_schemes
    there = schemes.get(config.split.scheme, ())
    if not there:
        raise InputError(
            "the store has no such split scheme",
            file=store.path,
            expected=", ".join(schemes) or "a store with splits",
            found=config.split.scheme,
            fix="set split.scheme, or add splits to the store",
        )
    wanted = sorted(there) if table.folds is None else list(range(table.folds))
    if not set(wanted) <= set(there):
        raise InputError(
            "the split scheme has fewer folds than asked for",
            file=store.path,
            expected=f"--folds {len(there)} or fewer for scheme {config.split.scheme}",
            found=f"--folds {table.folds}",
            fix="ask for fewer folds, or set split.scheme",
        )
    return wanted


def _check_comparable(table: TableSpec, configs: Mapping[str, Config]) -> None:
    """All rows answer one question on the same cases, or they cannot be compared."""
    first = configs[table.rows[0].name]
    for name, config in configs.items():
        changed = differences(first, config, ["target", "split.scheme"])
        if config.evaluate.part != first.evaluate.part:
            changed["evaluate.part"] = (first.evaluate.part, config.evaluate.part)
        if changed:
            key, (one, other) = next(iter(changed.items()))
            raise ConfigError(
                f"the rows of a table must have the same '{key}'",
                expected=f"{one}, as row '{table.rows[0].name}'",
                found=f"{other} in row '{name}'",
                fix="make a table for each",
            )


def _check_after(row: RowSpec, config: Config, other: Config) -> None:
    inits = [getattr(getattr(one, "finetune", None), "init", "no finetune.init") for one in (config, other)]
    if inits != ["pretrain", "pretrain"]:
        raise ConfigError(
            f"row '{row.name}' comes after '{row.after}', which only works between rows with pre-training",
            expected="finetune.init: pretrain in both",
            found=" and ".join(inits),
            fix="remove `after`",
        )
    changed = changed_inputs(pipeline.stage_inputs("pretrain", other), pipeline.stage_inputs("pretrain", config))
    if changed:
        key, (before, now) = next(iter(changed.items()))
        raise ConfigError(
            f"row '{row.name}' comes after '{row.after}' and differs from it before that, in '{key}'",
            expected=str(before),
            found=str(now),
            fix="remove `after`, or the difference",
        )


# what is there


def missing(steps: Iterable[Step]) -> dict[str, str]:
    """Folders of steps that are not done, with the reason."""
    found = {step.uri: why_missing(step) for step in steps}
    return {uri: why for uri, why in found.items() if why is not None}


def to_do(steps: Iterable[Step]) -> list[Step]:
    """The steps, and those they need that are not done, each after those it needs."""
    ordered: dict[str, Step] = {}
    for step in steps:
        before = [need for need in step.needs if need.uri not in ordered and why_missing(need) is not None]
        for one in [*to_do(before), step]:
            ordered.setdefault(one.uri, one)
    return list(ordered.values())


def why_missing(step: Step) -> str | None:
    """Why a step is not done; None where it is."""
    run = RunFolder(step.uri)
    run.pull()
    if not run.config_file.exists():
        return "not begun"
    stage = "genes" if step.does == "genes" else "finetune"
    if not run.stage_done(stage):
        attempts = run.record().get("attempts") or [{}]
        return f"stage {stage} is not finished, last attempt: {attempts[-1].get('status', 'unknown')}"
    return None if step.does == "genes" else _why_not_evaluated(run, step.config)


def _why_not_evaluated(run: RunFolder, config: Config) -> str | None:
    if not (run.evaluation / "predictions.parquet").exists() or not (run.evaluation / "metrics.json").exists():
        return "not evaluated"
    metrics, evaluate = read_json(run.evaluation / "metrics.json"), config.evaluate
    beside = [missing_modality(row["method"]) for row in metrics["rows"][1:]]
    notes = " ".join(metrics.get("notes", ()))  # say why a row beside the model's could not be made
    if evaluate.reference_rows and None not in beside and "baseline" not in notes:
        return "evaluated without the baselines"
    lacking = [modality for modality in evaluate.missing if modality not in beside]
    if lacking and "evaluate.missing" not in notes:
        return f"evaluated without the row for missing {lacking[0]}"
    return None


def missing_modality(method: str) -> str | None:
    """The modality that is missing in a row of `evaluate.missing`; None for a baseline."""
    return next((name for name in ("images", "genes") if method.endswith(f", {name} missing")), None)


def check_same(steps: Iterable[Step], has_genes: bool) -> None:
    """Refuse run folders with a stage that was made from something else than its config means now.

    Raises:
        ConfigError: another setting, seed or split; names the run and every key that differs.
        InputError: another store, or other content of a file that the stage starts from.
    """
    for step in steps:
        run = RunFolder(step.uri)
        if not run.config_file.exists():
            continue
        for name in pipeline.stages_up_to("finetune", step.config, has_genes):
            stage = pipeline.make_stage(name, step.config, run.place)
            pipeline.refuse_changed_stage(run, name, stage.inputs, stage.files)


def seconds_of(step: Step, stages: Sequence[str] | None = None) -> float:
    """What a run took in all, with what it shares with others, by the records of the runs; 0 before it ran."""
    run = RunFolder(step.uri)
    run.pull()
    recorded: dict[str, Any] = run.record().get("stages") or {}
    own = sum(float(entry.get("seconds", 0)) for name, entry in recorded.items() if stages is None or name in stages)
    return own + sum(seconds_of(need, ("genes", "pretrain")) for need in step.needs)
