"""The epoch plan: which window of which case stands in which mini-batch, and with which mask seed.

A plan is a pure function of (seed, epoch, cohort index), so shuffling, class balance, resume in the middle of an epoch
and a change of the number of workers are arithmetic on small arrays. An epoch is a row of M mini-batches, whatever
the number of workers W; a step hands the next W of them to the ranks. A position counts the mini-batches of a stage
that are done, over all epochs. Any number of workers can go on from any position, so every mini-batch is trained on
exactly once however often that number changes. In an epoch's last step some ranks may have nothing left: they repeat
a case with share 0, which no gradient shows.

Class-balanced epochs: every class has a stream, its cases in a fresh permutation each epoch, repeated end to end. A
mini-batch takes the next K of each of its P classes. Because one permutation is repeated, any K consecutive cases of
a class are different patients. Every class fills as many slots of an epoch as the largest class has cases: a case of
that class is seen once, of a class of n cases floor(s/n) or ceil(s/n) times for its s slots. Natural epochs: every case
once, classes spread evenly. Where cases do not fill the last mini-batches, those are smaller.

Draws depend on (seed, epoch, class, position in the class's stream) alone: two workers with K cases a class see in one
step the same windows, under the same masks, as one worker with 2 K.

Left out: reading (`windows.py`), Ray (`batches.py`). Plans of 10^6 slides are numpy arrays and their ids Arrow's, never
Python lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gimp_ray.errors import InputError

if TYPE_CHECKING:
    from gimp_ray.store import CohortStore

Ints = NDArray[np.int64]
_STREAM, _PLACE, _CLASSES, _NATURAL = 1, 2, 3, 4


class Ids:
    """(n,) ids as bytes of text, where a numpy array has 4 bytes a letter of the longest id: a quarter of the memory.

    Used like such an array: an integer gives an id, a slice or an array of numbers or booleans a numpy array of them,
    and numpy's functions take it as an array.
    """

    __slots__ = ("_values",)

    def __init__(self, values: pa.Array | Sequence[str]) -> None:
        self._values = values if isinstance(values, pa.Array) else pa.array(list(values), pa.string())

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, key: slice | NDArray[np.integer[Any]] | NDArray[np.bool_]) -> NDArray[np.str_]: ...
    def __getitem__(self, key: Any) -> str | NDArray[np.str_]:
        if isinstance(key, (int, np.integer)):
            return str(self._values[int(key)].as_py())
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows)
        return _numpy(self._values.take(pa.array(rows, pa.int64())))

    def __iter__(self) -> Iterator[str]:
        return (value.as_py() for value in self._values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return _numpy(self._values) if dtype is None else _numpy(self._values).astype(dtype)

    def __repr__(self) -> str:
        return f"Ids({len(self):,})"

    def tolist(self) -> list[str]:
        """All of them as Python strings."""
        ids: list[str] = self._values.to_pylist()
        return ids


@dataclass(frozen=True, eq=False)
class CohortIndex:
    """The small table a plan is made from: cases, their classes and their slides, all sorted by id.

    Attributes:
        case_ids: (cases,) ids.
        labels: (cases,) class number of each case.
        slide_ids: (slides,) ids, grouped by case.
        first_slide: (cases + 1,) the slides of case i are first_slide[i] .. first_slide[i + 1].
        slide_patches: (slides,) patches of each slide.
    """

    case_ids: Ids | NDArray[np.str_]
    labels: Ints
    slide_ids: Ids | NDArray[np.str_]
    first_slide: Ints
    slide_patches: Ints

    @property
    def num_cases(self) -> int:
        return len(self.case_ids)

    def class_cases(self) -> list[Ints]:
        """Case numbers of each class that has cases, by class number."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    def case_patches(self) -> Ints:
        """(cases,) patches of each case over all its slides."""
        ends = np.concatenate([[0], np.cumsum(self.slide_patches)])
        return ends[self.first_slide[1:]] - ends[self.first_slide[:-1]]


