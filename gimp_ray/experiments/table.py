"""Making a table: run what is missing, then write all its forms.

OUT/table.yaml                       the table as requested; `gimp table OUT/table.yaml --out OUT` goes on
OUT/table.md, table.csv, table.tex   the table; metrics.json has all its numbers
OUT/table.png, tsne.png, tsne_pretrain.png
OUT/runs/, OUT/shared/               the runs, see `runs.py`
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gimp_ray.config_files import flatten
from gimp_ray.errors import ConfigError
from gimp_ray.experiments.grid import Resources, run_steps
from gimp_ray.experiments.results import read_table
from gimp_ray.experiments.runs import Cell, check_same, missing, plan_cells, rows_left_out, to_do
from gimp_ray.experiments.spec import TableSpec, slug_of, without_rows
from gimp_ray.experiments.write import (
    caption,
    csv_text,
    latex_table,
    markdown_page,
    read_vectors,
    rows_figure,
    tsne_panel,
)
from gimp_ray.io.files import write_json, write_text
from gimp_ray.io.storage import as_location, is_uri
from gimp_ray.reports.figures import save_figure
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore

ROWS_FIGURE = "Rows with their 95 % confidence intervals; dotted the first row, hollow the paper's value"


@dataclass(frozen=True)
class Planned:
    """A table, its store, its runs, and which of them are missing.

    Attributes:
        requested: the table as the user gave it.
        table: the same without the rows that are left out.
        left_out: row -> why.
        store: the store, open.
        out: folder of the table, absolute or a URI.
        cells: the runs.
        missing: folder of a cell -> why it is not done.
    """

    requested: TableSpec
    table: TableSpec
    left_out: dict[str, str]
    store: CohortStore
    out: str
    cells: list[Cell]
    missing: dict[str, str]


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
    uri = as_location(out)
    uri = uri if is_uri(uri) else str(Path(uri).resolve())
    left_out = rows_left_out(table, store)
    kept = without_rows(table, left_out) if left_out else table
    cells = plan_cells(kept, store, uri)
    lacking = missing(cell.step for cell in cells)  # downloads what is in object storage
    check_same((cell.step for cell in cells), store.num_genes > 0)
    return Planned(table, kept, left_out, store, uri, cells, lacking)


def _steps_to_do(planned: Planned) -> list[Any]:
    return to_do(cell.step for cell in planned.cells if cell.step.uri in planned.missing)


def missing_text(planned: Planned) -> str:
    """What a table would run: one line a missing run, and the counts."""
    lines = [f"{cell.step.name}: {why}" for cell in planned.cells if (why := planned.missing.get(cell.step.uri))]
    extra = len(_steps_to_do(planned)) - len(planned.missing)
    shared = f", and {extra} gene encoder(s) that they share" if extra else ""
    lines += [f"left out: {name}: {why}" for name, why in planned.left_out.items()]
    lines.append(f"{len(planned.missing)} of {len(planned.cells)} runs are missing{shared}")
    return "\n".join(lines)


def make_table(planned: Planned, resources: Resources) -> dict[str, Any]:
    """Run what is missing and write the table.

    Returns:
        The table's numbers (`results.read_table`); `missing` is empty where it is complete.

    Raises:
        InputError: another command is at work on the table.
    """
    folder = RunFolder(planned.out)
    with folder.one_command():
        write_text(folder.path / "table.yaml", yaml.safe_dump(planned.requested.model_dump(), sort_keys=False))
        folder.push()
        failed = run_steps(_steps_to_do(planned), resources)
        still = missing(cell.step for cell in planned.cells)
        why = {uri: failed.get(uri, reason) for uri, reason in still.items()}
        result = read_table(planned.table, planned.cells, planned.store, why) | {"left_out": planned.left_out}
        write_table(planned, result, folder.path)
        folder.push()
    return result


def write_table(planned: Planned, result: dict[str, Any], folder: Path) -> None:
    """All forms of a table, into a local folder."""
    figures = {save_figure(rows_figure(result), folder / "table.png").name: ROWS_FIGURE}
    fold, seed = result["folds"][0], result["seeds"][0]
    maps = {
        "tsne.png": ("embeddings.parquet", result["part"], f"fine-tuned, {result['part']} cases"),
        "tsne_pretrain.png": ("embeddings_pretrain.parquet", "train", "pre-trained, training cases"),
    }
    for name, (file, part, what) in maps.items():
        tables = [
            (f"{row} (transductive)" if row in result["transductive"] else row, found)
            for row in planned.table.tsne
            for cell in planned.cells
            if (cell.row.name, cell.fold, cell.seed) == (row, fold, seed)
            if (found := read_vectors(RunFolder(cell.step.uri).evaluation / file)) is not None
        ]
        if tables:
            save_figure(tsne_panel(tables, part, what), folder / name)
            figures[name] = f"Maps (t-SNE) of CLS_pat, {what} of fold {fold}, seed {seed}"
    command = f"gimp table {shlex.quote(planned.out + '/table.yaml')} --out {shlex.quote(planned.out)}"
    write_text(folder / "table.md", markdown_page(result, figures, command))
    write_text(folder / "table.csv", csv_text(result))
    title = result["title"]
    write_text(folder / "table.tex", latex_table(result, f"{title}. {caption(result)}", slug_of(title)))
    write_json(folder / "metrics.json", result)
