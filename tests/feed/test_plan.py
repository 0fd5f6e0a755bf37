"""The epoch plan by its promises: how often each case comes, balance, disjoint ranks, purity, any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, CohortIndex, EpochPlan, Plan, Row, epoch_plan, mask_positions, mini_batches


def make_index(counts: list[int], slides_per_case: int = 1, patches: int = 50, seed: int = 0) -> CohortIndex:
    rng = np.random.default_rng(seed)
    cases = sum(counts)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    slides = rng.integers(1, slides_per_case + 1, cases)
    first = np.concatenate([[0], np.cumsum(slides)])
    return CohortIndex(
        np.array([f"case-{i:04d}" for i in range(cases)]),
        labels,
        np.array([f"slide-{i:05d}" for i in range(first[-1])]),
        first,
        rng.integers(1, patches + 1, first[-1]),
    )


def same(a: EpochPlan, b: EpochPlan) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in (*SLOT, "first"))


def batches_of(plan: EpochPlan, values: np.ndarray) -> list[np.ndarray]:
    """Values of the slots, mini-batch by mini-batch."""
    return np.split(values, plan.first[1:-1])


SLOT = ("case", "slide", "start", "mask_seed")
class_counts = st.lists(st.integers(2, 40), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    counts=class_counts,
    seed=st.integers(0, 10_000),
    epoch=st.integers(0, 50),
    p=st.integers(1, 4),
    k=st.integers(1, 6),
)
def test_balanced_epoch_keeps_its_promises(counts, seed, epoch, p, k) -> None:
    index = make_index(counts, slides_per_case=3)
    batching = Batching(classes=p, cases_per_class=k, window=20)
    plan = epoch_plan(seed, epoch, index, batching)
    assert plan.mini_batches == mini_batches(batching, index)
    p, k = min(p, len(counts)), min([k, *counts])
    turns = -(-max(counts) // k)
    for number, cases in enumerate(batches_of(plan, plan.case)):
        # P classes, K different cases of each; in the last turn as many as are left
        found, of_class = np.unique(index.labels[cases], return_counts=True)
        assert len(set(cases.tolist())) == len(cases)
        assert len(found) == p or number == plan.mini_batches - 1
        assert of_class.max() <= k
        if number * p < (turns - 1) * len(counts) - p:
            assert of_class.min() == k
    # every class fills as many slots as the largest has cases, each of its cases floor or ceil of its share
    seen = np.bincount(plan.case, minlength=index.num_cases)
    for label, n in enumerate(counts):
        members = seen[index.labels == label]
        assert members.sum() == max(counts)
        assert members.min() == max(counts) // n and members.max() == -(-max(counts) // n)


@settings(max_examples=60, deadline=None)
@given(counts=class_counts, seed=st.integers(0, 10_000), epoch=st.integers(0, 50), size=st.integers(1, 16))
def test_natural_epoch_sees_every_case_once(counts, seed, epoch, size) -> None:
    index = make_index(counts)
    plan = epoch_plan(seed, epoch, index, Batching(balance="natural", size=size))
    assert sorted(plan.case.tolist()) == list(range(index.num_cases))
    sizes = np.diff(plan.first)
    assert (sizes[:-1] == min(size, index.num_cases)).all() and 0 < sizes[-1] <= size


def test_natural_mini_batches_have_the_cohorts_share_of_each_class() -> None:
    index = make_index([300, 100])
    plan = epoch_plan(3, 0, index, Batching(balance="natural", size=20))
    minority = [(index.labels[cases] == 1).sum() for cases in batches_of(plan, plan.case)]
    assert min(minority) >= 4 and max(minority) <= 6


def rows_of(plan: Plan, world: int, start: int = 0, steps: int | None = None) -> list[list[Row]]:
    """All ranks' rows, step by step."""
    left = plan.steps(start, plan.positions, world)
    return [
        [plan.row(step, rank, world, start) for rank in range(world)]
        for step in range(left if steps is None else min(steps, left))
    ]


def trained(steps: list[list[Row]]) -> list[tuple[int, ...]]:
    """What the rows with a share train on, in the plan's order."""
    real = sorted((row for rows in steps for row in rows if row.share), key=lambda row: (row.epoch, row.mini_batch))
    return [
        (row.epoch, *(int(value) for value in slot))
        for row in real
        for slot in zip(*(getattr(row, name) for name in SLOT), strict=True)
    ]