@dataclass(frozen=True)
class Batching:
    """How mini-batches are composed.

    Attributes:
        classes: P, classes in a mini-batch (class-balanced epochs).
        cases_per_class: K.
        balance: `classes` (P x K) or `natural` (every case once).
        size: cases in a mini-batch of a natural epoch.
        window: L, patches a window; 0 when whole bags are read.
        accumulate: mini-batches of a rank per optimiser step; the last one of an epoch may have fewer.
        pairs: whether a class-balanced mini-batch must hold two cases of a class (triplets need them).
    """

    classes: int = 2
    cases_per_class: int = 4
    balance: str = "classes"
    size: int = 8
    window: int = 0
    accumulate: int = 1
    pairs: bool = True


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The mini-batches of an epoch, one after another: number m has the slots first[m] .. first[m + 1].

    Attributes:
        first: (M + 1,) first slot of each mini-batch.
        case: (slots,) case number in the index.
        slide: (slots,) slide number in the index; -1 where whole bags are read.
        start: (slots,) first patch of the window.
        mask_seed: (slots,) seed of the window's mask.
    """

    first: Ints
    case: Ints
    slide: Ints
    start: Ints
    mask_seed: NDArray[np.uint64]

    @property
    def mini_batches(self) -> int:
        """M."""
        return len(self.first) - 1


@dataclass(frozen=True, eq=False)
class Row:
    """One rank's mini-batch of one step: what Ray Data streams.

    Attributes:
        epoch: counted from 0.
        mini_batch: its number in the epoch; those from M on are of ranks that have nothing left.
        rank: who trains on it.
        begin: position of the stage before this step: mini-batches done, over all epochs and ranks.
        end: position after it.
        share: what its mean loss is multiplied with, so that gradients averaged over ranks and summed over the steps
            of an optimiser step are those of the mean over that step's cases; 0 where the rank has nothing left.
        before: share of the stage's cases that were seen before its optimiser step.
        after: share of them that are seen with it.
        closes: whether the optimiser step ends with it.
        case, slide, start, mask_seed: (B,) each, as in `EpochPlan`.
    """

    epoch: int
    mini_batch: int
    rank: int
    begin: int
    end: int
    share: float
    before: float
    after: float
    closes: bool
    case: Ints
    slide: Ints
    start: Ints
    mask_seed: NDArray[np.uint64]


def index_cases(store: CohortStore, case_ids: Sequence[str]) -> CohortIndex:
    """The index of some of a store's cases; class numbers follow `store.classes`.

    Raises:
        InputError: a case is not in the store, or none was given.
    """
    if not len(case_ids):
        raise InputError("no case to train on", file=store.path, fix="choose another split or fold")
    wanted = pa.array(list(case_ids), pa.string())
    found = pc.index_in(wanted, store.cases["case_id"])
    if found.null_count:
        raise InputError(
            "a case of the split is not in the store",
            file=store.path,
            case=str(pc.min(wanted.filter(pc.is_null(found)))),
            fix="make the split anew",
        )
    # the store's cases are sorted by id
    rows = np.sort(found.to_numpy()).astype(np.int64)
    labels = pc.index_in(store.cases["label"].take(pa.array(rows)), pa.array(store.classes, pa.string()))
    if labels.null_count:
        without = store.cases["case_id"].take(pa.array(rows)).filter(pc.is_null(labels)).to_pylist()
        raise InputError(
            "cases have no label",
            file=store.path,
            case=", ".join(without[:10]),
            expected=f"a label of every case: {', '.join(store.classes)}",
            found=f"{len(without):,} of {len(rows):,} cases without one",
            fix="use the cases of `CohortStore.complete_cases`, or ingest again with their labels",
        )
    slide_ids, first, patches = _slides_of(store, rows)
    chosen = _one(store.cases["case_id"].take(pa.array(rows)))
    return CohortIndex(Ids(chosen), labels.to_numpy().astype(np.int64), slide_ids, first, patches)


def _slides_of(store: CohortStore, rows: Ints) -> tuple[Ids, Ints, Ints]:
    """Slides of the cases in `rows` of the store's, grouped by case and sorted by id within one."""
    slides = store.slide_sizes
    if not slides.num_rows:
        empty = np.zeros(0, dtype=np.int64)
        return Ids([]), np.zeros(len(rows) + 1, dtype=np.int64), empty
    owner = pc.index_in(slides["case_id"], store.cases["case_id"]).fill_null(-1).to_numpy().astype(np.int64)
    kept = np.flatnonzero(np.isin(owner, rows))
    # the store's slides are sorted by id, and a stable sort by case leaves them so
    order = kept[np.argsort(owner[kept], kind="stable")]
    first = np.concatenate([np.searchsorted(owner[order], rows), [len(order)]])
    return (
        Ids(_one(slides["slide_id"].take(pa.array(order)))),
        first.astype(np.int64),
        (slides["n_patches"].to_numpy()[order].astype(np.int64)),
    )


