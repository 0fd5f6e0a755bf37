"""What the tables of work over a cohort share: which cases stand in them, and columns of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gimp_ray.cohort import CohortStore
from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.tasks.targets import Target, known_parts


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


def vectors(rows: Sequence[NDArray[Any]]) -> pa.FixedSizeListArray:
    """Vectors of one width as a float32 column."""
    flat = np.concatenate(rows).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(rows[0]))