batchings = st.builds(
    Batching,
    classes=st.integers(1, 3),
    cases_per_class=st.integers(1, 4),
    balance=st.sampled_from(["classes", "natural"]),
    size=st.integers(1, 7),
    window=st.just(20),
    accumulate=st.integers(1, 3),
)


@settings(max_examples=80, deadline=None)
@given(
    counts=class_counts,
    batching=batchings,
    epochs=st.integers(1, 3),
    attempts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=8),
    last=st.integers(1, 5),
)
def test_however_often_the_number_of_workers_changes_each_mini_batch_is_trained_on_once(
    counts, batching, epochs, attempts, last
) -> None:
    plan = Plan(4, epochs, make_index(counts, slides_per_case=2), batching)
    position, found = 0, []
    for world, updates in [*attempts, (last, 10**6)]:
        if position == plan.positions:
            break
        done: list[list[Row]] = []
        for rows in rows_of(plan, world, position):
            done.append(rows)
            if sum(ranks[0].closes for ranks in done) == updates:
                break
        # killed at a checkpoint, which an optimiser step's end is
        assert done[-1][0].closes and done[0][0].begin == position
        position, found = done[-1][0].end, found + trained(done)
    assert position == plan.positions
    assert found == trained(rows_of(plan, 1))


@settings(max_examples=80, deadline=None)
@given(counts=class_counts, batching=batchings, world=st.integers(1, 5), start=st.integers(0, 30))
def test_shares_make_the_mean_over_an_optimiser_steps_cases(counts, batching, world, start) -> None:
    plan = Plan(4, 2, make_index(counts), batching)
    start = min(start, plan.positions)
    steps = rows_of(plan, world, start)
    whole = sum(len(row.case) for (row,) in rows_of(plan, 1))
    seen = steps[0][0].before if steps else 1.0
    update: list[Row] = []
    updates = 0
    for rows in steps:
        update += rows
        assert len({(row.begin, row.end, row.before, row.after, row.closes) for row in rows}) == 1
        assert rows[0].share > 0, "the first rank always has something"
        if rows[0].closes:
            cases = [len(row.case) if row.share else 0 for row in update]
            # gradients are averaged over ranks and summed over the steps
            for row, own in zip(update, cases, strict=True):
                assert row.share / world == pytest.approx(own / sum(cases))
                assert row.before == seen and row.after == pytest.approx(seen + sum(cases) / whole)
            seen = update[0].after
            assert len(update) <= world * batching.accumulate
            update, updates = [], updates + 1
    assert seen == 1.0 and not update and updates == plan.updates(start, plan.positions, world)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(8, 60), k=st.integers(1, 4))
def test_two_workers_with_k_cases_see_the_windows_of_one_worker_with_twice_k(seed, n, k) -> None:
    index = make_index([n, n], slides_per_case=2)
    one, two = (Plan(seed, 2, index, Batching(cases_per_class=size, window=10)) for size in (2 * k, k))
    alone, together = rows_of(one, 1), rows_of(two, 2)
    assert len(alone) == len(together)
    for rows, again in zip(alone, together, strict=True):
        assert sorted(trained([rows])) == sorted(trained([again]))


def test_ranks_of_a_step_have_different_cases_where_the_classes_suffice() -> None:
    plan = Plan(1, 1, make_index([40, 50]), Batching(cases_per_class=4))
    for rows in rows_of(plan, 4):
        cases = np.concatenate([row.case for row in rows if row.share])
        assert len(np.unique(cases)) == len(cases)


def test_the_plan_is_pure_and_changes_with_seed_and_epoch() -> None:
    index = make_index([20, 33], slides_per_case=2, patches=500)
    batching = Batching(window=64)
    plan = epoch_plan(5, 7, index, batching)
    np.random.seed(99)
    epoch_plan(6, 7, index, batching)
    assert same(plan, epoch_plan(5, 7, index, batching))
    assert not same(plan, epoch_plan(5, 8, index, batching))
    assert not same(plan, epoch_plan(6, 7, index, batching))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), window=st.integers(1, 300), patches=st.integers(1, 400))
