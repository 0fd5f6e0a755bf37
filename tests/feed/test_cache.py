"""A cache of bags changes no bit of a batch, reads a slide once, stays in its budget and says how much fits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed import memory
from gimp_ray.feed.cache import DeviceCache, HostCache, _Kept, open_cache
from gimp_ray.feed.plan import Batching, CohortIndex, Plan, index_cases
from gimp_ray.feed.windows import each_bag, read_bags, read_windows
from gimp_ray.store import CohortStore
from tests.conftest import TINY, changed
from tests.object_storage.server import weed_binary

CPU = torch.device("cpu")
LENGTH = 48
KINDS = ("host", "device")
Made = Callable[[CohortStore, int], Any]
MAKE: dict[str, Made] = {
    "host": HostCache,
    "device": lambda store, budget: DeviceCache(store, budget, CPU),
}


class Counting(CohortStore):
    """A store that counts what is read of each slide, and may fail."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bags: Counter[str] = Counter()
        self.windows: Counter[str] = Counter()
        self.broken = False

    def read_bag(self, slide_id: str) -> np.ndarray:
        self.bags[slide_id] += 1
        if self.broken:
            raise InputError("the store is gone", case=slide_id)
        return CohortStore.read_window(self, slide_id, 0, self.patches(slide_id))

    def read_window(self, slide_id: str, start: int, length: int, out: np.ndarray | None = None) -> np.ndarray:
        self.windows[slide_id] += 1
        return super().read_window(slide_id, start, length, out)

    def patches(self, slide_id: str) -> int:
        return int(self._index.n_patches[self._slide_row(slide_id)])


@pytest.fixture
def store(store_path: Path) -> Counting:
    opened = Counting.open(str(store_path))
    assert isinstance(opened, Counting)
    return opened


@pytest.fixture
def index(store: Counting) -> CohortIndex:
    return index_cases(store, store.cases["case_id"].to_pylist())


def rows_of(index: CohortIndex, epochs: int = 2) -> list[Any]:
    return all_rows(Plan(3, epochs, index, Batching(cases_per_class=2, window=LENGTH)))


def all_rows(plan: Plan) -> list[Any]:
    return [plan.row(step, 0, 1) for step in range(plan.steps(0, plan.positions, 1))]


