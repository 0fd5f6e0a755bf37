"""A table from run folders that are there: its numbers, its four forms, what is missing; and the verb."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from matplotlib.image import imread

from gimp_ray import pipeline
from gimp_ray.cli.commands import main
from gimp_ray.config_files import flatten
from gimp_ray.evaluation import GENES_ALONE, MEAN_POOL, Truth, difference_of, intervals_of
from gimp_ray.experiments.grid import Resources
from gimp_ray.experiments.runs import to_do, with_changes
from gimp_ray.experiments.spec import build_table
from gimp_ray.experiments.table import Planned, make_table, plan_table
from gimp_ray.experiments.write import caption, difference_text, latex_table, rows_figure
from gimp_ray.reports.figures import save_figure
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from tests.conftest import TINY
from tests.tables.made import CLASSES, finished, reported, table_of

ROWS: list[dict[str, Any]] = [
    {"name": "GiMP", "group": "ours", "paper": {"accuracy": 0.9947}},
    {"name": "50 % & [a_b] $x$", "group": "theirs", "config": {"method.name": "abmil"}, "note": "A note."},
]


def two_rows(store: Path, out: Path) -> Planned:
    """A table of two rows, one fold, two seeds, whose runs are all there."""
    table = table_of(store, *ROWS, seeds=2, tsne=["GiMP"], note="Said below.")
    found = plan_table(table, out)
    for number, cell in enumerate(found.cells):
        finished(cell, found.store, seed=number, seconds=10.0 + number)
    return plan_table(table, out)


@pytest.fixture(scope="module")
def planned(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """The table of the tests that only read it."""
    return two_rows(store_path, tmp_path_factory.mktemp("table") / "out")


@pytest.fixture(scope="module")
def result(planned: Planned) -> dict[str, Any]:
    """Nothing is missing, so nothing is run."""
    assert planned.missing == {}
    return make_table(planned, Resources())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes most of the time. Maps are drawn, for the test of them."""
    monkeypatch.setattr(
        "gimp_ray.experiments.table.save_figure",
        lambda figure, file: file if file.name == "table.png" else save_figure(figure, file),
    )


@pytest.fixture
def own(store_path: Path, tmp_path: Path, undrawn: None) -> Planned:
    """The same table for a test that changes it."""
    return two_rows(store_path, tmp_path / "out")


def out_of(planned: Planned) -> Path:
    return Path(planned.out)