def test_windows_stay_inside_their_slide_and_slides_inside_their_case(seed, window, patches) -> None:
    index = make_index([9, 9], slides_per_case=3, patches=patches, seed=seed)
    plan = epoch_plan(seed, 0, index, Batching(window=window))
    case, slide, start = (getattr(plan, name).reshape(-1) for name in ("case", "slide", "start"))
    assert (index.first_slide[case] <= slide).all() and (slide < index.first_slide[case + 1]).all()
    size = index.slide_patches[slide]
    assert (start >= 0).all()
    assert (start + np.minimum(window, size) <= size).all()


def test_slides_are_drawn_in_proportion_to_their_patches_and_starts_reach_both_ends() -> None:
    index = CohortIndex(
        np.array(["a", "b", "c", "d"]),
        np.array([0, 1, 0, 1]),
        np.array(["a1", "a2", "b1", "c1", "d1"]),
        np.array([0, 2, 3, 4, 5]),
        np.array([900, 100, 12, 5, 5]),
    )
    plans = [epoch_plan(0, epoch, index, Batching(cases_per_class=1, window=10)) for epoch in range(3000)]
    slides = np.concatenate([plan.slide.reshape(-1) for plan in plans])
    assert abs((slides == 0).sum() / ((slides == 0) | (slides == 1)).sum() - 0.9) < 0.02
    starts = np.concatenate([plan.start[plan.slide == 2] for plan in plans])
    assert set(starts.tolist()) == {0, 1, 2}


def test_mask_has_exactly_the_share_and_depends_on_its_seed_alone() -> None:
    for length, ratio in ((6000, 0.5), (7, 0.5), (10, 0.33), (1, 0.9)):
        positions = mask_positions(17, length, ratio)
        assert len(positions) == round(ratio * length) == len(np.unique(positions))
        assert (np.diff(positions) > 0).all() and positions.min() >= 0 and positions.max() < length
    assert np.array_equal(mask_positions(3, 100, 0.5), mask_positions(3, 100, 0.5))
    assert not np.array_equal(mask_positions(3, 100, 0.5), mask_positions(4, 100, 0.5))
    # a random half, not a fixed one: every position is masked in about half of the windows
    share = np.bincount(np.concatenate([mask_positions(seed, 20, 0.5) for seed in range(2000)]), minlength=20) / 2000
    assert share.min() > 0.45 and share.max() < 0.55


def test_mask_seeds_differ_between_windows_of_an_epoch() -> None:
    index = make_index([30, 30])
    plan = epoch_plan(0, 0, index, Batching())
    assert len(np.unique(plan.mask_seed)) == plan.mask_seed.size


def test_a_class_with_a_single_case_is_refused_by_name() -> None:
    index = make_index([5, 5])
    index.labels[:] = [0] * 9 + [1]
    with pytest.raises(InputError) as refusal:
        epoch_plan(0, 0, index, Batching())
    assert refusal.value.case == "case-0009" and refusal.value.fix is not None


def test_a_row_is_one_ranks_mini_batch() -> None:
    index = make_index([12, 12])
    plan = Plan(0, 5, index, Batching(cases_per_class=2))
    of_epoch = epoch_plan(0, 4, index, Batching(cases_per_class=2))
    row = plan.row(1, 2, 3, start=4 * 6)
    assert (row.epoch, row.mini_batch, row.rank, row.begin, row.end) == (4, 5, 2, 27, 30)
    assert np.array_equal(row.case, of_epoch.case[20:24]) and np.array_equal(row.mask_seed, of_epoch.mask_seed[20:24])


def test_a_rank_with_nothing_left_repeats_a_case_with_no_share() -> None:
    plan = Plan(0, 1, make_index([10, 10]), Batching(balance="natural", size=8))
    last = rows_of(plan, 2)[-1]
    assert [len(row.case) for row in last] == [4, 1] and [row.share for row in last] == [2.0, 0.0]


def test_a_plan_over_a_hundred_thousand_slides_is_arrays_only() -> None:
    index = make_index([40_000, 10_000], slides_per_case=3)
    plan = epoch_plan(0, 0, index, Batching(window=6000))
    assert plan.case.dtype == np.int64 and plan.mask_seed.dtype == np.uint64
    assert np.bincount(plan.case.reshape(-1), minlength=50_000).min() >= 1