def size_of(store: CohortStore, index: CohortIndex) -> int:
    assert store.dim is not None
    return int(index.slide_patches.sum()) * store.dim * 2


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).tobytes() == np.asarray(other).tobytes() and one.shape == other.shape


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_windows_and_bags_are_the_same_bits_whatever_fits(
    kind: str, share: float, threads: int, store: Counting, index: CohortIndex
) -> None:
    cache = MAKE[kind](store, int(share * size_of(store, index)))
    for row in rows_of(index):
        cached = read_windows(store, index, row, LENGTH, threads, cache)
        assert isinstance(cached, torch.Tensor) == (kind == "device")
        assert same(cached, read_windows(store, index, row, LENGTH))
    for cases in (np.array([0, 5, 3]), np.array([7])):
        bags, valid = read_bags(store, index, cases, threads, cache)
        plain, valid_again = read_bags(store, index, cases)
        assert same(bags, plain) and np.array_equal(valid, valid_again)
    for (case, bag), (case_again, plain) in zip(
        each_bag(store, index, [4, 2], threads, cache), each_bag(store, index, [4, 2]), strict=True
    ):
        assert case == case_again and same(bag, plain)
    assert (len(cache) == 0) == (share == 0) and len(cache) <= len(index.slide_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_is_read_whole_once_and_never_again(kind: str, store: Counting, index: CohortIndex) -> None:
    cache = MAKE[kind](store, size_of(store, index))
    used = set()
    for row in rows_of(index, epochs=3):
        read_windows(store, index, row, LENGTH, 3, cache)
        used |= {str(slide) for slide in index.slide_ids[row.slide]}
    assert store.bags == Counter(dict.fromkeys(used, 1)) and not store.windows
    assert len(cache) == len(used)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_keeps_within_its_budget_and_reads_the_others_as_windows(
    kind: str, store: Counting, index: CohortIndex
) -> None:
    budget = size_of(store, index) // 3
    told: list[int] = []
    cache = HostCache(store, budget, told.append) if kind == "host" else DeviceCache(store, budget, CPU, told.append)
    for row in rows_of(index, epochs=3):
        read_windows(store, index, row, LENGTH, 2, cache)
    kept = set(store.bags)
    assert store.dim is not None
    assert sum(store.patches(slide) for slide in kept) * store.dim * 2 <= budget
    assert set(store.bags.values()) == {1} and store.windows and not kept & set(store.windows)
    assert told == [len(kept)] == [len(cache)]


def test_changing_a_batch_does_not_change_what_is_kept(store: Counting, index: CohortIndex) -> None:
    row = rows_of(index)[0]
    for make in MAKE.values():
        cache = make(store, size_of(store, index))
        first = read_windows(store, index, row, LENGTH, 1, cache)
        before = np.asarray(first).copy()
        first[:] = 0
        read_bags(store, index, row.case, 1, cache)[0][:] = 0
        assert same(read_windows(store, index, row, LENGTH, 1, cache), before)


def test_threads_that_ask_for_one_slide_wait_for_one_read() -> None:
    kept: _Kept[str] = _Kept(100, lambda _: None)
    reading, may_end = threading.Event(), threading.Event()
    made = []

    def make() -> str:
        made.append(threading.get_ident())
        reading.set()
        assert may_end.wait(60)
        return "bag"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(kept.get, "a", 60, make)
        assert reading.wait(60)
        others = [pool.submit(kept.get, "a", 60, make) for _ in range(3)]
        # another slide neither waits for this one nor takes the room it will need
        assert kept.get("b", 50, lambda: "too large") is None
        may_end.set()
        assert {future.result() for future in [first, *others]} == {"bag"}
    assert len(made) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_a_read_comes_out_and_the_next_read_tries_again(
    kind: str, store: Counting, index: CohortIndex
) -> None:
    cache, row = MAKE[kind](store, size_of(store, index)), rows_of(index)[0]
    store.broken = True
    for _ in range(2):
        with pytest.raises(InputError, match="the store is gone"):
            read_windows(store, index, row, LENGTH, 2, cache)
    assert len(cache) == 0
    store.broken = False
    assert same(read_windows(store, index, row, LENGTH, 2, cache), read_windows(store, index, row, LENGTH))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_less_memory_than_was_thought_is_a_full_cache_and_no_error(error: Exception) -> None:
    told: list[int] = []
    kept: _Kept[str] = _Kept(100, told.append)
    assert kept.get("a", 10, lambda: "bag") == "bag"

    def fail() -> str:
        raise error

    assert kept.get("b", 10, fail) is None
    assert kept.get("c", 10, lambda: "bag") is None and kept.get("a", 10, fail) == "bag"
    assert told == [1]


def test_what_fits_is_said_once(store: Counting, index: CohortIndex) -> None:
    said: list[str] = []
    size, slides = size_of(store, index), len(index.slide_ids)
    open_cache(store, [index], "host", size / 1e9, CPU, said.append)
    assert len(said) == 1 and f"has room for all {slides} slides" in said.pop()
    cache = open_cache(store, [index], "device", size / 2e9, CPU, said.append)
    assert cache is not None and said == []
    for row in rows_of(index, epochs=3):
        read_windows(store, index, row, LENGTH, 1, cache)
    assert said == [
        f"note: feed.cache: device (0.00 GB) is full with {len(store.bags)} of {slides} slides; "
        "windows of the others are read each time"
    ]
    open_cache(store, [index], "none", None, CPU, said.append)
    assert len(said) == 1


def test_only_the_first_worker_says_it(
    store: Counting, index: CohortIndex, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        open_cache(store, [index], "host", 1, CPU)
        assert capsys.readouterr().out.count("has room for all") == lines


def test_an_unset_size_is_half_of_the_workers_share_of_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_memory", lambda: 80_000)
    assert memory.cache_budget(None, None) == memory.cache_budget(None, CPU) == 40_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.cache_budget(None, None) == 10_000
    assert memory.cache_budget(1.5, None) == 1_500_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.DEVICE_RESERVE + 1000, 10**12))
    assert memory.cache_budget(None, torch.device("cuda", 0)) == 500
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**12))
    assert memory.cache_budget(None, torch.device("cuda", 0)) == 0


