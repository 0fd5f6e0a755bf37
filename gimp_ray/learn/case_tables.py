"""What the tables of work over a cohort share: which cases stand in them, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record
from gimp_ray.errors import InputError
from gimp_ray.io.mirror import new_file
from gimp_ray.learn.scores import by_case
from gimp_ray.learn.targets import Target, known_parts
from gimp_ray.store import CohortStore

VECTORS = ("cls_pat", "mean_patch")


def parts_of(
    config: Config, store: CohortStore, parts: Sequence[str] | None, target: Target | None
) -> dict[str, str | None]:
    """The cases of some parts of the config's split, each with its part; all cases of the store, with None, for None.

    Args:
        config: its `split` is read.
        store: what the cases are in.
        parts: names of parts.
        target: cases of the parts whose truth it does not know are left out; None leaves none out.

    Raises:
        InputError: there is no case in these parts.
    """
    if parts is None:
        return dict.fromkeys(store.cases["case_id"].to_pylist())
    split = store.split(config.split.scheme, config.split.fold)
    cases: dict[str, tuple[str, ...]] = {name: getattr(split, name) for name in parts}
    if target is not None:
        cases = known_parts(target, cases)
    found: dict[str, str | None] = {case: name for name, ids in cases.items() for case in ids}
    if not found:
        raise InputError(
            "no case to embed",
            file=store.path,
            found=f"parts {list(parts)} without a case whose truth is known",
            fix="choose other parts",
        )
    return found


def write_cases(out: str, records: Sequence[Record], part_of: Mapping[str, str | None], target: Target | None) -> None:
    """Write the table of some cases, sorted by id: case_id, part, label, the vectors that the records have, and with a
    target what of the truth its store has and the predictions.

    Args:
        out: Parquet file, here or in object storage.
        records: a case each: case_id, label, maybe cls_pat and mean_patch, and with a target predictions.
        part_of: part of each case.
        target: None of a model that predicts nothing.
    """
    ordered = by_case(list(records))
    ids = [record["case_id"] for record in ordered]
    columns: dict[str, Any] = {
        "case_id": pa.array(ids, pa.string()),
        "part": pa.array([part_of[case] for case in ids], pa.string()),
        "label": pa.array([record["label"] for record in ordered], pa.string()),
    }
    columns |= {name: _vectors([record[name] for record in ordered]) for name in VECTORS if name in ordered[0]}
    if target is not None:
        columns |= target.truths(ids)
        predictions = np.array([record["predictions"] for record in ordered], np.float64)
        columns |= {name: pa.array(predictions[:, number]) for number, name in enumerate(target.columns)}
    with new_file(out) as aside:
        pq.write_table(pa.table(columns), aside)


def _vectors(rows: Sequence[NDArray[Any]]) -> pa.FixedSizeListArray:
    """Vectors of one width as a float32 column."""
    flat = np.concatenate(rows).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(rows[0]))
