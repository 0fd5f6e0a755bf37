"""The epoch plan by its promises: how often each case comes, balance, disjoint ranks, purity, world-size alignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, CohortIndex, EpochPlan, epoch_plan, mask_positions, row_of, steps_per_epoch


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
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("case", "slide", "start", "mask_seed"))


class_counts = st.lists(st.integers(2, 40), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    counts=class_counts,
    seed=st.integers(0, 10_000),
    epoch=st.integers(0, 50),
    world=st.integers(1, 5),
    p=st.integers(1, 4),
    k=st.integers(1, 6),
    accumulate=st.integers(1, 3),
)
def test_balanced_epoch_keeps_its_promises(counts, seed, epoch, world, p, k, accumulate) -> None:
    index = make_index(counts, slides_per_case=3)
    batching = Batching(classes=p, cases_per_class=k, window=20, accumulate=accumulate)
    plan = epoch_plan(seed, epoch, world, index, batching)
    assert plan.steps == steps_per_epoch(batching, index, world) and plan.steps % accumulate == 0
    p, k = min(p, len(counts)), min([k, *counts])
    assert plan.case.shape == (plan.steps, world, p * k)
    # every mini-batch: P classes, K different cases of each
    labels = index.labels[plan.case].reshape(-1, p, k)
    assert (labels == labels[..., :1]).all()
    assert all(len(set(batch[:, 0].tolist())) == p for batch in labels)
    assert all(len(set(cases.tolist())) == p * k for cases in plan.case.reshape(-1, p * k))
    # every case floor or ceil of its class's share, and of the largest class at least once
    seen = np.bincount(plan.case.reshape(-1), minlength=index.num_cases)
    for label, n in enumerate(counts):
        members = seen[index.labels == label]
        share = members.sum() / n
        assert members.min() >= np.floor(share) and members.max() <= np.ceil(share)
    assert seen[index.labels == int(np.argmax(counts))].min() >= 1
    # classes appear equally often, within one turn
    turns = [seen[index.labels == label].sum() // k for label in range(len(counts))]
    assert max(turns) - min(turns) <= 1


@settings(max_examples=60, deadline=None)
@given(
    counts=class_counts,
    seed=st.integers(0, 10_000),
    epoch=st.integers(0, 50),
    world=st.integers(1, 5),
    size=st.integers(1, 16),
)
def test_natural_epoch_sees_every_case_once_and_fills_the_last_step_from_its_beginning(
    counts, seed, epoch, world, size
) -> None:
    index = make_index(counts)
    plan = epoch_plan(seed, epoch, world, index, Batching(balance="natural", size=size))
    flat = plan.case.reshape(-1)
    n = index.num_cases
    assert sorted(flat[:n].tolist()) == list(range(n))
    assert np.array_equal(flat[n:], flat[: len(flat) - n])
    assert len(flat) - n < world * min(size, max(1, n // world))


def test_natural_mini_batches_have_the_cohorts_share_of_each_class() -> None:
    index = make_index([300, 100])
    plan = epoch_plan(3, 0, 2, index, Batching(balance="natural", size=20))
    minority = (index.labels[plan.case] == 1).sum(axis=-1)
    assert minority.min() >= 4 and minority.max() <= 6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 20), n=st.integers(8, 60), k=st.integers(1, 4))
def test_two_workers_with_k_cases_see_the_windows_of_one_worker_with_twice_k(seed, epoch, n, k) -> None:
    index = make_index([n, n], slides_per_case=2)
    two = epoch_plan(seed, epoch, 2, index, Batching(cases_per_class=k, window=10))
    one = epoch_plan(seed, epoch, 1, index, Batching(cases_per_class=2 * k, window=10))
    assert two.steps == one.steps
    for step in range(one.steps):
        windows = [
            sorted(
                zip(
                    *(
                        getattr(plan, name)[step].reshape(-1).tolist()
                        for name in ("case", "slide", "start", "mask_seed")
                    ),
                    strict=True,
                )
            )
            for plan in (two, one)
        ]
        assert windows[0] == windows[1]


def test_ranks_of_a_step_have_different_cases_where_the_classes_suffice() -> None:
    index = make_index([40, 50])
    plan = epoch_plan(1, 2, 4, index, Batching(cases_per_class=4))
    for step in range(plan.steps):
        assert len(np.unique(plan.case[step])) == plan.case[step].size


def test_the_plan_is_pure_and_changes_with_seed_and_epoch() -> None:
    index = make_index([20, 33], slides_per_case=2, patches=500)
    batching = Batching(window=64)
    plan = epoch_plan(5, 7, 2, index, batching)
    np.random.seed(99)
    epoch_plan(6, 7, 2, index, batching)
    assert same(plan, epoch_plan(5, 7, 2, index, batching))
    assert not same(plan, epoch_plan(5, 8, 2, index, batching))
    assert not same(plan, epoch_plan(6, 7, 2, index, batching))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), window=st.integers(1, 300), patches=st.integers(1, 400))
def test_windows_stay_inside_their_slide_and_slides_inside_their_case(seed, window, patches) -> None:
    index = make_index([9, 9], slides_per_case=3, patches=patches, seed=seed)
    plan = epoch_plan(seed, 0, 1, index, Batching(window=window))
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
    plans = [epoch_plan(0, epoch, 1, index, Batching(cases_per_class=1, window=10)) for epoch in range(3000)]
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
    plan = epoch_plan(0, 0, 2, index, Batching())
    assert len(np.unique(plan.mask_seed)) == plan.mask_seed.size


def test_a_class_with_a_single_case_is_refused_by_name() -> None:
    index = make_index([5, 5])
    index.labels[:] = [0] * 9 + [1]
    with pytest.raises(InputError) as refusal:
        epoch_plan(0, 0, 1, index, Batching())
    assert refusal.value.case == "case-0009" and refusal.value.fix is not None


def test_a_row_is_one_ranks_mini_batch() -> None:
    index = make_index([12, 12])
    plan = epoch_plan(0, 4, 3, index, Batching(cases_per_class=2))
    row = row_of(plan, 4, 1, 2)
    assert (row.epoch, row.step, row.rank) == (4, 1, 2)
    assert np.array_equal(row.case, plan.case[1, 2]) and np.array_equal(row.mask_seed, plan.mask_seed[1, 2])


def test_a_plan_over_a_hundred_thousand_slides_is_arrays_only() -> None:
    index = make_index([40_000, 10_000], slides_per_case=3)
    plan = epoch_plan(0, 0, 8, index, Batching(window=6000))
    assert plan.case.dtype == np.int64 and plan.mask_seed.dtype == np.uint64
    assert np.bincount(plan.case.reshape(-1), minlength=50_000).min() >= 1
