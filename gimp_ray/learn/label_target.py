"""Several labels a case, each yes or no, such as mutations: binary cross-entropy a label, unknown ones left out of it.

A case with one known label is trained on. The loss is the mean over all B x P entries, of which the unknown ones give
nothing: every known entry then weighs the same, whatever stands beside it and on whichever worker.

Shape suffixes: B batch, P labels, N cases of the store, n validation cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gimp_ray.engine.protocol import Record, Tensors
from gimp_ray.errors import InputError
from gimp_ray.evaluation.metrics import Truth, label_metrics, one_sided
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.scores import by_case, picking_figure, selection_score
from gimp_ray.learn.target_columns import case_rows, has_columns, yes_or_no
from gimp_ray.store import CohortStore

# fewer, and the spread inside a class of genes' scores says nothing
CASES_A_CLASS = 3


@dataclass(frozen=True, eq=False)
class LabelTarget:
    """See `gimp_ray.learn.targets.Target`.

    Attributes:
        store: whose cases it knows.
        outputs: the P labels, columns of the case table.
        truth: (N, P) bool.
        is_known: (N, P) bool; where it is False, `truth` says nothing.
    """

    store: CohortStore
    outputs: tuple[str, ...]
    truth: NDArray[np.bool_]
    is_known: NDArray[np.bool_]
    kind: str = "labels"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"prob_{name}" for name in self.outputs)

    def known(self, case_ids: Sequence[str]) -> list[str]:
        known_BP = self.is_known[case_rows(self.store, case_ids)]
        return [case for case, known_P in zip(case_ids, known_BP, strict=True) if known_P.any()]

    def arrays(self, case_ids: Sequence[str]) -> Arrays:
        rows = case_rows(self.store, case_ids)
        return {"target": self.truth[rows].astype(np.float32), "target_known": self.is_known[rows]}

    def classes_of(self, case_ids: Sequence[str]) -> NDArray[np.int64] | None:
        rows = case_rows(self.store, case_ids)
        # cases with the same labels are a class; not known is a value of its own
        states_BP = np.where(self.is_known[rows], self.truth[rows].astype(np.int64), -1)
        found, codes = np.unique(states_BP, axis=0, return_inverse=True)
        return codes.reshape(-1).astype(np.int64) if len(found) * CASES_A_CLASS <= len(rows) else None

    def truths(self, case_ids: Sequence[str]) -> dict[str, pa.Array]:
        rows = case_rows(self.store, case_ids)
        return {
            f"true_{name}": pa.array(self.truth[rows, p], pa.bool_(), mask=~self.is_known[rows, p])
            for p, name in enumerate(self.outputs)
        }

    def loss(self, logits_BP: Tensor, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        known_BP, truth_BP = batch["target_known"], batch["target"]
        entropy_BP = F.binary_cross_entropy_with_logits(logits_BP.float(), truth_BP, reduction="none")
        right_BP = ((logits_BP > 0) == (truth_BP > 0.5)) & known_BP
        accuracy = right_BP.sum() / known_BP.sum().clamp_min(1)
        return (entropy_BP * known_BP).mean(), {"accuracy": accuracy}

    def predict(self, logits_BP: Tensor) -> Tensor:
        return torch.sigmoid(logits_BP.double())

    def record(self, case_id: str, predictions_P: Tensor) -> Record:
        row = int(case_rows(self.store, [case_id])[0])
        said = zip(self.truth[row].tolist(), self.is_known[row].tolist(), strict=True)
        truth = [value if known else None for value, known in said]
        return {"case_id": case_id, "truth": truth, "predictions": predictions_P.cpu().tolist()}

    def figures(self, records: list[Record]) -> dict[str, float]:
        ordered = by_case(records)
        known_nP = np.array([[value is not None for value in record["truth"]] for record in ordered])
        truth_nP = np.array([[bool(value) for value in record["truth"]] for record in ordered])
        p_nP = np.array([record["predictions"] for record in ordered])
        right_nP = np.clip(np.where(truth_nP, p_nP, 1 - p_nP), 1e-12, 1)
        macro = label_metrics(Truth("labels", self.outputs, {"truth": truth_nP, "known": known_nP}), p_nP)["auroc"]
        figures = {"loss": float(-np.log(right_nP[known_nP]).mean())}
        return figures if macro is None else figures | {"auroc": macro}

    def selected(self, case_ids: Sequence[str], select: str) -> tuple[str, str | None]:
        rows = case_rows(self.store, case_ids)
        reasons = one_sided(self.truth[rows], self.is_known[rows], self.outputs)
        none = {"auroc": "no label has cases of both kinds in validation"} if len(reasons) == len(self.outputs) else {}
        return picking_figure(self.kind, select, none)

    def score(self, figures: dict[str, float], select: str) -> list[float]:
        return selection_score(figures, select, self.kind)

    def check(self, training_cases: Sequence[str], cases_per_step: int) -> list[str]:
        rows = case_rows(self.store, training_cases)
        reasons = one_sided(self.truth[rows], self.is_known[rows], self.outputs)
        if reasons:
            raise InputError(
                "a label has one value in all training cases",
                file=self.store.path,
                expected="training cases with and without each label",
                found="; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
                fix="take the label out of target.columns, or choose another split",
            )
        return []

    def card(self) -> dict[str, Any]:
        return {"kind": self.kind, "outputs": list(self.outputs), "columns": list(self.columns)}


def label_target(store: CohortStore, labels: Sequence[str]) -> LabelTarget:
    """Labels of the case table.

    Raises:
        InputError: a column is absent, or holds something other than yes and no.
    """
    read = [yes_or_no(store, name, "target.columns") for name in labels]
    return LabelTarget(
        store,
        tuple(labels),
        np.stack([truth for truth, _ in read], axis=1),
        np.stack([known for _, known in read], axis=1),
    )


def saved_label_target(card: dict[str, Any], store: CohortStore) -> LabelTarget:
    """The target of a card; a store without all its columns knows of no case."""
    outputs = tuple(card["outputs"])
    if has_columns(store, outputs):
        return label_target(store, outputs)
    nothing_NP = np.zeros((store.cases.num_rows, len(outputs)), np.bool_)
    return LabelTarget(store, outputs, nothing_NP, nothing_NP)
