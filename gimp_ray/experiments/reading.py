"""The table's numbers, read from the runs' folders: plain data that every form of the table is written from.

The reference rows (genes alone, mean-pooled patches) stand in every table; their predictions come from the first row
whose runs have them, fold by fold. With `evaluate.missing` a row is followed by what it says without a modality.
Patients are those of the store's case table. Left out: drawing and writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.experiments.cells import Cell, Grid
from gimp_ray.experiments.pooled import Draw, RunScores, draw_patients, pooled_difference, pooled_intervals
from gimp_ray.experiments.scores import score
from gimp_ray.experiments.spec import SHOWN, TableSpec
from gimp_ray.experiments.state import missing_modality, seconds_of
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from gimp_ray.store.splits import patient_column

REFERENCE_GROUP = "Reference rows"


@dataclass
class _Tables:
    """Predictions of one row: (fold, seed) -> table of the reported part."""

    name: str
    group: str
    tables: dict[tuple[int, int], pa.Table] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def read_table(table: TableSpec, grid: Grid, store: CohortStore, missing: Mapping[str, str]) -> dict[str, Any]:
    """The table as plain data.

    Args:
        table: what it is.
        grid: its runs.
        store: the store, open.
        missing: folders of runs that are not done, with the reason.

    Returns:
        `title`, `note`, `kind`, `shown` (figures to show), `part`, `scheme`, `folds`, `seeds`, `resamples`, `n_cases`,
        `n_patients`, `transductive` (names of rows), `missing` (one entry a run: row, fold, seed, why), and `rows`:
        name, group, note, paper, reference, runs, `figures` ({figure: value, low, high, sd}), `difference_to_first`
        (the same), `seconds` (mean of a run) and `seconds_total`.

    Raises:
        InputError: a file of a run cannot be read, or runs do not fit together.
    """
    done = [cell for cell in grid.cells if cell.step.place not in missing]
    config = grid.cells[0].step.config
    kind = config.target.kind
    rows = _rows(table, done, config)
    everybody = [case for row in rows for one in row.tables.values() for case in one["case_id"].to_pylist()]
    patients = _patients(everybody, store)
    draw = draw_patients(list(patients.values()), config.evaluate.resamples, 0) if patients else None
    scores = {row.name: _scores(row, kind, patients, draw) for row in rows}
    first = scores[table.rows[0].name]
    specs = {row.name: row for row in table.rows}
    entries = []
    for row in rows:
        spec = specs.get(row.name)
        is_first = row.name == table.rows[0].name
        entries.append(
            {
                "name": row.name,
                "group": row.group,
                "note": "" if spec is None else spec.note,
                "paper": {} if spec is None else dict(spec.paper),
                "reference": row.group == REFERENCE_GROUP and spec is None,
                "runs": len(row.tables),
                "figures": pooled_intervals(scores[row.name]),
                "difference_to_first": {} if is_first else pooled_difference(scores[row.name], first),
                "seconds": float(np.mean(row.seconds)) if row.seconds else None,
                "seconds_total": float(np.sum(row.seconds)) if row.seconds else None,
            }
        )
    return {
        "title": table.title,
        "note": table.note,
        "kind": kind,
        "shown": list(SHOWN[kind]),
        "part": config.evaluate.part,
        "scheme": config.split.scheme,
        "folds": sorted({cell.fold for cell in grid.cells}),
        "seeds": sorted({cell.seed for cell in grid.cells}),
        "resamples": config.evaluate.resamples,
        "n_cases": len(set(everybody)),
        "n_patients": len(set(patients.values())),
        "transductive": sorted({cell.row.name for cell in grid.cells if cell.step.config.split.transductive}),
        "missing": [
            {"row": cell.row.name, "fold": cell.fold, "seed": cell.seed, "why": missing[cell.step.place]}
            for cell in grid.cells
            if cell.step.place in missing
        ],
        "rows": entries,
    }


def _rows(table: TableSpec, done: Sequence[Cell], config: Config) -> list[_Tables]:
    """The table's rows, each followed by what it says without a modality, then the reference rows."""
    rows = {row.name: {"": _Tables(row.name, row.group)} for row in table.rows}
    references: dict[str, _Tables] = {}
    for cell in done:
        which, run = (cell.fold, cell.seed), RunFolder(cell.step.place)
        own = rows[cell.row.name]
        own[""].tables[which] = _reported(_table(run, "predictions.parquet"), config.evaluate.part)
        own[""].seconds.append(seconds_of(cell))
        if not (run.evaluation / "reference_predictions.parquet").exists():
            continue
        beside = _table(run, "reference_predictions.parquet")
        for method in dict.fromkeys(beside["method"].to_pylist()):
            chosen = _reported(beside.filter(pc.equal(beside["method"], method)), config.evaluate.part)
            without = missing_modality(method)
            if without is None:
                place = references.setdefault(method, _Tables(method, REFERENCE_GROUP))
            else:
                place = own.setdefault(without, _Tables(f"{cell.row.name}, {without} missing", cell.row.group))
            if chosen.num_rows:
                place.tables.setdefault(which, chosen)
    return [*(one for own in rows.values() for one in own.values()), *references.values()]


def _scores(row: _Tables, kind: str, patients: Mapping[str, str], draw: Draw | None) -> list[RunScores]:
    scores = []
    for (fold, seed), table in sorted(row.tables.items()):
        assert draw is not None
        cases = tuple(table["case_id"].to_pylist())
        value, drawn = score(kind, table, draw.of([patients[case] for case in cases]))
        scores.append(RunScores(fold, seed, cases, value, drawn))
    return scores


def _reported(table: pa.Table, part: str) -> pa.Table:
    """The reported cases by id."""
    return table.filter(pc.equal(table["part"], part)).sort_by("case_id")


def _patients(cases: Sequence[str], store: CohortStore) -> dict[str, str]:
    ids = sorted(set(cases))
    return dict(zip(ids, patient_column(pa.array(ids, pa.string()), store.cases).to_pylist(), strict=True))


def _table(run: RunFolder, name: str) -> pa.Table:
    file = run.evaluation / name
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            "the table cannot be read", file=run.place_of(file), found=str(error), fix="evaluate the run again"
        ) from error