def effective(batching: Batching, index: CohortIndex) -> Batching:
    """The batching a cohort allows: no more classes, or cases of a class, than there are.

    Raises:
        InputError: class-balanced mini-batches were asked for and some class has no two cases.
    """
    if batching.balance == "natural":
        return replace(batching, size=max(1, min(batching.size, index.num_cases)))
    sizes = [len(cases) for cases in index.class_cases()]
    smallest = min(sizes)
    if batching.pairs and len(sizes) > 1 and smallest < 2:
        raise InputError(
            "a class has a single training case, so no triplet has a positive for it",
            case=str(index.case_ids[index.class_cases()[int(np.argmin(sizes))][0]]),
            expected="at least 2 training cases of every class",
            found=f"{smallest}",
            fix="choose another split, drop the class, or set batch.balance: natural",
        )
    return replace(
        batching, classes=min(batching.classes, len(sizes)), cases_per_class=min(batching.cases_per_class, smallest)
    )


def mini_batches(batching: Batching, index: CohortIndex) -> int:
    """M, mini-batches of an epoch over all ranks."""
    batching = effective(batching, index)
    if batching.balance == "natural":
        return -(-index.num_cases // batching.size)
    counts = [len(cases) for cases in index.class_cases()]
    return -(-(-(-max(counts) // batching.cases_per_class) * len(counts)) // batching.classes)


def epoch_plan(seed: int, epoch: int, index: CohortIndex, batching: Batching) -> EpochPlan:
    """The plan of one epoch; the same arguments always give the same plan."""
    batching = effective(batching, index)
    if batching.balance == "natural":
        first, case, place, mask_seed = _natural_slots(seed, epoch, index, batching.size)
    else:
        first, case, place, mask_seed = _balanced_slots(seed, epoch, index, batching)
    slide, start = _windows(case, place, index, batching.window)
    return EpochPlan(first, case, slide, start, mask_seed)


class Plan:
    """All the epochs of a stage as rows: small enough to send to any process, and the same in each of them.

    Args:
        seed: of the stage.
        epochs: how many.
        index: the cases.
        batching: how mini-batches are composed.
    """

    def __init__(self, seed: int, epochs: int, index: CohortIndex, batching: Batching) -> None:
        self.seed, self.epochs, self.index, self.batching = seed, epochs, index, batching
        self._last: tuple[int, EpochPlan] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return (Plan, (self.seed, self.epochs, self.index, self.batching))

    @cached_property
    def mini_batches(self) -> int:
        """M, mini-batches of an epoch over all ranks."""
        return mini_batches(self.batching, self.index)

    @property
    def positions(self) -> int:
        """Mini-batches of the stage over all epochs and ranks."""
        return self.epochs * self.mini_batches

    def steps(self, start: int, stop: int, world_size: int) -> int:
        """Steps of `world_size` ranks from one position to another; the later one is the end of an epoch."""
        inside = -start % self.mini_batches
        whole = (stop - start - inside) // self.mini_batches
        return -(-inside // world_size) + whole * -(-self.mini_batches // world_size)

    def updates(self, start: int, stop: int, world_size: int) -> int:
        """Optimiser steps from one position to another; the later one is the end of an epoch."""
        return self.steps(start, stop, world_size * self.batching.accumulate)

    def row(self, step: int, rank: int, world_size: int, start: int = 0) -> Row:
        """A rank's mini-batch of a step, counted from position `start`, where an optimiser step begins."""
        epoch, base, step = self._place(step, world_size, start)
        plan, m = self._epoch(epoch), self.mini_batches
        at = base + step * world_size
        number = at + rank
        idle = number >= m
        slots = slice(plan.first[0], plan.first[0] + 1) if idle else slice(plan.first[number], plan.first[number + 1])
        taken = world_size * self.batching.accumulate
        # of the optimiser step it belongs to
        low = at - (at - base) % taken
        high = min(low + taken, m)
        cases = 0 if idle else int(plan.first[number + 1] - plan.first[number])
        end = min(at + world_size, m)
        return Row(
            epoch=epoch,
            mini_batch=number,
            rank=rank,
            begin=epoch * m + at,
            end=epoch * m + end,
            share=cases * world_size / int(plan.first[high] - plan.first[low]),
            before=self._seen(epoch, plan, low),
            after=self._seen(epoch, plan, high),
            closes=end == high,
            case=plan.case[slots],
            slide=plan.slide[slots],
            start=plan.start[slots],
            mask_seed=plan.mask_seed[slots],
        )

    def _seen(self, epoch: int, plan: EpochPlan, number: int) -> float:
        of_epoch = int(plan.first[-1])
        return (epoch * of_epoch + int(plan.first[number])) / (self.epochs * of_epoch)

    def _place(self, step: int, world_size: int, start: int) -> tuple[int, int, int]:
        """Epoch of a step counted from `start`, the mini-batch its steps are counted from, and its number among
        them.
        """
        epoch, base = divmod(start, self.mini_batches)
        first = -(-(self.mini_batches - base) // world_size)
        if step < first:
            return epoch, base, step
        further, inside = divmod(step - first, -(-self.mini_batches // world_size))
        return epoch + 1 + further, 0, inside

    def _epoch(self, epoch: int) -> EpochPlan:
        last = self._last  # read once: threads may share a plan
        if last is None or last[0] != epoch:
            last = (epoch, epoch_plan(self.seed, epoch, self.index, self.batching))
            self._last = last
        return last[1]


def mask_positions(mask_seed: int, length: int, ratio: float) -> Ints:
    """(M,) sorted positions masked in a window: exactly round(ratio * length), from the seed alone."""
    generator = np.random.Generator(np.random.Philox(key=mask_seed))
    return np.sort(generator.permutation(length)[: round(ratio * length)])


Slots = tuple[Ints, Ints, NDArray[np.float64], NDArray[np.uint64]]


def _balanced_slots(seed: int, epoch: int, index: CohortIndex, batching: Batching) -> Slots:
    """First slots of the P x K mini-batches; cases, places and mask seeds of the slots."""
    classes = index.class_cases()
    k, p = batching.cases_per_class, batching.classes
    largest = max(len(members) for members in classes)
    # position j of the class schedule is the (j // C)-th turn of its class, since one permutation is repeated
    schedule = np.arange(-(-largest // k) * len(classes))
    order = _generator(seed, epoch, _CLASSES, 0).permutation(len(classes))
    chosen, turn = order[schedule % len(classes)], schedule // len(classes)
    sizes = np.minimum(k, largest - turn * k)  # the last turn may be short
    ends = np.cumsum(sizes)
    first = np.concatenate([[0], ends[p - 1 :: p], ends[-1:] if len(ends) % p else []]).astype(np.int64)
    case = np.empty(ends[-1], dtype=np.int64)
    place = np.empty((ends[-1], 2))
    mask_seed = np.empty(ends[-1], dtype=np.uint64)
    for number, members in enumerate(classes):
        at = np.flatnonzero(np.repeat(chosen == number, sizes))
        stream = members[_generator(seed, epoch, _STREAM, number).permutation(len(members))]
        # one row of draws a position, so that a longer stream only adds rows
        raw = _generator(seed, epoch, _PLACE, number).integers(0, 2**63, size=(largest, 3), dtype=np.int64)
        case[at] = stream[np.arange(largest) % len(members)]
        place[at] = raw[:, :2] / 2.0**63
        mask_seed[at] = raw[:, 2].astype(np.uint64)
    return first, case, place, mask_seed


def _natural_slots(seed: int, epoch: int, index: CohortIndex, size: int) -> Slots:
    """Every case once, the classes spread evenly over the epoch."""
    spread = np.empty(index.num_cases)
    draws = _generator(seed, epoch, _NATURAL, 0)
    for members in index.class_cases():
        ranks = draws.permutation(len(members))
        spread[members] = (ranks + draws.random()) / len(members)
    order = np.argsort(spread, kind="stable")
    raw = _generator(seed, epoch, _PLACE, 0).integers(0, 2**63, size=(len(order), 3), dtype=np.int64)
    first = np.append(np.arange(0, len(order), size), len(order)).astype(np.int64)
    return first, order, raw[:, :2] / 2.0**63, raw[:, 2].astype(np.uint64)


def _windows(case: Ints, place: NDArray[np.float64], index: CohortIndex, window: int) -> tuple[Ints, Ints]:
    """A slide of each case, drawn in proportion to its patches, and the first patch of a window in it."""
    if window == 0:
        return np.full(len(case), -1, dtype=np.int64), np.zeros(len(case), dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(index.slide_patches)])
    low, high = ends[index.first_slide[case]], ends[index.first_slide[case + 1]]
    if (low == high).any():
        without = sorted({str(index.case_ids[number]) for number in case[low == high].tolist()})
        raise InputError(
            "cases have no slide to draw a window from",
            case=", ".join(without[:10]),
            expected="at least one slide of every case",
            found=f"{len(without):,} cases without one",
            fix="use the cases of `CohortStore.complete_cases`, or ingest again with their slides",
        )
    patch = np.minimum(low + (place[:, 0] * (high - low)).astype(np.int64), high - 1)
    slide = np.searchsorted(ends, patch, side="right") - 1
    room = np.maximum(index.slide_patches[slide] - window + 1, 1)
    return slide, np.minimum((place[:, 1] * room).astype(np.int64), room - 1)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _numpy(values: pa.Array) -> NDArray[np.str_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.str_)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
