"""What the machine does to an ingest: a full disk, files nobody may read, `kill -9`, two ingests at once.

All of it is real: a limit on the size of files makes the system refuse to write on, another user's files are another
user's, and the killed and the stopped ingest are processes. After each the store is as it was, or there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cohort_files import features, grid, write_h5

from gimp_ray.store import CohortStore
from tests.bad_inputs.corpus import CASES, SLIDE, STORED_CASES, Inputs, plain_cohort, split_table
from tests.bad_inputs.running import assert_error, gimp, state
from tests.full_disk import files_of_at_most

NOBODY = 65534
COMMAND = "from gimp_ray.cli.commands import main; main()"


def stored(place: Path, root: Path) -> None:
    """A good store at `place`."""
    assert gimp(*plain_cohort(root, STORED_CASES).arguments(place)).exit_code == 0


# --- a full disk


@pytest.mark.parametrize("adding", [False, True], ids=["new", "adding"])
def test_a_disk_that_is_full_in_the_middle(adding: bool, tmp_path: Path) -> None:
    inputs, place = plain_cohort(tmp_path / "sources"), tmp_path / "place"
    write_h5(inputs.slide, features(3000), grid(3000), patch_size=256, patch_level=0)
    place.mkdir()
    if adding:
        stored(place / "STORE", tmp_path / "before")
    before = state(place)
    # from the lock to the part file: something else is what does not fit
    for size in (0, 60, 500, 1200, 2500, 4500, 20_000, 60_000):
        with files_of_at_most(size):
            answer = gimp(*inputs.arguments(place / "STORE"))
        assert_error(answer, "the store cannot be written", "File too large", "free space")
        assert state(place) == before, f"with files of at most {size} bytes something was left"
    assert gimp(*inputs.arguments(place / "STORE"), "--strict").exit_code == 0
    assert gimp("check", place / "STORE", "--deep").exit_code == 0


def test_a_refusal_leaves_no_folder_above_the_store(tmp_path: Path) -> None:
    inputs = plain_cohort(tmp_path / "sources")
    inputs.slide.write_bytes(b"")
    assert_error(gimp(*inputs.arguments(tmp_path / "new" / "er" / "STORE"), "--strict"), "damaged")
    assert not (tmp_path / "new").exists()


# --- files of somebody else


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Go on as a user who owns nothing; root reads every file, whatever its mode."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError as error:
        pytest.skip(f"this process may not become another user, and root may read everything: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder others may enter, which pytest's own is not; `place` in it is for everybody to write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "place").mkdir()
    (folder / "place").chmod(0o777)
    yield folder
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def _closed(path: Path) -> None:
    path.chmod(0)


def _splits(inputs: Inputs) -> None:
    _closed(split_table(inputs, [[case_id, "train"] for case_id in CASES]))


# what is closed -> (how, what is said)
CLOSED: dict[str, tuple[Callable[[Inputs], object], str, str]] = {
    "patch file": (lambda i: _closed(i.slide), "cannot be opened", f"{SLIDE}.h5"),
    "folder of patches": (lambda i: _closed(i.sources.patches), "cannot be read", "patches"),
    "gene matrix": (lambda i: _closed(i.sources.genes), "the gene file cannot be read", "genes.tsv"),
    "case table": (lambda i: _closed(i.sources.cases), "the case table cannot be read", "cases.csv"),
    "split table": (_splits, "the split table cannot be read", "splits.csv"),
    "folder of all": (lambda i: _closed(i.root), "cannot be read", "cases.csv"),
}


@pytest.mark.parametrize("what", CLOSED)
def test_a_source_that_this_user_may_not_read(what: str, public: Path) -> None:
    close, message, name = CLOSED[what]
    inputs = plain_cohort(public / "sources")
    close(inputs)
    with somebody_else():
        answers = [
            gimp(*inputs.arguments(public / "place" / "STORE"), "--strict", *more) for more in ((), ("--dry-run",))
        ]
    for answer in answers:
        assert_error(answer, message, name, "ermission denied")
    assert state(public / "place") == {}


def test_a_patch_file_that_this_user_may_not_read_is_left_out(public: Path) -> None:
    inputs = plain_cohort(public / "sources")
    _closed(inputs.slide)
    with somebody_else():
        answer = gimp(*inputs.arguments(public / "place" / "STORE"))
    assert answer.exit_code == 0 and "the patch file cannot be opened" in answer.output
    assert CohortStore.open(public / "place" / "STORE").cases["case_id"].to_pylist() == ["A0", "B0", "B1"]


def test_a_place_that_this_user_may_not_write_to(public: Path) -> None:
    inputs = plain_cohort(public / "sources")
    with somebody_else():
        assert_error(gimp(*inputs.arguments(public / "STORE")), "the store cannot be written", "ermission denied")
    assert not (public / "STORE").exists()


def test_a_store_of_somebody_else(public: Path) -> None:
    stored(public / "place" / "STORE", public / "before")
    before, inputs = state(public / "place"), plain_cohort(public / "sources")
    with somebody_else():
        answer = gimp(*inputs.arguments(public / "place" / "STORE"))
    assert_error(answer, "the store cannot be written", "ermission denied")
    assert state(public / "place") == before


# --- other processes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A cohort that takes about a second to write: one slide of the plain one stands there many times."""
    inputs = plain_cohort(tmp_path_factory.mktemp("large") / "sources")
    write_h5(inputs.slide, features(60_000), grid(60_000), patch_size=256, patch_level=0)
    for number in range(2, 15):
        slide_id = f"A1-DX{number}"
        os.link(inputs.slide, inputs.sources.patches / f"{slide_id}.h5")
        inputs.sources.rows.append(["A1", slide_id, "LUAD"])
    inputs.sources.write_cases()
    return inputs


