"""One class a case: the stored label, or another column of the case table. Cross-entropy; the softmax is predicted.

Shape suffixes: B batch, C classes, N cases of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gimp_ray.engine.protocol import Record, Tensors
from gimp_ray.errors import InputError
from gimp_ray.evaluation.metrics import absent_reason
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.scores import by_case, class_figures, picking_figure, selection_score
from gimp_ray.learn.target_columns import case_rows, classes, has_columns
from gimp_ray.store import CohortStore


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """See `gimp_ray.learn.targets.Target`.

    Attributes:
        store: whose cases it knows.
        column: of the case table.
        outputs: the C classes.
        names: (N,) class of every case of the store, null where it is not known.
        codes: (N,) its number, -1 where it is not known or none of `outputs`.
    """

    store: CohortStore
    column: str
    outputs: tuple[str, ...]
    names: pa.Array
    codes: NDArray[np.int64]
    kind: str = "class"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"prob_{name}" for name in self.outputs)

    def known(self, case_ids: Sequence[str]) -> list[str]:
        codes = self.codes[case_rows(self.store, case_ids)]
        return [case for case, code in zip(case_ids, codes, strict=True) if code >= 0]

    def arrays(self, case_ids: Sequence[str]) -> Arrays:
        return {"target": self.codes[case_rows(self.store, case_ids)]}

    def classes_of(self, case_ids: Sequence[str]) -> NDArray[np.int64] | None:
        return self.codes[case_rows(self.store, case_ids)]

    def truths(self, case_ids: Sequence[str]) -> dict[str, pa.Array]:
        return {"label": self.names.take(pa.array(case_rows(self.store, case_ids)))}

    def loss(self, logits_BC: Tensor, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        accuracy = (logits_BC.argmax(dim=-1) == batch["target"]).float().mean()
        return F.cross_entropy(logits_BC.float(), batch["target"]), {"accuracy": accuracy}

    def predict(self, logits_BC: Tensor) -> Tensor:
        return torch.softmax(logits_BC.double(), dim=-1)

    def record(self, case_id: str, predictions_C: Tensor) -> Record:
        code = int(self.codes[case_rows(self.store, [case_id])[0]])
        return {"case_id": case_id, "label": code, "predictions": predictions_C.cpu().tolist()}

    def figures(self, records: list[Record]) -> dict[str, float]:
        ordered = by_case(records)
        labels = np.array([record["label"] for record in ordered])
        return class_figures(labels, np.array([record["predictions"] for record in ordered]))

    def selected(self, case_ids: Sequence[str], select: str) -> tuple[str, str | None]:
        codes = self.codes[case_rows(self.store, case_ids)]
        reason = absent_reason(np.bincount(codes[codes >= 0], minlength=len(self.outputs)), self.outputs)
        undefined = {} if reason is None else {"auroc": f"validation has {reason}"}
        return picking_figure(self.kind, select, undefined)

    def score(self, figures: dict[str, float], select: str) -> list[float]:
        return selection_score(figures, select, self.kind)

    def check(self, training_cases: Sequence[str], cases_per_step: int) -> list[str]:
        found = np.unique(self.codes[case_rows(self.store, training_cases)])
        if len(found) < 2:
            raise InputError(
                f"the training cases are all of one class of '{self.column}'",
                file=self.store.path,
                expected="training cases of at least two classes",
                found=", ".join(self.outputs[code] for code in found) or "none",
                fix="choose another split or target",
            )
        absent = [name for code, name in enumerate(self.outputs) if code not in found]
        return [f"no training case is of class {', '.join(absent)}"] if absent else []

    def card(self) -> dict[str, Any]:
        return {"kind": self.kind, "column": self.column, "outputs": list(self.outputs), "columns": list(self.columns)}


def class_target(store: CohortStore, column: str = "label") -> ClassTarget:
    """A class of the case table, by default the label.

    Raises:
        InputError: the column is absent, its values are no classes, or there are fewer than two of them.
    """
    names_N = classes(store, column, "target.columns")
    found = store.classes if column == "label" else tuple(sorted(pc.unique(names_N).drop_null().to_pylist()))
    if len(found) < 2 and column != "label":
        raise InputError(
            f"column '{column}' has fewer than two classes",
            file=f"{store.path}/cases.parquet",
            expected="at least two",
            found=", ".join(found) or "no known value",
            fix="set target.columns to another column",
        )
    return _target(store, column, found, names_N)


def saved_class_target(card: dict[str, Any], store: CohortStore) -> ClassTarget:
    """The target of a card; a store without its column knows of no case."""
    column, outputs = card["column"], tuple(card["outputs"])
    if has_columns(store, [column]):
        return _target(store, column, outputs, classes(store, column, "target.columns"))
    return _target(store, column, outputs, pa.nulls(store.cases.num_rows, pa.string()))


def _target(store: CohortStore, column: str, outputs: tuple[str, ...], names_N: pa.Array) -> ClassTarget:
    codes = pc.index_in(names_N, pa.array(outputs, pa.string()), skip_nulls=True).fill_null(-1)
    return ClassTarget(store, column, outputs, names_N, codes.to_numpy(zero_copy_only=False).astype(np.int64))
