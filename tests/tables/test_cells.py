"""Which runs a table needs, what they share, which are there, and runs that must not be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.experiments.cells import plan_grid, rows_left_out
from gimp_ray.experiments.spec import build_table
from gimp_ray.experiments.state import check_same, missing, needed, seconds_of
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from tests.tables.made import finished, table_of


@pytest.fixture(scope="module")
def store(store_path: Path) -> CohortStore:
    return CohortStore.open(store_path)


def test_cells_are_rows_folds_and_seeds_with_their_own_folders(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    table = table_of(
        store_path, {"name": "GiMP"}, {"name": "L = 48", "config": {"window.length": 48}}, folds=2, seeds=3
    )
    cells = plan_grid(table, store, str(tmp_path)).cells
    assert len(cells) == 2 * 2 * 3 and len({cell.step.place for cell in cells}) == 12
    last = cells[-1]
    assert last.step.place == f"{tmp_path}/runs/l-48/fold-1/seed-2"
    config = last.step.config
    assert (config.split.fold, config.seed, config.window.length) == (1, 2, 48)


def test_rows_share_a_gene_encoder_where_they_agree_in_all_it_depends_on(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "all"},
        {"name": "no masks", "config": {"mask.weight": 0, "finetune.hidden": 8, "finetune.train.epochs": 2}},
        {"name": "scratch", "config": {"finetune.init": "scratch"}},
        {"name": "other epochs", "config": {"genes.train.epochs": 2}},
        {"name": "narrow", "config": {"model.dim": 32}},
        {"name": "images", "config": {"genes.encoder": "none"}},
        {"name": "abmil", "config": {"method.name": "abmil"}},
        {"name": "mgca", "config": {"objective.name": "mgca"}},
    ]
    grid = plan_grid(table_of(store_path, *rows), store, str(tmp_path))
    encoder = {cell.row.name: cell.step.config.genes.checkpoint for cell in grid.cells}
    assert encoder["all"] == encoder["no masks"] == encoder["scratch"]
    assert len({encoder[name] for name in ("all", "other epochs", "narrow")}) == 3 == len(grid.shared)
    assert encoder["images"] is encoder["abmil"] is encoder["mgca"] is None
    shared = grid.shared[grid.cells[0].step.needs[0]]
    assert shared.does == "genes" and encoder["all"] == f"{shared.place}/genes.safetensors"


def test_shared_encoders_are_of_the_cell_s_own_fold_and_seed(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    grid = plan_grid(table_of(store_path, {"name": "GiMP"}, folds=2, seeds=2), store, str(tmp_path))
    for cell in grid.cells:
        (place,) = cell.step.needs
        shared = grid.shared[place].config
        assert (shared.split.fold, shared.seed) == (cell.fold, cell.seed)
        assert place.endswith(f"fold-{cell.fold}/seed-{cell.seed}")


def test_a_row_after_another_starts_from_its_pre_trained_model(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    after = {"name": "wide head", "after": "GiMP", "config": {"finetune.hidden": 8}}
    grid = plan_grid(table_of(store_path, {"name": "GiMP"}, after), store, str(tmp_path))
    first, second = (cell.step for cell in grid.cells)
    assert second.needs == (first.place,)
    assert second.config.finetune.init == f"{first.place}/pretrain.safetensors"
    # what comes first is done first, whatever is asked for
    ordered = [step.place for step in needed(grid, [second.place])]
    assert ordered == [*first.needs, first.place, second.place]
    differs = {"name": "late", "after": "GiMP", "config": {"mask.ratio": 0.75}}
    with pytest.raises(ConfigError, match=r"differs from it before that, in 'mask.ratio'"):
        plan_grid(table_of(store_path, {"name": "GiMP"}, differs), store, str(tmp_path))
    scratch = {"name": "scratch", "after": "GiMP", "config": {"finetune.init": "scratch"}}
    with pytest.raises(ConfigError, match="between rows with pre-training"):
        plan_grid(table_of(store_path, {"name": "GiMP"}, scratch), store, str(tmp_path))


def test_only_the_first_row_s_runs_fit_the_reference_rows(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    table = table_of(store_path, {"name": "a"}, {"name": "b"})
    said = [cell.step.config.evaluate.reference_rows for cell in plan_grid(table, store, str(tmp_path)).cells]
    assert said == [True, False]
    told = build_table(table.model_dump() | {"base": table.base | {"evaluate.reference_rows": True}})
    assert all(cell.step.config.evaluate.reference_rows for cell in plan_grid(told, store, str(tmp_path)).cells)


def test_what_is_done_is_not_missing_and_what_is_missing_says_why(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    grid = plan_grid(table_of(store_path, {"name": "a"}, seeds=4), store, str(tmp_path))
    done, unread, begun, new = grid.cells
    finished(done, store, 1)
    finished(unread, store, 2, references=False)
    run = RunFolder(begun.step.place)
    run.path.mkdir(parents=True)
    run.config_file.write_text(to_yaml(begun.step.config))
    run.record_file.write_text('{"attempts": [{"status": "failed: MemoryError"}]}')
    assert missing(cell.step for cell in grid.cells) == {
        unread.step.place: "evaluated without the reference rows",
        begun.step.place: "stage finetune is not finished, last attempt: failed: MemoryError",
        new.step.place: "not begun",
    }
    # of the shared encoders, those of runs that are done are not needed
    assert not any(place in {step.place for step in needed(grid, [new.step.place])} for place in done.step.needs)


def test_runs_made_with_other_settings_or_of_another_store_are_refused(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    grid = plan_grid(table_of(store_path, {"name": "a"}), store, str(tmp_path))
    (cell,) = grid.cells
    finished(cell, store, 1)
    check_same(grid.cells, store)
    run, config = RunFolder(cell.step.place), cell.step.config
    free = load_config(None, {"train.workers": 2, "evaluate.resamples": 99}, base=config.model_dump())
    run.config_file.write_text(to_yaml(free))
    check_same(grid.cells, store)
    moved = str(config.genes.checkpoint).replace(str(tmp_path), "/elsewhere")
    run.config_file.write_text(to_yaml(load_config(None, {"genes.checkpoint": moved}, base=config.model_dump())))
    check_same(grid.cells, store)
    other = load_config(None, {"finetune.train.epochs": 7}, base=config.model_dump())
    run.config_file.write_text(to_yaml(other))
    with pytest.raises(ConfigError, match=r"row 'a', fold 0, seed 0 was made with another 'finetune.train.epochs'"):
        check_same(grid.cells, store)
    run.config_file.write_text(to_yaml(config))
    run.record_file.write_text('{"store": {"fingerprint": "other"}}')
    with pytest.raises(InputError, match="of another store"):
        check_same(grid.cells, store)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"config": {"window.lenght": 5}}, "row 'b': unknown config key 'window.lenght'"),
        ({"config": {"mask.ratio": 2}}, "row 'b': impossible value for config key 'mask.ratio'"),
        ({"config": {"method": {"name": "abmill"}}}, "row 'b': impossible value for config key 'method.name'"),
        ({"config": {"split": {"fold": 2}}}, "sets 'split.fold', which the table sets"),
        ({"config": {"target.columns": ["TP53"]}}, "the rows of a table must have the same 'target.columns'"),
    ],
)
def test_rows_that_cannot_be_computed_or_compared_are_refused(
    row: dict[str, Any], says: str, store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_grid(table_of(store_path, {"name": "a"}, {"name": "b"} | row), store, str(tmp_path))


def test_folds_the_store_does_not_have_are_refused(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer folds"):
        plan_grid(table_of(store_path, {"name": "a"}, folds=6), store, str(tmp_path))
    with pytest.raises(InputError, match="no such split scheme"):
        plan_grid(table_of(store_path, {"name": "a", "config": {"split.scheme": "site"}}), store, str(tmp_path))
    every = plan_grid(table_of(store_path, {"name": "a"}, folds=None), store, str(tmp_path))
    assert [cell.fold for cell in every.cells] == [0, 1, 2, 3, 4]


def test_rows_that_this_store_or_target_does_not_allow_are_left_out_with_the_reason(
    store_path: Path, store: CohortStore
) -> None:
    rows = [{"name": name, "config": {"method.name": name}} for name in ("abmil", "mcat", "clam_sb", "snn")]
    table = table_of(store_path, *rows)
    assert rows_left_out(table, store) == {"mcat": "genes.sets is not set"}
    given = build_table(table.model_dump() | {"base": {**table.base, "genes.sets": "sets.gmt"}})
    assert rows_left_out(given, store) == {}
    survival = build_table(table.model_dump() | {"base": {**given.base, "target.kind": "survival"}})
    assert list(rows_left_out(survival, store)) == ["clam_sb"]


def test_methods_that_need_what_the_store_lacks_are_left_out(store_path: Path) -> None:
    rows = [{"name": name, "config": {"method.name": name}} for name in ("gimp", "abmil", "snn", "porpoise")]
    contrast = {"name": "mgca", "config": {"objective.name": "mgca"}}
    table = table_of(store_path, *rows, contrast)
    genes = cast(CohortStore, SimpleNamespace(dim=None, num_genes=10))
    assert set(rows_left_out(table, genes)) == {"gimp", "abmil", "porpoise", "mgca"}
    patches = cast(CohortStore, SimpleNamespace(dim=8, num_genes=0))
    assert set(rows_left_out(table, patches)) == {"snn", "porpoise", "mgca"}


def test_a_run_s_time_includes_what_it_shares(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    after = {"name": "b", "after": "a", "config": {"finetune.hidden": 8}}
    first, second = plan_grid(table_of(store_path, {"name": "a"}, after), store, str(tmp_path)).cells
    for cell, seconds in ((first, 10.0), (second, 3.0)):
        finished(cell, store, 1, seconds=seconds)
    record = RunFolder(first.step.place).record()
    record["stages"]["pretrain"] = {"seconds": 100.0}
    RunFolder(first.step.place).update(lambda there: there.update(record))
    genes = RunFolder(first.step.needs[0])
    genes.path.mkdir(parents=True)
    genes.update(lambda there: there.update({"stages": {"genes": {"seconds": 1000.0}}}))
    assert seconds_of(first) == 1110.0
    assert seconds_of(second) == 1103.0  # not the other row's fine-tuning