@contextlib.contextmanager
def stopped_in_the_middle(inputs: Inputs, out: Path) -> Iterator[subprocess.Popen[str]]:
    """An ingest in a process of its own, stopped when the first bytes of a part file are on disk."""
    command = [sys.executable, "-c", COMMAND, *inputs.arguments(out)]
    known = set(out.parent.rglob("part-*.parquet"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until = time.monotonic() + 120
        while not any(path.stat().st_size for path in out.parent.rglob("part-*.parquet") if path not in known):
            assert process.poll() is None and time.monotonic() < until, process.stdout and process.stdout.read()
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None, "the ingest was over before it could be stopped: make the cohort larger"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("adding", [False, True], ids=["new", "adding"])
def test_two_ingests_at_once(adding: bool, large: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "place" / "STORE"
    if adding:
        stored(out, tmp_path / "before")
    second = plain_cohort(tmp_path / "second")
    with stopped_in_the_middle(large, out) as first:
        before = state(out.parent)
        assert_error(gimp(*second.arguments(out)), "another ingest is writing this store", f"process {first.pid}")
        assert state(out.parent) == before, "the second one touched nothing"
        first.send_signal(signal.SIGCONT)
        output, _ = first.communicate(timeout=120)
        assert first.returncode == 0, output
    assert [path.name for path in out.parent.iterdir()] == ["STORE"]
    assert CohortStore.open(out).manifest.num_slides == len(CASES) + 13 + adding * len(STORED_CASES)
    assert gimp("check", out, "--deep").exit_code == 0


@pytest.mark.parametrize(("adding", "reaped"), [(False, False), (True, True)], ids=["new, a zombie", "adding"])
def test_killed_in_the_middle(adding: bool, reaped: bool, large: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "place" / "STORE"
    if adding:
        stored(out, tmp_path / "before")
    before = state(out.parent) if adding else {}
    with stopped_in_the_middle(large, out) as process:
        process.kill()
        if reaped:
            assert process.wait() == -signal.SIGKILL
        else:  # nobody asks for its end, as in a container whose first process is no init
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        now = state(out.parent)
        assert {name: now[name] for name in before if before[name] != "folder"} == {
            name: item for name, item in before.items() if item != "folder"
        }, "what was stored is as it was"
        assert len(now) > len(before), "the killed one left its files"
        if adding:
            assert gimp("check", out, "--deep").exit_code == 0
        answer = gimp(*plain_cohort(tmp_path / "next").arguments(out), "--strict")
        assert answer.exit_code == 0, answer.output
    assert [path.name for path in out.parent.iterdir()] == ["STORE"]
    assert CohortStore.open(out).manifest.num_slides == len(CASES) + adding * len(STORED_CASES)
    check = gimp("check", out, "--deep")
    assert check.exit_code == 0 and "WARN" not in check.output, check.output