def test_a_containers_limit_counts_and_file_pages_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "fs" / "slice" / "job"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slice/job\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("700\n")
    (group.parent / "memory.max").write_text("1000\n")
    (group.parent / "memory.current").write_text("900\n")
    (group.parent / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    assert list(memory.cgroup_room(tmp_path / "fs", tmp_path / "cgroup")) == [400]
    # version 1, seen from inside a container: the path is the host's, the mount is the group itself
    own = tmp_path / "fs" / "memory"
    own.mkdir()
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    (own / "memory.limit_in_bytes").write_text("500\n")
    (own / "memory.usage_in_bytes").write_text("450\n")
    assert list(memory.cgroup_room(tmp_path / "fs", tmp_path / "cgroup")) == [50]
    assert list(memory.cgroup_room(tmp_path / "nowhere", tmp_path / "no file")) == []
    monkeypatch.setattr(memory, "cgroup_room", lambda: iter([123]))
    assert memory.free_host_memory() == 123


def test_a_cache_with_windows_read_by_ray_data_is_refused(store_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {"feed.cache": "host", "feed.read_in": "ray_data"}, base=TINY)
    assert "feed.cache needs feed.read_in: worker" in str(refusal.value)
    for key, value in (("feed.cache", "disk"), ("feed.cache_gb", "0")):
        with pytest.raises(ConfigError, match=r"feed\.cache"):
            load_config(None, {key: value}, base=TINY)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("kind", KINDS)
def test_tasks_read_through_the_cache_and_get_the_same_batches(stage: str, kind: str, tiny: Config) -> None:
    from gimp_ray.engine.protocol import World
    from gimp_ray.learn.pretrain import Pretraining
    from gimp_ray.learn.supervise import Supervised

    made = {}
    for cache in ("none", kind):
        config = changed(tiny, genes__encoder="none", finetune__init="scratch", feed__cache=cache, feed__cache_gb=1.0)
        task = {"pretrain": Pretraining, "finetune": Supervised}[stage](config.model_dump(), str(tiny.run))
        model = task.build(CPU).eval()
        batches = [task.read(row) for row in all_rows(task.plan)]
        with torch.no_grad():
            made[cache] = batches, task.validate(model, World())
        read = {
            str(task.index.slide_ids[i]) for row in batches for case in row["case"] for i in slides(task.index, case)
        }
        if cache != "none":
            validation = [] if task.validation is None or stage == "pretrain" else task.validation.slide_ids.tolist()
            kept = len(task.cache)  # type: ignore[arg-type]
            assert kept == len(read) + len(validation) if stage == "finetune" else 0 < kept <= len(read)
    (plain, records), (cached, records_again) = made["none"], made[kind]
    for one, other in zip(plain, cached, strict=True):
        assert one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
        assert isinstance(other["patches"], torch.Tensor) == (kind == "device")
    assert repr(records) == repr(records_again)


def test_runs_with_a_cache_end_in_the_same_weights(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache of all, and one so small that some slides are read each time."""
    from gimp_ray import pipeline
    from gimp_ray.runs.model import load_weights

    short = {"genes.encoder": "none", "train.epochs": 2, "finetune.train.epochs": 2}
    ended = {}
    for kind, size in (("none", None), ("host", 1.0), ("device", 30e-6)):
        more = {"run": str(tmp_path / kind), "feed.cache": kind, "feed.cache_gb": size}
        config = load_config(None, short | more, base=tiny.model_dump())
        pipeline.pretrain(config)
        run = pipeline.finetune(config)
        ended[kind] = [load_weights(run.model_file(stage)) for stage in ("pretrain", "finetune")]
        said = [line for line in capsys.readouterr().out.splitlines() if "feed.cache" in line]
        wanted = {"none": "", "host": "has room for all", "device": "is full with"}[kind]
        assert len(said) == (0 if kind == "none" else 2) and all(wanted in line for line in said)
    for kind in KINDS:
        for one, other in zip(ended["none"], ended[kind], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_reading_without_a_cache_needs_no_torch() -> None:
    """Ray's tasks read too, and torch takes a process 200 MB and seconds."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys, gimp_ray.feed.batches; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "False"


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_every_store(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.feed_cache", "--quick", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    stores = 2 if weed_binary() is None else 4
    assert len({(row["what"], row["store"]) for row in rows}) == len(rows) == 2 * stores
    for row in rows:
        assert all(row[name]["min"] > 0 for name in ("without", "first", "later", "cost", "gain"))
        assert row["store"] in ran.stdout


def slides(index: CohortIndex, case: int) -> range:
    return range(int(index.first_slide[case]), int(index.first_slide[case + 1]))
