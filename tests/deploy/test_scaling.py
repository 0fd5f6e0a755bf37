"""docs/scaling.md: its tables are the calculator's, its constants those of the code, and its words follow from both."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scaling
from gimp_ray.feed import batches
from gimp_ray.feed.plan import Batching, CohortIndex, Plan
from gimp_ray.methods.gimp import GiMP, GimpConfig, aggregator_of
from gimp_ray.nn.aggregator import freeze
from gimp_ray.nn.genes import GroupMSA

PAGE = scaling.DOCS.read_text(encoding="utf-8")
storages = st.sampled_from(scaling.STORAGES)
gpus = st.sampled_from([1, 2, 4, 8, 16, 64])
kinds = st.sampled_from([scaling.RTX_3090, scaling.H200])


@pytest.mark.parametrize("name", scaling.sections())
def test_the_tables_of_the_page_are_the_codes(name: str) -> None:
    """After a change: `python -m benchmarks.scaling --docs`."""
    found = re.findall(rf"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->", PAGE, flags=re.DOTALL)
    assert found == [scaling.sections()[name]]


def test_the_page_has_no_table_that_the_code_does_not_make() -> None:
    assert set(re.findall(r"<!-- begin (\S+) -->", PAGE)) == set(scaling.sections())


def test_constants_of_the_code_are_those_of_the_code() -> None:
    config = GimpConfig()
    assert scaling.constant("window") == config.window.length
    assert scaling.constant("cases") == config.batch.classes * config.batch.cases_per_class
    assert scaling.constant("ahead") == config.feed.ahead
    assert scaling.constant("rows_a_task") == batches.ROWS_A_TASK
    assert f"default {config.feed.threads} threads" in PAGE


def test_the_parameters_are_counted() -> None:
    config = GimpConfig()
    genes = GroupMSA(
        num_genes=25_223, dim=config.model.dim, num_fragments=config.genes.fragments, num_groups=config.genes.groups
    )
    dim = int(scaling.constant("dim"))
    model = GiMP(aggregator_of(config, dim), freeze(genes), dim)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == scaling.constant("trained")
    assert sum(parameter.numel() for parameter in genes.parameters()) == scaling.constant("frozen")


def test_constants_of_the_performance_page_are_those_of_the_page() -> None:
    """After the store's benchmark has run again: correct `read_ms` and `zstd_ms`, or say why not."""
    page = (scaling.DOCS.parent / "performance.md").read_text(encoding="utf-8")
    store = re.findall(r"^\| this store \| ([\d.]+) \(", page, flags=re.MULTILINE)[0]
    packed = re.findall(r"^\| float16 \| zstd \| [\d.]+ \| ([\d.]+) \(", page, flags=re.MULTILINE)[0]
    assert scaling.constant("read_ms") == pytest.approx(float(store), rel=0.5)
    assert scaling.constant("zstd_ms") == pytest.approx(float(packed), rel=0.5)


def test_every_constant_says_where_it_comes_from() -> None:
    for constant in scaling.CONSTANTS.values():
        assert constant["kind"] in ("measured", "published", "code", "assumed", "estimate")
        assert constant["source"]
    # no GPU was run
    assert [c["kind"] for name, c in scaling.CONSTANTS.items() if name.startswith("gpu_")] == ["estimate", "estimate"]


def test_known_answers() -> None:
    """The cohorts whose sizes are known, a window, and what a page of the tables is read for."""
    assert scaling.store_gb(946) == pytest.approx(29, rel=0.01)
    assert scaling.store_gb(11_000) == pytest.approx(330, rel=0.03)
    assert scaling.window_gb() == pytest.approx(0.012288)
    assert scaling.batch_gb() == pytest.approx(0.0983, rel=1e-3)
    assert scaling.gradient_gb(1) == 0
    assert scaling.epoch(1_000, 64, scaling.H200, scaling.PAGE_CACHE).steps == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(512, 5000), gpus)
