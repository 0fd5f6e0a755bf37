"""Making a table: run what is missing, then write all its forms.

OUT/table.yaml                       the table as it was asked for; `gimp table OUT/table.yaml --out OUT` goes on
OUT/table.md, table.csv, table.tex   the table; metrics.json has all its numbers
OUT/table.png, tsne.png, tsne_pretrain.png
OUT/runs/, OUT/shared/               the runs, see `cells.py`
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gimp_ray.config_files import flatten
from gimp_ray.errors import ConfigError
from gimp_ray.experiments.cells import Grid, plan_grid, rows_left_out
from gimp_ray.experiments.drawing import read_vectors, rows_figure, save_image, tsne_panel
from gimp_ray.experiments.grid import Room, run_steps
from gimp_ray.experiments.latex import latex_table
from gimp_ray.experiments.reading import read_table
from gimp_ray.experiments.spec import TableSpec, slug_of, without_rows
from gimp_ray.experiments.state import check_same, missing, needed
from gimp_ray.experiments.writing import caption, csv_text, markdown_page
from gimp_ray.io.places import is_uri
from gimp_ray.reports.figures import save_figure
from gimp_ray.runs.folder import RunFolder, as_place, write_json, write_text
from gimp_ray.store import CohortStore

ROWS_FIGURE = "Rows with their 95 % intervals; dotted the first row, hollow the paper's figure"


@dataclass(frozen=True)
class Planned:
    """A table, its store, its runs, and which of them are missing."""

    asked: TableSpec
    """as it was asked for"""
    table: TableSpec
    """without the rows that are left out"""
    left_out: dict[str, str]
    """row -> why"""
    store: CohortStore
    out: str
    grid: Grid
    missing: dict[str, str]
    """folder of a cell -> why it is not done"""


def plan_table(table: TableSpec, out: str | Path) -> Planned:
    """What a table needs and what of it is there; nothing is written.

    Raises:
        ConfigError: no store, or a key or row that does not fit.
        InputError: the store has no such folds, or a run in `out` is of another store.
    """
    store_path = flatten(table.base).get("store")
    if not store_path:
        raise ConfigError(
            "no store was given",
            expected="store: PATH",
            found="nothing",
            fix="add --store STORE, or base: {store: ...}",
        )
    store = CohortStore.open(str(store_path))
    place = as_place(out)
    place = place if is_uri(place) else str(Path(place).resolve())
    left_out = rows_left_out(table, store)
    kept = without_rows(table, left_out) if left_out else table
    grid = plan_grid(kept, store, place)
    lacking = missing(cell.step for cell in grid.cells)  # which brings here what is in object storage
    check_same(grid.cells, store)
    return Planned(table, kept, left_out, store, place, grid, lacking)


def missing_text(planned: Planned) -> str:
    """What a table would run: one line a missing run, and the counts."""
    steps = needed(planned.grid, planned.missing)
    named = {cell.step.place: cell.step.name for cell in planned.grid.cells}
    lines = [f"{named[place]}: {why}" for place, why in planned.missing.items()]
    extra = len([step for step in steps if step.place not in planned.missing])
    shared = f", and {extra} gene encoder(s) that they share" if extra else ""
    lines += [f"left out: {name}: {why}" for name, why in planned.left_out.items()]
    lines.append(f"{len(planned.missing)} of {len(planned.grid.cells)} runs are missing{shared}")
    return "\n".join(lines)


def make_table(planned: Planned, room: Room) -> dict[str, Any]:
    """Run what is missing and write the table.

    Returns:
        The table's numbers (`reading.read_table`); `missing` is empty where it is complete.

    Raises:
        InputError: another command is at work on the table.
    """
    folder = RunFolder(planned.out)
    with folder.one_command():
        write_text(folder.path / "table.yaml", yaml.safe_dump(planned.asked.model_dump(), sort_keys=False))
        folder.push()
        failed = run_steps(needed(planned.grid, planned.missing), room)
        still = missing(cell.step for cell in planned.grid.cells)
        why = {place: failed.get(place, reason) for place, reason in still.items()}
        result = read_table(planned.table, planned.grid, planned.store, why) | {"left_out": planned.left_out}
        write_table(planned, result, folder.path)
        folder.push()
    return result


def write_table(planned: Planned, result: dict[str, Any], folder: Path) -> None:
    """All forms of a table, into a local folder."""
    figures = {save_figure(rows_figure(result), folder / "table.png").name: ROWS_FIGURE}
    figures |= _maps(planned, result, folder)
    command = f"gimp table {shlex.quote(planned.out + '/table.yaml')} --out {shlex.quote(planned.out)}"
    write_text(folder / "table.md", markdown_page(result, figures, command))
    write_text(folder / "table.csv", csv_text(result))
    write_text(
        folder / "table.tex", latex_table(result, f"{result['title']}. {caption(result)}", slug_of(result["title"]))
    )
    write_json(folder / "metrics.json", result)


def _maps(planned: Planned, result: dict[str, Any], folder: Path) -> dict[str, str]:
    """The maps of CLS_pat of the first fold and seed, of the rows the table names and that have one."""
    drawn = {}
    kinds = {
        "tsne.png": ("embeddings.parquet", result["part"], "fine-tuned", f"{result['part']} cases"),
        "tsne_pretrain.png": ("embeddings_pretrain.parquet", "train", "pre-trained", "training cases"),
    }
    for name, (file, part, how, cases) in kinds.items():
        tables = [
            (f"{row} (transductive)" if row in result["transductive"] else row, found)
            for row in planned.table.tsne
            for cell in planned.grid.cells
            if cell.row.name == row and (cell.fold, cell.seed) == (result["folds"][0], result["seeds"][0])
            if (found := read_vectors(RunFolder(cell.step.place).evaluation / file)) is not None
        ]
        if tables:
            labels = sorted({label for _, table in tables for label in table["label"].to_pylist()})
            image = tsne_panel(tables, part, labels, f"{how}, {cases}")
            save_image(image, folder / name)
            drawn[name] = (
                f"Maps (t-SNE) of CLS_pat, {how}, {cases} of fold {result['folds'][0]}, seed {result['seeds'][0]}"
            )
    return drawn
