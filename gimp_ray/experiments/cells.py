"""Which runs a table needs: a run folder for every row, fold and seed, and what several of them share.

    OUT/runs/<row>/fold-<k>/seed-<s>                an ordinary run
    OUT/shared/genes/<key>/fold-<k>/seed-<s>        a run with stage `genes` alone, for every cell with these settings

The gene encoder of a cell depends on its fold, its seed and few settings, so it is trained once for all the rows that
agree in them; the key is the digest of that stage. It is fitted on the same training part as the rows that use it.
A row with `after` is fine-tuned from the pre-trained model of another row's run of the same fold and seed. Left out:
running (`grid.py`), and figures (`reading.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gimp_ray.config import Config
from gimp_ray.config_files import differences, flatten, load_config, with_absolute_paths
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.experiments.spec import RowSpec, TableSpec, slug_of
from gimp_ray.pipeline import stage_inputs, stages_up_to
from gimp_ray.runs.model import changed_inputs, digest_of
from gimp_ray.store import CohortStore

# a run of a table trains in its task, unless the table says otherwise
IN_ITS_TASK = {"train.workers": 0}


@dataclass(frozen=True)
class Step:
    """One command on one run folder.

    Attributes:
        name: for people.
        does: `genes` for stage genes alone, `run` for a whole run.
        config: its config; `config.run` is its folder.
        needs: folders of steps that must be done before.
    """

    name: str
    does: Literal["genes", "run"]
    config: Config
    needs: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        assert self.config.run is not None
        return self.config.run


@dataclass(frozen=True)
class Cell:
    """The run of a row, fold and seed."""

    row: RowSpec
    fold: int
    seed: int
    step: Step


@dataclass(frozen=True)
class Grid:
    """All runs of a table.

    Attributes:
        cells: rows in order, then folds, then seeds.
        shared: what cells need that is no cell, by its folder.
    """

    cells: list[Cell]
    shared: dict[str, Step]


def plan_grid(table: TableSpec, store: CohortStore, out: str) -> Grid:
    """The runs of a table; every config is checked before anything runs.

    Args:
        table: whose `base` names the store.
        store: the store, open.
        out: folder of the table, absolute or a URI.

    Raises:
        ConfigError: a config key is unknown or impossible, with the row; or rows do not fit together.
        InputError: the store has no such folds.
    """
    configs = {row.name: _row_config(table, row) for row in table.rows}
    _same_question(table, configs)
    for row in table.rows:
        if row.after is not None:
            _check_after(row, configs[row.name], configs[row.after])
    cells: list[Cell] = []
    shared: dict[str, Step] = {}
    for number, row in enumerate(table.rows):
        config = _with_references(table, configs[row.name], first=number == 0)
        for fold in _folds(table, config, store):
            cells += [_cell(row, config, fold, seed, out, store, shared) for seed in range(table.seeds)]
    return Grid(cells, shared)


def rows_left_out(table: TableSpec, store: CohortStore) -> dict[str, str]:
    """Rows whose method this store, target or config does not allow, with the reason.

    Raises:
        ConfigError: a row's config cannot be used.
    """
    why = {row.name: _why_left_out(_row_config(table, row), store) for row in table.rows}
    return {name: reason for name, reason in why.items() if reason is not None}


def _why_left_out(config: Config, store: CohortStore) -> str | None:
    recipe = config.method.recipe
    there = {"patches": store.dim is not None, "genes": store.num_genes > 0}
    needs = ("patches",) if recipe is None else recipe.needs
    if recipe is None and config.objective.name != "gimp":
        needs = ("patches", "genes")
    for modality in needs:
        if not there[modality]:
            return f"the store has no {modality}"
    if recipe is not None and config.target.kind not in recipe.kinds:
        return recipe.why_not
    if recipe is not None and recipe.sets and config.genes.sets is None:
        return "genes.sets is not set"
    return None


def _cell(
    row: RowSpec, config: Config, fold: int, seed: int, out: str, store: CohortStore, shared: dict[str, Step]
) -> Cell:
    which = f"fold-{fold}/seed-{seed}"
    name = f"{row.name}, fold {fold}, seed {seed}"
    here = load_config(
        None, {"run": f"{out}/runs/{row.slug}/{which}", "split.fold": fold, "seed": seed}, base=config.model_dump()
    )
    needs: tuple[str, ...] = ()
    if row.after is not None:
        other = f"{out}/runs/{slug_of(row.after)}/{which}"
        here, needs = _changed(here, {"finetune.init": f"{other}/pretrain.safetensors"}), (other,)
    elif "genes" in stages_up_to("finetune", here, store.num_genes > 0):
        key = digest_of(stage_inputs("genes", here))[:12]
        place = f"{out}/shared/genes/{key}/{which}"
        genes = Step(f"gene encoder {key}, fold {fold}, seed {seed}", "genes", _changed(here, {"run": place}))
        shared.setdefault(place, genes)
        here, needs = _changed(here, {"genes.checkpoint": f"{place}/genes.safetensors"}), (place,)
    return Cell(row, fold, seed, Step(name, "run", here, needs))


def _row_config(table: TableSpec, row: RowSpec) -> Config:
    """The config of a row: the table's base with the row's own keys over it."""
    for key in flatten(row.config):
        if key in ("run", "store", "seed", "split.fold"):
            raise ConfigError(
                f"row '{row.name}' sets '{key}', which the table sets", found=key, fix="remove it from the row"
            )
    try:
        return with_absolute_paths(load_config(None, IN_ITS_TASK | flatten(table.base) | flatten(row.config)))
    except ConfigError as error:
        raise ConfigError(
            f"row '{row.name}': {error.what}",
            file=error.file,
            expected=error.expected,
            found=error.found,
            fix=error.fix,
        ) from None


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    return load_config(None, changes, base=config.model_dump())


def _with_references(table: TableSpec, config: Config, first: bool) -> Config:
    """The reference rows depend on fold and seed alone: unless the table says more, the first row's runs fit them."""
    if first or "evaluate.reference_rows" in flatten(table.base):
        return _changed(config, {"evaluate.reference_rows": True}) if first else config
    return _changed(config, {"evaluate.reference_rows": False})


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
    lacking = [fold for fold in wanted if fold not in there]
    if lacking:
        raise InputError(
            "the split scheme has fewer folds than asked for",
            file=store.path,
            expected=f"--folds {len(there)} or fewer for scheme {config.split.scheme}",
            found=f"--folds {table.folds}",
            fix="ask for fewer folds, or set split.scheme",
        )
    return wanted


def _same_question(table: TableSpec, configs: dict[str, Config]) -> None:
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
    if config.finetune.init != "pretrain" or other.finetune.init != "pretrain":
        raise ConfigError(
            f"row '{row.name}' comes after '{row.after}', which only works between rows with pre-training",
            expected="finetune.init: pretrain in both",
            found=f"{config.finetune.init} and {other.finetune.init}",
            fix="remove `after`",
        )
    changed = changed_inputs(stage_inputs("pretrain", other), stage_inputs("pretrain", config))
    if changed:
        key, (before, now) = next(iter(changed.items()))
        raise ConfigError(
            f"row '{row.name}' comes after '{row.after}' and differs from it before that, in '{key}'",
            expected=str(before),
            found=str(now),
            fix="remove `after`, or the difference",
        )