def test_steps_are_those_of_the_plan(slides: int, workers: int) -> None:
    """From a full mini-batch for every worker on; a smaller cohort has smaller ones."""
    ids = np.arange(slides).astype(str)
    index = CohortIndex(
        case_ids=ids,
        labels=np.zeros(slides, dtype=np.int64),
        slide_ids=ids,
        first_slide=np.arange(slides + 1),
        slide_patches=np.full(slides, 10),
    )
    batching = Batching(classes=2, cases_per_class=4, balance="natural", size=8, window=10)
    epoch = Plan(0, 1, index, batching)
    assert scaling.steps_an_epoch(slides, workers) == epoch.steps(0, epoch.positions, workers)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**6), gpus, kinds, storages)
def test_an_epoch_is_never_faster_than_its_slower_half(
    slides: int, count: int, gpu: scaling.Gpu, storage: scaling.Storage
) -> None:
    found = scaling.epoch(slides, count, gpu, storage)
    windows = found.steps * 8
    assert windows * count >= slides
    assert found.seconds >= windows * gpu.window_s * (1 - 1e-9)
    on_node = min(count, scaling.GPUS_A_NODE)
    if storage.node_gb_s is not None:
        # the link carries every byte of the node's workers
        assert found.seconds * storage.node_gb_s >= windows * on_node * scaling.window_gb() * (1 - 1e-9)
    assert (found.limit == "GPU") == (found.busy == 1)


def test_the_words_follow_from_the_figures() -> None:
    """Each sentence of the page that states a number, beside the function that says it."""
    words = " ".join(PAGE.split())
    assert f"{scaling.window_gb() * 1000:.1f} MB" in words
    assert f"below about {scaling.zstd_pays_below_gbit_s():.0f} Gbit/s" in words
    every_h200 = [scaling.epoch(11_000, n, scaling.H200, s) for n in scaling.GPUS for s in scaling.STORAGES]
    assert {one.limit for one in every_h200} == {"reading"}
    assert scaling.epoch(11_000, 8, scaling.RTX_3090, scaling.PAGE_CACHE).limit == "GPU"
    assert scaling.epoch(11_000, 8, scaling.RTX_3090, scaling.LINK_100).busy == pytest.approx(0.75, abs=0.02)
    assert round(1_000 * scaling.constant("cpu_window") / 60) == 50
    wanted = 8 / scaling.H200.window_s * scaling.window_gb()
    assert f"{wanted:.0f} GB/s, which is {wanted * 8:.0f} Gbit/s" in words
    assert f"{148_569 * 1024 * 2 / 1e6:.0f} MB" in words
    assert f"{4 * 148_569 * 1024 * 2 / 1e9:.1f} GB" in words
    assert scaling.gradient_gb(64) / 2 == pytest.approx(scaling.window_gb(), rel=0.02)
    assert scaling.gradient_gb(64) / scaling.LINK_25.node_gb_s * 1e3 == pytest.approx(8, abs=0.2)  # type: ignore[operator]
    assert f"({scaling.memory_gb_s():.0f} GB/s)" in words
    # what was measured over a loopback does not contradict what is taken for S3
    assert 8 * scaling.constant("s3_stream") / scaling.window_gb() == pytest.approx(53, rel=0.1)
    assert f"about {1 / scaling.feed_s(scaling.S3, 8):.0f} windows a second" in words
    assert scaling.feed_s(scaling.S3, 8, threads=8) == scaling.feed_s(scaling.S3, 8, threads=16)
    gets = scaling.constant("s3_gets")
    assert scaling.requests_s(64, scaling.LINK_25) < gets < scaling.requests_s(64, scaling.LINK_100)
    low, high = scaling.checkpoint_s()
    assert low < 4 * scaling.epoch(1_000, 8, scaling.RTX_3090, scaling.PAGE_CACHE).seconds
    assert high > scaling.epoch(1_000, 8, scaling.RTX_3090, scaling.PAGE_CACHE).seconds


def test_the_page_says_what_was_not_measured() -> None:
    assert "No run on a GPU" in PAGE
    assert "## Not measured" in PAGE
    assert Path(scaling.__file__).name == "scaling.py"
