"""Survival: the time to an event, or to the last follow-up of a case that was censored.

Two ways to train. `nll`, the default: hazards in K time bins whose edges hold equal numbers of the training cases'
events (Zadeh & Schmid 2020, as in MCAT and PORPOISE); a sum over cases, so mini-batches of any size and any number of
workers do. `cox`: one log-risk and the partial likelihood of the mini-batches of all workers together, whose risk sets
are those cases and no others. Both predict a risk, higher = earlier event; `nll` also the probability to outlive each
bin.

Shape suffixes: B batch, K time bins, O outputs, N cases of the store, n validation cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimp_ray.engine.protocol import Record, Tensors
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.evaluation.survival import concordance_index
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.scores import by_case, picking_figure, selection_score
from gimp_ray.learn.target_columns import case_rows, has_columns, numbers, yes_or_no
from gimp_ray.nn.losses import gather_workers
from gimp_ray.nn.survival import cox_loss, discrete_time_nll, discrete_time_risk, fit_time_edges, time_bin
from gimp_ray.store import CohortStore

FEW_AT_RISK, FEW_EVENTS = 8, 2.0


@dataclass(frozen=True, eq=False)
class SurvivalTarget:
    """See `gimp_ray.learn.targets.Target`.

    Attributes:
        store: whose cases it knows.
        time, event: columns of the case table.
        edges: inner edges of the time bins, in the unit of `time`; None for Cox.
        times, events, followed: (N,) the truth of every case; the first two say nothing where the last is False.
    """

    store: CohortStore
    time: str
    event: str
    edges: tuple[float, ...] | None
    times: NDArray[np.float64]
    events: NDArray[np.bool_]
    followed: NDArray[np.bool_]
    kind: str = "survival"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("risk",) if self.edges is None else tuple(f"bin_{k + 1}" for k in range(len(self.edges) + 1))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("risk",) if self.edges is None else ("risk", *(f"outlives_{name}" for name in self.outputs))

    def known(self, case_ids: Sequence[str]) -> list[str]:
        known = self.followed[case_rows(self.store, case_ids)]
        return [case for case, is_known in zip(case_ids, known, strict=True) if is_known]

    def arrays(self, case_ids: Sequence[str]) -> Arrays:
        rows = case_rows(self.store, case_ids)
        time_B = np.where(self.followed[rows], self.times[rows], 0.0)
        return {
            "target": self._bins(time_B),
            "target_time": time_B,
            "target_event": self.events[rows],
            "target_known": self.followed[rows],
        }

    def classes_of(self, case_ids: Sequence[str]) -> NDArray[np.int64] | None:
        return None

    def truths(self, case_ids: Sequence[str]) -> dict[str, pa.Array]:
        rows = case_rows(self.store, case_ids)
        unknown = ~self.followed[rows]
        return {
            "time": pa.array(self.times[rows], pa.float64(), mask=unknown),
            "event": pa.array(self.events[rows], pa.bool_(), mask=unknown),
        }

    def loss(self, logits_BO: Tensor, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        known_B, event_B = batch["target_known"], batch["target_event"]
        if self.edges is not None:
            return discrete_time_nll(logits_BO, batch["target"], event_B, known_B), {}
        gathered = gather_workers(logits_BO[:, 0].float(), batch["target_time"], event_B, known_B)
        theta_N, time_N, event_N, known_N = gathered
        return cox_loss(theta_N, time_N, event_N, known_N), {}

    def predict(self, logits_BO: Tensor) -> Tensor:
        logits_BO = logits_BO.double()
        if self.edges is None:
            return logits_BO
        outlives_BK = torch.cumprod(torch.sigmoid(-logits_BO), dim=1)
        return torch.cat([discrete_time_risk(logits_BO)[:, None], outlives_BK], dim=1)

    def record(self, case_id: str, predictions_P: Tensor) -> Record:
        row = case_rows(self.store, [case_id])[0]
        return {
            "case_id": case_id,
            "time": float(self.times[row]),
            "event": bool(self.events[row]),
            "predictions": predictions_P.cpu().tolist(),
        }

    def figures(self, records: list[Record]) -> dict[str, float]:
        ordered = by_case(records)
        time_n = np.array([record["time"] for record in ordered])
        event_n = np.array([record["event"] for record in ordered], np.bool_)
        predictions_nP = np.array([record["predictions"] for record in ordered])
        figures = {"loss": self._loss_of(time_n, event_n, predictions_nP)}
        index = concordance_index(time_n, event_n, predictions_nP[:, 0])["c_index"]
        return figures if index is None else figures | {"cindex": index}

    def selected(self, case_ids: Sequence[str], select: str) -> tuple[str, str | None]:
        rows = case_rows(self.store, case_ids)
        found = concordance_index(self.times[rows], self.events[rows], np.zeros(len(rows)))
        undefined = {} if found["c_index"] is not None else {"cindex": f"in validation {found['reason']}"}
        return picking_figure(self.kind, select, undefined)

    def score(self, figures: dict[str, float], select: str) -> list[float]:
        return selection_score(figures, select, self.kind)

    def check(self, training_cases: Sequence[str], cases_per_step: int) -> list[str]:
        events = int(self.events[case_rows(self.store, training_cases)].sum())
        if not events:
            raise InputError(
                "no event was seen in the training cases",
                file=self.store.path,
                expected=f"training cases with '{self.event}' true",
                found=f"{len(training_cases)} censored cases",
                fix="choose another split, or target.event",
            )
        if self.edges is not None:
            return []
        if cases_per_step < 2:
            raise ConfigError(
                "Cox's loss of a single case is always zero",
                expected="at least 2 cases in the mini-batches of all workers",
                found=f"{cases_per_step}",
                fix="raise finetune.batch_size (of a compared method method.batch_size) or train.workers, or set "
                "target.loss: nll",
            )
        expected = cases_per_step * events / len(training_cases)
        if cases_per_step >= FEW_AT_RISK and expected >= FEW_EVENTS:
            return []
        return [
            f"Cox's loss compares the {cases_per_step} cases of a step, of which {expected:.1f} have an event on "
            "average: little to learn from. A larger finetune.batch_size, more workers or target.loss: nll give more"
        ]

    def card(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "time": self.time,
            "event": self.event,
            "loss": "cox" if self.edges is None else "nll",
            "time_edges": None if self.edges is None else list(self.edges),
            "outputs": list(self.outputs),
            "columns": list(self.columns),
        }

    def _bins(self, time_B: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.edges is None:
            return np.zeros(len(time_B), np.int64)
        edges_K = torch.tensor(self.edges, dtype=torch.float64)
        return time_bin(torch.from_numpy(time_B), edges_K).numpy()

    def _loss_of(
        self, time_n: NDArray[np.float64], event_n: NDArray[np.bool_], predictions_nP: NDArray[np.float64]
    ) -> float:
        """The training loss of all validation cases at once, from what was predicted."""
        if self.edges is None:
            risk_n = torch.from_numpy(predictions_nP[:, 0])
            return float(cox_loss(risk_n, torch.from_numpy(time_n), torch.from_numpy(event_n)))
        rows, bin_n = np.arange(len(time_n)), self._bins(time_n)
        outlives_nK = predictions_nP[:, 1:]
        after_n = outlives_nK[rows, bin_n]
        before_n = np.where(bin_n > 0, outlives_nK[rows, np.maximum(bin_n - 1, 0)], 1.0)
        likelihood_n = np.where(event_n, before_n - after_n, after_n)
        return float(-np.log(np.maximum(likelihood_n, 1e-12)).mean())


def survival_target(
    store: CohortStore, time: str, event: str, loss: str, bins: int, training_cases: Sequence[str]
) -> SurvivalTarget:
    """Follow-up of the case table; the edges of the time bins are fitted on the training cases alone.

    Args:
        store: whose cases it knows.
        time: column with the time to the event or the last follow-up, any unit.
        event: column that says whether the event was seen.
        loss: `nll` or `cox`.
        bins: K, for `nll`.
        training_cases: cases to fit on; those without a known follow-up are left out.

    Raises:
        InputError: a column is absent or of the wrong type, a time is below zero, or the training cases have too few
            events for the bins.
    """
    time_N, event_N, known_N = _truth(store, time, event)
    if loss == "cox":
        return SurvivalTarget(store, time, event, None, time_N, event_N, known_N)
    rows = case_rows(store, training_cases)
    rows = rows[known_N[rows]]
    try:
        different = len(np.unique(time_N[rows][event_N[rows]]))
        if different < bins:
            raise ValueError(f"{different} different times of events")
        edges_K = fit_time_edges(torch.from_numpy(time_N[rows]), torch.from_numpy(event_N[rows]), bins)
    except ValueError as error:
        raise InputError(
            "the training cases do not allow the time bins",
            file=store.path,
            expected=f"events at enough different times for {bins} bins",
            found=str(error),
            fix="lower target.bins, set target.loss: cox, or choose another split",
        ) from None
    return SurvivalTarget(store, time, event, tuple(edges_K.tolist()), time_N, event_N, known_N)


def saved_survival_target(card: dict[str, Any], store: CohortStore) -> SurvivalTarget:
    """The target of a card; a store without its columns knows of no case."""
    time, event, edges = card["time"], card["event"], card["time_edges"]
    edges = None if edges is None else tuple(edges)
    if has_columns(store, [time, event]):
        return SurvivalTarget(store, time, event, edges, *_truth(store, time, event))
    cases = store.cases.num_rows
    nothing_N = np.zeros(cases, np.bool_)
    return SurvivalTarget(store, time, event, edges, np.full(cases, np.nan), nothing_N, nothing_N)


def _truth(
    store: CohortStore, time: str, event: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    time_N = numbers(store, time, "target.time")
    event_N, event_known_N = yes_or_no(store, event, "target.event")
    if (time_N < 0).any():
        row = int((time_N < 0).argmax())
        raise InputError(
            f"a time in column '{time}' is below zero",
            file=f"{store.path}/cases.parquet",
            case=store.cases["case_id"][row].as_py(),
            expected="0 or more",
            found=f"{time_N[row]:g}",
            fix="correct the case table and ingest again; an unknown time is an empty field",
        )
    known_N = np.isfinite(time_N) & event_known_N
    return time_N, event_N & known_N, known_N
