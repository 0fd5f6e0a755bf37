"""The tables of an evaluation: cases with truth and predictions from `embeddings.parquet`, predictions of methods to
Parquet.

Columns by kind of target, after case_id, part and label: a class, `predicted` and prob_<class>; labels, true_<label>
and prob_<label>; survival, time, event and risk, with outlives_bin_<k> of a discrete-time model. Left out: figures
(`scoring.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray.evaluation import Truth, encode_labels
from gimp_ray.learn.targets import Target
from gimp_ray.runs.folder import RunFolder, whole_file


@dataclass(frozen=True, eq=False)
class Cases:
    """The embedded cases whose truth is known, in the order of the table. N cases.

    Attributes:
        ids: case ids.
        parts: train, val or test of each.
        columns: label, and what else is true of them, as the tables have it.
        truth: the same for the figures.
        predictions: (N, P), columns as the target's.
        mean_patch: (N, E), None in a run without patches.
        cls_pat: (N, F), None of a method that has none.
    """

    ids: list[str]
    parts: list[str]
    columns: pa.Table
    truth: Truth
    predictions: NDArray[np.float64]
    mean_patch: NDArray[np.float64] | None
    cls_pat: NDArray[np.float32] | None

    def of_part(self, part: str) -> list[int]:
        """Rows of a part, sorted by case id."""
        return sorted((row for row, where in enumerate(self.parts) if where == part), key=lambda row: self.ids[row])


@dataclass(frozen=True, eq=False)
class Row:
    """Predictions of one method: (n, P), rows as `case_ids`; NaN where it has none."""

    method: str
    case_ids: list[str]
    predictions: NDArray[np.float64]

    def of(self, case_ids: list[str]) -> NDArray[np.float64]:
        """Predictions of some cases, in their order."""
        place = {case: row for row, case in enumerate(self.case_ids)}
        return self.predictions[[place[case] for case in case_ids]]


def read_cases(run: RunFolder, target: Target) -> Cases:
    """The cases of `embeddings.parquet` whose truth is known."""
    return cases_of(pq.read_table(run.evaluation / "embeddings.parquet"), target)


def cases_of(table: pa.Table, target: Target) -> Cases:
    """The cases of a table of embeddings, with predictions, whose truth is known."""
    known = set(target.known(table["case_id"].to_pylist()))
    table = table.filter(pa.array([case in known for case in table["case_id"].to_pylist()], pa.bool_()))
    ids = table["case_id"].to_pylist()
    truths = target.truths(ids)
    columns = {"label": table["label"]} | {name: pa.chunked_array([value]) for name, value in truths.items()}
    return Cases(
        ids,
        table["part"].to_pylist(),
        pa.table(columns),
        _truth(target, truths),
        np.stack([table[name].to_numpy() for name in target.columns], axis=1).astype(np.float64),
        _vectors(table, "mean_patch", np.float64),
        _vectors(table, "cls_pat", np.float32),
    )


def write_predictions(
    run: RunFolder, name: str, target: Target, cases: Cases, rows: list[Row], named: bool = True
) -> None:
    """Write the predictions of methods below one another; `named` adds the column `method`."""
    place = {case: row for row, case in enumerate(cases.ids)}
    tables = []
    for row in rows:
        where = [place[case] for case in row.case_ids]
        columns: dict[str, Any] = {"method": [row.method] * len(where)} if named else {}
        columns |= {"case_id": row.case_ids, "part": [cases.parts[at] for at in where]}
        truths = cases.columns.take(pa.array(where, pa.int64()))
        columns |= {column: truths[column] for column in truths.column_names}
        if target.kind == "class":
            columns["predicted"] = [target.outputs[best] for best in row.predictions.argmax(axis=1)]
        # what only the trained model knows, such as the probability to outlive a bin, is null for the others
        wide = np.full((len(where), len(target.columns)), np.nan)
        wide[:, : row.predictions.shape[1]] = row.predictions
        columns |= {c: pa.array(wide[:, p], from_pandas=True) for p, c in enumerate(target.columns)}
        tables.append(pa.table(columns))
    with whole_file(run.evaluation / name) as aside:
        pq.write_table(pa.concat_tables(tables), aside)


def _truth(target: Target, truths: dict[str, pa.Array]) -> Truth:
    if target.kind == "class":
        labels = encode_labels(truths["label"].to_pylist(), target.outputs)
        return Truth(target.kind, target.outputs, {"label": labels})
    if target.kind == "survival":
        time = truths["time"].to_numpy(zero_copy_only=False).astype(np.float64)
        return Truth(target.kind, (), {"time": time, "event": _bools(truths["event"])})
    said = [truths[f"true_{name}"] for name in target.outputs]
    known = np.stack([value.is_valid().to_numpy(zero_copy_only=False) for value in said], axis=1)
    truth = np.stack([_bools(value.fill_null(False)) for value in said], axis=1)
    return Truth(target.kind, target.outputs, {"truth": truth, "known": known})


def _bools(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def _vectors(table: pa.Table, column: str, kind: type[np.floating[Any]]) -> NDArray[Any] | None:
    if column not in table.column_names:
        return None
    lists = table[column].combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), kind).reshape(len(lists), -1)