def test_every_row_has_the_figures_of_its_runs(planned: Planned, result: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["GiMP", "50 % & [a_b] $x$", GENES_ALONE, MEAN_POOL]
    runs = [reported(cell) for cell in planned.cells]
    for row, (one, two) in zip(rows.values(), (runs[:2], runs[2:]), strict=False):
        each = [np.mean(run["probabilities"].argmax(axis=1) == run["labels"]) for run in (one, two)]
        assert row["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(each))
        assert row["runs"] == 2
    # of two seeds on one fold, accuracy and its interval are those of all predictions together
    first, second = (
        {key: np.concatenate([run[key] for run in pair]) for key in runs[0]} for pair in (runs[:2], runs[2:])
    )
    truth = Truth("class", CLASSES, {"label": first["labels"]})
    alone = intervals_of(truth, first["cases"], first["probabilities"], 1000, 0)
    assert {**rows["GiMP"]["metrics"]["accuracy"], "sd": 0} == pytest.approx(alone["accuracy"] | {"sd": 0})
    paired = difference_of(truth, first["cases"], second["probabilities"], first["probabilities"], 1000, 0)
    found = rows["50 % & [a_b] $x$"]["difference_to_first"]["accuracy"]
    assert {**found, "sd": 0} == pytest.approx(paired["accuracy"] | {"sd": 0})
    assert rows["GiMP"]["difference_to_first"] == {}
    assert [rows[name]["seconds"] for name in list(rows)[:2]] == [10.5, 12.5]
    assert rows[GENES_ALONE]["baseline"] and rows[GENES_ALONE]["seconds"] is None
    assert (result["n_cases"], result["n_patients"]) == (4, 4)


def test_the_page_says_what_the_figures_are(planned: Planned, result: dict[str, Any]) -> None:
    text = (out_of(planned) / "table.md").read_text()
    assert "Mean over 1 fold (kfold) x 2 seeds on test cases, 4 cases of 4 patients" in text
    assert "to the first row, 'GiMP'" in text and "Said below." in text and "(1) A note." in text
    assert "ransductive" not in text and "TRANSDUCTIVE" not in text and "INCOMPLETE" not in text
    figure = result["rows"][0]["metrics"]["accuracy"]
    shown = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    (line,) = [line for line in text.splitlines() if "| GiMP |" in line]
    assert line.startswith(f"| ours | GiMP | 2 | {shown} |  | ") and "| 0.9947 | 10.5 s |" in line
    assert GENES_ALONE in text and MEAN_POOL in text and "](table.png)" in text
    assert f"gimp table {planned.out}/table.yaml --out {planned.out}" in text


def test_the_csv_reads_back_to_the_same_numbers(planned: Planned, result: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO((out_of(planned) / "table.csv").read_text())))
    assert [line["row"] for line in lines] == [row["name"] for row in result["rows"]]
    for line, row in zip(lines, result["rows"], strict=True):
        for name, figure in row["metrics"].items():
            assert [float(line[f"{name}{end}"]) for end in ("", "_low", "_high", "_sd")] == [
                figure[key] for key in ("value", "low", "high", "sd")
            ]
    assert [line["paper_accuracy"] for line in lines] == ["0.9947", "", "", ""]
    assert [line["seconds_total"] for line in lines] == ["21.0", "25.0", "", ""]


def test_latex_is_balanced_and_escaped(planned: Planned, result: dict[str, Any]) -> None:
    text = (out_of(planned) / "table.tex").read_text()
    assert_latex(text)
    assert r"theirs & 50 \% \& {[}a\_b{]} \$x\$ (1) & 2 & " in text
    assert r"\caption{A \& B. Mean over" in text and r"\label{tab:a-b}" in text
    assert "ours & GiMP & 2 & " in text


def test_a_difference_of_nothing_has_one_way_of_writing() -> None:
    shown = difference_text({"value": -0.0001, "low": -0.0126, "high": 0.0004})
    assert shown == "+0.000 [-0.013, +0.000]"
    assert difference_text({"value": None, "low": None, "high": None}) == ""


def test_figures_a_paper_reports_of_another_kind_of_target_are_not_shown(result: dict[str, Any]) -> None:
    assert "0.9947" in latex_table(result, "c", "l") and "The paper's values" in caption(result)
    survival = result | {"kind": "survival", "shown": ["c_index"]}
    assert "0.9947" not in latex_table(survival, "c", "l") and "The paper's values" not in caption(survival)


def test_latex_of_odd_names_stays_balanced(result: dict[str, Any]) -> None:
    rows = [row | {"name": "\\{}^~#<>|\n[x]", "group": "%{"} for row in result["rows"]]
    assert_latex(latex_table(result | {"rows": rows}, "{ \\ %", "x"))


def assert_latex(text: str) -> None:
    """What a compiler would stop at: braces, environments, the columns of every line, bare special signs."""
    begun = re.findall(r"\\begin\{(\w+)\}", text)
    assert begun == ["table", "tabular"] and re.findall(r"\\end\{(\w+)\}", text) == begun[::-1]
    plain = re.sub(r"\\[\\{}&%$#_]", "", "\n".join(line for line in text.splitlines() if not line.startswith("%")))
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"[$#_^~%]", plain)
    (layout,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    body = text.split(r"\toprule")[1].split(r"\bottomrule", maxsplit=1)[0]
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == len(layout) - 1
            assert not line.startswith("[")


def test_the_figure_has_every_row_with_its_interval(planned: Planned, result: dict[str, Any]) -> None:
    axes = rows_figure(result).axes
    assert [one.get_xlabel() for one in axes] == ["accuracy", "AUROC"]
    assert [label.get_text().replace("\\$", "$") for label in axes[0].get_yticklabels()] == [
        row["name"] for row in result["rows"]
    ]
    drawn = [list(line.get_xdata()) for line in axes[0].lines if len(line.get_xdata()) == 2]
    for row in result["rows"]:
        figure = row["metrics"]["accuracy"]
        assert [figure["low"], figure["high"]] in drawn
    pixels = imread(out_of(planned) / "table.png")
    assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02


def test_everything_is_written_and_nothing_left_aside(planned: Planned, result: dict[str, Any]) -> None:
    out = out_of(planned)
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert sorted(file.name for file in out.iterdir()) == [
        *("metrics.json", "runs", "table.csv", "table.md", "table.png", "table.tex", "table.yaml")
    ]
    again = plan_table(planned.requested.model_validate(yaml.safe_load((out / "table.yaml").read_text())), out)
    assert again.missing == {} and len(again.cells) == 4


def test_missing_runs_are_counted_named_and_leave_the_rest(own: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the command ends with 1."""
    gone = own.cells[-1].step.uri
    RunFolder(gone).model_file("finetune").unlink()
    asked: list[str] = []

    def fails(steps: list[Any], room: Resources) -> dict[str, str]:
        asked.extend(step.uri for step in steps)
        return {gone: "OutOfMemoryError: too large"}

    monkeypatch.setattr("gimp_ray.experiments.table.run_steps", fails)
    mine = out_of(own) / "mine.yaml"
    mine.write_text(yaml.safe_dump(own.requested.model_dump()))
    told = ran(str(mine), "--out", own.out)
    assert asked == [gone] and told.exit_code == 1
    assert "missing: 50 % & [a_b] $x$, fold 0, seed 1: OutOfMemoryError: too large" in told.output
    found = json.loads((out_of(own) / "metrics.json").read_text())
    assert found["missing"] == [{"row": "50 % & [a_b] $x$", "fold": 0, "seed": 1, "why": "OutOfMemoryError: too large"}]
    assert [row["runs"] for row in found["rows"]] == [2, 1, 2, 2]
    text = (out_of(own) / "table.md").read_text()
    assert "INCOMPLETE: 1 runs are missing" in text and "| 0 | 1 | OutOfMemoryError: too large |" in text


def test_a_table_without_any_run_is_still_written(
    store_path: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gimp_ray.experiments.table.run_steps", lambda steps, room: {})
    found = make_table(plan_table(table_of(store_path, *ROWS), tmp_path / "out"), Resources())
    assert len(found["missing"]) == 2 and all(row["metrics"] == {} for row in found["rows"])
    assert_latex((tmp_path / "out" / "table.tex").read_text())


def test_transductive_rows_are_flagged_in_every_caption(store_path: Path, tmp_path: Path, undrawn: None) -> None:
    rows = [ROWS[0], {"name": "sees all", "config": {"split.transductive": True}}]
    table = table_of(store_path, *rows)
    cells = plan_table(table, tmp_path / "out").cells
    store = CohortStore.open(store_path)
    for number, cell in enumerate(cells):
        finished(cell, store, number)
    make_table(plan_table(table, tmp_path / "out"), Resources())
    for name in ("table.md", "table.tex"):
        assert "TRANSDUCTIVE" in (tmp_path / "out" / name).read_text()
        assert "not their labels) in sees all;" in (tmp_path / "out" / name).read_text()


def test_a_row_is_followed_by_what_it_says_without_a_modality(store_path: Path, tmp_path: Path, undrawn: None) -> None:
    """The runs call all of them GiMP; the table names them after their rows."""
    rows = [{"name": "a", "group": "x", "config": {"evaluate.missing": ["images", "genes"]}}, {"name": "b"}]
    table = table_of(store_path, *rows)
    store = CohortStore.open(store_path)
    for number, cell in enumerate(plan_table(table, tmp_path / "out").cells):
        finished(cell, store, number)
    found = make_table(plan_table(table, tmp_path / "out"), Resources())
    assert [(row["name"], row["group"], row["baseline"]) for row in found["rows"]] == [
        ("a", "x", False),
        ("a, images missing", "x", False),
        ("a, genes missing", "x", False),
        ("b", "", False),
        (GENES_ALONE, "Baselines", True),
        (MEAN_POOL, "Baselines", True),
    ]
    # asked for later, it is evaluated again
    asked = build_table(table.model_dump() | {"base": table.base | {"evaluate.missing": ["genes"]}})
    assert list(plan_table(asked, tmp_path / "out").missing.values()) == ["evaluated without the row for missing genes"]


def test_maps_are_drawn_of_the_rows_that_have_cls_pat(own: Planned) -> None:
    run = RunFolder(own.cells[0].step.uri)
    predictions = pq.read_table(run.evaluation / "predictions.parquet")
    flat = pa.array(np.random.default_rng(0).normal(size=predictions.num_rows * 4).astype(np.float32))
    embedded = predictions.append_column("cls_pat", pa.FixedSizeListArray.from_arrays(flat, 4))
    pq.write_table(embedded, run.evaluation / "embeddings.parquet")
    make_table(own, Resources())
    assert imread(out_of(own) / "tsne.png")[..., :3].std() > 0.01
    assert "](tsne.png)" in (out_of(own) / "table.md").read_text()
    assert not (out_of(own) / "tsne_pretrain.png").exists()


def ran(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["table", *arguments], catch_exceptions=False)


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = ran("table2", "--store", str(store_path), "--out", str(out), "--folds", "1", "--seeds", "2", "--dry-run")
    assert told.exit_code == 0 and not out.exists()
    assert "MPM alone, on images, fold 0, seed 1: not begun" in told.output
    # two settings of genes (GroupMSA and SNN), two seeds
    assert told.output.splitlines()[-1] == "12 of 12 runs are missing, and 4 gene encoder(s) that they share"


def test_the_command_line_s_keys_reach_every_row_but_not_over_its_own(store_path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    rows = [{"name": "a"}, {"name": "b", "config": {"window.length": 32}}]
    mine.write_text(yaml.safe_dump({"title": "t", "base": {"window": {"length": 64}, "seed": 0}, "rows": rows}))
    refused = ran(
        str(mine), "--store", str(store_path), "--out", str(tmp_path / "o"), "--window.lenght", "3", "--dry-run"
    )
    assert refused.exit_code == 2 and "unknown config key 'window.lenght'" in refused.output
    unknown = ran(str(mine), "--store", str(store_path), "--out", str(tmp_path / "o"), "--row", "c", "--dry-run")
    assert unknown.exit_code == 2 and "no row 'c'" in unknown.output
    listed = ran(
        *(str(mine), "--store", str(store_path), "--out", str(tmp_path / "o"), "--row", "b", "--seeds", "1"),
        *("--folds", "1", "--window.length", "16", "--dry-run"),
    )
    assert listed.output.splitlines()[-1].startswith("1 of 1 runs are missing")


def test_a_complete_table_ends_with_0_and_runs_nothing(own: Planned, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(own.requested.model_dump()))
    told = ran(str(mine), "--out", own.out)
    assert told.exit_code == 0 and "0 of 4 runs to do" in told.output


@pytest.mark.slow
def test_a_moved_or_copied_table_goes_on_where_it_is(store_path: Path, tmp_path: Path) -> None:
    """Its encoder is trained and its run is stopped in the middle; then it is copied and moved."""
    base = flatten(TINY) | {"store": str(store_path), "finetune.init": "scratch", "evaluate.resamples": 20}
    table = build_table({"title": "t", "base": base, "rows": [{"name": "a"}], "folds": 1, "seeds": 1})
    genes, run = to_do(cell.step for cell in plan_table(table, tmp_path / "first").cells)
    pipeline.pretrain_genes(genes.config)
    pipeline.run_all(with_changes(run.config, {"finetune.train.stop_after": 1}))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    before = {file: file.read_bytes() for file in (tmp_path / "moved").rglob("*") if file.is_file()}
    for place in ("copy", "moved"):
        (step,) = to_do(cell.step for cell in plan_table(table, tmp_path / place).cells)
        assert Path(step.uri).is_relative_to(tmp_path / place)
        pipeline.run_all(step.config)
        planned = plan_table(table, tmp_path / place)
        assert planned.missing == {} and not (tmp_path / "first").exists()
        attempts = RunFolder(step.uri).record()["attempts"]
        assert [attempt["status"] for attempt in attempts] == ["stopped", "done"]
        if place == "copy":  # what it is a copy of is as it was
            assert {file: file.read_bytes() for file in before} == before
    # a finished one is read where it is now as well
    shutil.move(tmp_path / "moved", tmp_path / "again")
    assert plan_table(table, tmp_path / "again").missing == {}
