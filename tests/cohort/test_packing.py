"""Which slide goes to which part file: sizes of the files, and that no slide is apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gimp_ray.ingest.patches.write import LARGEST_PART_BYTES, PART_BYTES, SMALLEST_PART_BYTES, pack

MB = 1 << 20


@given(st.lists(st.integers(1, 700), max_size=60))
def test_part_files_are_of_128_to_512_mb_where_slides_allow_it(megabytes: list[int]) -> None:
    sizes = [m * MB for m in megabytes]
    runs = pack(sizes, PART_BYTES)
    assert [i for run in runs for i in run] == list(range(len(sizes))), "every slide once, in order"
    totals = [sum(sizes[i] for i in run) for run in runs]
    for run, total in zip(runs, totals, strict=True):
        assert total <= LARGEST_PART_BYTES or any(sizes[i] > LARGEST_PART_BYTES - SMALLEST_PART_BYTES for i in run)
        assert total <= LARGEST_PART_BYTES or len(run) == 1, "only a slide that is larger alone makes a larger file"
    for here, total, after in zip(runs, totals, runs[1:], strict=False):
        assert total >= SMALLEST_PART_BYTES or total + sizes[after[0]] > LARGEST_PART_BYTES, here


def test_a_cohort_of_real_sizes_fills_files_of_about_256_mb() -> None:
    # 946 slides of 15,000 x 1,024 in float16: the paper's cohort
    runs = pack([15_000 * (2 * 1024 + 8)] * 946, PART_BYTES)
    totals = [len(run) * 15_000 * 2056 for run in runs]
    assert all(SMALLEST_PART_BYTES <= total <= PART_BYTES for total in totals[:-1])
    assert SMALLEST_PART_BYTES <= totals[-1] <= LARGEST_PART_BYTES, "what is left over goes to the last file"
    assert 100 < len(runs) < 150


def test_a_small_cohort_is_one_file_and_none_is_none() -> None:
    assert pack([MB] * 5, PART_BYTES) == [range(5)]
    assert pack([], PART_BYTES) == []
