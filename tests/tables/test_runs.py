"""Which runs a table needs, what they share, which are there, and runs that must not be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gimp_ray.config_files import flatten, to_yaml
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.experiments.runs import Cell, check_same, missing, plan_cells, rows_left_out, seconds_of, to_do
from gimp_ray.experiments.spec import RowSpec, build_table
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import read_card
from gimp_ray.store import CohortStore
from tests.conftest import change_card, changed
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
    cells = plan_cells(table, store, str(tmp_path))
    assert len(cells) == 2 * 2 * 3 and len({cell.step.uri for cell in cells}) == 12
    last = cells[-1]
    assert last.step.uri == f"{tmp_path}/runs/l-48/fold-1/seed-2"
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
        {"name": "mgca", "config": {"method.name": "mgca"}},
    ]
    cells = plan_cells(table_of(store_path, *rows), store, str(tmp_path))
    encoder = {cell.row.name: flatten(cell.step.config.model_dump()).get("genes.checkpoint") for cell in cells}
    assert encoder["all"] == encoder["no masks"] == encoder["scratch"]
    assert len({encoder[name] for name in ("all", "other epochs", "narrow")}) == 3
    assert encoder["images"] is encoder["abmil"] is encoder["mgca"] is None
    (shared,) = cells[0].step.needs
    assert shared.does == "genes" and encoder["all"] == f"{shared.uri}/genes.safetensors"


def test_shared_encoders_are_of_the_cell_s_own_fold_and_seed(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    cells = plan_cells(table_of(store_path, {"name": "GiMP"}, folds=2, seeds=2), store, str(tmp_path))
    assert len({need.uri for cell in cells for need in cell.step.needs}) == len(cells) == 4
    for cell in cells:
        (shared,) = cell.step.needs
        assert (shared.config.split.fold, shared.config.seed) == (cell.fold, cell.seed)


def test_a_row_after_another_starts_from_its_pre_trained_model(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    after = {"name": "wide head", "after": "GiMP", "config": {"finetune.hidden": 8}}
    cells = plan_cells(table_of(store_path, {"name": "GiMP"}, after), store, str(tmp_path))
    first, second = (cell.step for cell in cells)
    assert second.needs == (first,)
    assert second.config.finetune.init == f"{first.uri}/pretrain.safetensors"
    # what comes first is done first, whatever is asked for
    assert to_do([second]) == [*first.needs, first, second] == to_do([second, first])
    differs = {"name": "late", "after": "GiMP", "config": {"mask.ratio": 0.75}}
    with pytest.raises(ConfigError, match=r"differs from it before that, in 'mask.ratio'"):
        plan_cells(table_of(store_path, {"name": "GiMP"}, differs), store, str(tmp_path))
    scratch = {"name": "scratch", "after": "GiMP", "config": {"finetune.init": "scratch"}}
    with pytest.raises(ConfigError, match="between rows with pre-training"):
        plan_cells(table_of(store_path, {"name": "GiMP"}, scratch), store, str(tmp_path))


def test_only_the_first_row_s_runs_fit_the_reference_rows(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    table = table_of(store_path, {"name": "a"}, {"name": "b"})
    said = [cell.step.config.evaluate.reference_rows for cell in plan_cells(table, store, str(tmp_path))]
    assert said == [True, False]
    told = build_table(table.model_dump() | {"base": table.base | {"evaluate.reference_rows": True}})
    assert all(cell.step.config.evaluate.reference_rows for cell in plan_cells(told, store, str(tmp_path)))


def test_what_is_done_is_not_missing_and_what_is_missing_says_why(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    cells = plan_cells(table_of(store_path, {"name": "a"}, seeds=4), store, str(tmp_path))
    done, unread, begun, new = cells
    finished(done, store, 1)
    finished(unread, store, 2, references=False)
    run = RunFolder(begun.step.uri)
    run.path.mkdir(parents=True)
    run.config_file.write_text(to_yaml(begun.step.config))
    run.record_file.write_text('{"attempts": [{"status": "failed: MemoryError"}]}')
    assert missing(cell.step for cell in cells) == {
        unread.step.uri: "evaluated without the baselines",
        begun.step.uri: "stage finetune is not finished, last attempt: failed: MemoryError",
        new.step.uri: "not begun",
    }
    # of the shared encoders, those of runs that are done are not needed
    assert to_do([new.step]) == [*new.step.needs, new.step]


def test_runs_made_with_other_settings_or_of_another_store_are_refused(
    store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    (step,) = (cell.step for cell in plan_cells(table_of(store_path, {"name": "a"}), store, str(tmp_path / "out")))

    def checked(**changes: Any) -> None:
        check_same([replace(step, config=changed(step.config, **changes))], has_genes=True)

    finished(Cell(RowSpec(name="a"), 0, 0, step), store, 1)
    checked()
    checked(train__workers=2, evaluate__resamples=99, genes__checkpoint="/elsewhere/genes.safetensors")
    with pytest.raises(ConfigError, match=r"was made with another 'train.epochs'") as refusal:
        checked(finetune__train__epochs=7)
    assert str(refusal.value.file).endswith("out/runs/a/fold-0/seed-0")
    with pytest.raises(ConfigError, match=r"another 'seed'"):
        checked(seed=1)
    with pytest.raises(ConfigError, match=r"another 'split.train'"):
        checked(split__fold=1)
    inputs = read_card(RunFolder(step.uri).model_file("finetune"))["inputs"]
    change_card(RunFolder(step.uri).model_file("finetune"), inputs=inputs | {"store": "other"})
    with pytest.raises(InputError, match="the store is not the one"):
        checked()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"config": {"window.lenght": 5}}, "row 'b': unknown config key 'window.lenght'"),
        ({"config": {"mask.ratio": 2}}, "row 'b': impossible value for config key 'mask.ratio'"),
        ({"config": {"method": {"name": "abmill"}}}, "impossible value for config key 'method.name'"),
        ({"config": {"split": {"fold": 2}}}, "sets 'split.fold', which the table sets"),
        ({"config": {"target.columns": ["TP53"]}}, "the rows of a table must have the same 'target.columns'"),
    ],
)
def test_rows_that_cannot_be_computed_or_compared_are_refused(
    row: dict[str, Any], says: str, store_path: Path, store: CohortStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_cells(table_of(store_path, {"name": "a"}, {"name": "b"} | row), store, str(tmp_path))


def test_folds_the_store_does_not_have_are_refused(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer folds"):
        plan_cells(table_of(store_path, {"name": "a"}, folds=6), store, str(tmp_path))
    with pytest.raises(InputError, match="no such split scheme"):
        plan_cells(table_of(store_path, {"name": "a", "config": {"split.scheme": "site"}}), store, str(tmp_path))
    every = plan_cells(table_of(store_path, {"name": "a"}, folds=None), store, str(tmp_path))
    assert [cell.fold for cell in every] == [0, 1, 2, 3, 4]


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
    contrast = {"name": "mgca", "config": {"method.name": "mgca"}}
    table = table_of(store_path, *rows, contrast)
    genes = cast(CohortStore, SimpleNamespace(dim=None, num_genes=10))
    assert set(rows_left_out(table, genes)) == {"gimp", "abmil", "porpoise", "mgca"}
    patches = cast(CohortStore, SimpleNamespace(dim=8, num_genes=0))
    assert set(rows_left_out(table, patches)) == {"snn", "porpoise", "mgca"}


def test_a_run_s_time_includes_what_it_shares(store_path: Path, store: CohortStore, tmp_path: Path) -> None:
    after = {"name": "b", "after": "a", "config": {"finetune.hidden": 8}}
    first, second = plan_cells(table_of(store_path, {"name": "a"}, after), store, str(tmp_path))
    for cell, seconds in ((first, 10.0), (second, 3.0)):
        finished(cell, store, 1, seconds=seconds)
    record = RunFolder(first.step.uri).record()
    record["stages"]["pretrain"] = {"seconds": 100.0}
    RunFolder(first.step.uri).update(lambda there: there.update(record))
    genes = RunFolder(first.step.needs[0].uri)
    genes.path.mkdir(parents=True)
    genes.update(lambda there: there.update({"stages": {"genes": {"seconds": 1000.0}}}))
    assert seconds_of(first.step) == 1110.0
    assert seconds_of(second.step) == 1103.0  # not the other row's fine-tuning
