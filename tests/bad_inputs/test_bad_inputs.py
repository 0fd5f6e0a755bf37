"""Every bad input through the command line: the promised message, exit code, and what is at the store's place.

Each runs twice with two stores: with `--strict`, which refuses, and without it; into a new store and into one that is
there. Odd inputs that are good give the same store as the clean ones. Left out: what the machine does to an ingest
(`test_machine.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gimp_ray.cli import main
from gimp_ray.cohort import CohortStore
from gimp_ray.cohort.check import check_store
from tests.bad_inputs.bad_genes import BAD_GENES
from tests.bad_inputs.bad_patches import BAD_PATCHES
from tests.bad_inputs.bad_tables import BAD_TABLES
from tests.bad_inputs.corpus import CASES, COHORTS, STORED_CASES, Case

CORPUS: tuple[Case, ...] = (*BAD_PATCHES, *BAD_GENES, *BAD_TABLES)
IDS = [case.name for case in CORPUS]

MakeStore = Callable[[str], Path]


def gimp(*arguments: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def state(folder: Path) -> dict[str, object]:
    """Everything below a folder, hidden files too: contents, where links lead, and when files were written."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = (path.stat().st_mtime_ns, path.read_bytes())
    return found


def bags(out: Path) -> dict[str, bytes]:
    """Embeddings, coordinates and expression of every slide of a store."""
    store = CohortStore.open(out)
    rows = store.slides.to_pylist()
    return {
        row["slide_id"]: store.read_bag(row["slide_id"]).tobytes()
        + store.read_coords(row["slide_id"]).tobytes()
        + store.read_genes([row["case_id"]]).tobytes()
        for row in rows
    }


@pytest.fixture(scope="session")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """A good store of each kind of cohort, of other cases than those that are spoiled; made once."""
    made: dict[str, Path] = {}

    def store(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            inputs = COHORTS[kind](folder / "sources", STORED_CASES)
            answer = gimp(*inputs.arguments(folder / "STORE"), "--strict")
            assert answer.exit_code == 0, answer.output
            made[kind] = folder / "STORE"
        return made[kind]

    return store


def assert_refused(answer: Result, case: Case) -> None:
    """Exit code 2, and a message that says what, where, what was found and what to do."""
    assert answer.exit_code == 2, (answer.output, answer.exception)
    assert isinstance(answer.exception, SystemExit)
    assert answer.stderr.startswith("error: ") and "Traceback" not in answer.output
    for word in case.says:
        assert word in answer.stderr, f"{word!r} is not in:\n{answer.stderr}"
    lines = [line.strip().partition(":")[0] for line in answer.stderr.splitlines()[1:]]
    for name in ["fix"] + ["file"] * case.has_file + ["found"] * case.has_found:
        assert name in lines, f"no {name} in:\n{answer.stderr}"


def assert_left_out(answer: Result, case: Case, out: Path, before: dict[str, bytes]) -> None:
    """Exit code 0, a store of all the rest, and a report that says what was left out and why."""
    assert answer.exit_code == 0, (answer.output, answer.exception)
    store = CohortStore.open(out)
    stored = {*STORED_CASES} if before else set()
    assert set(store.cases["case_id"].to_pylist()) == stored | set(CASES) - set(case.left_out)
    after = bags(out)
    assert {name: after[name] for name in before} == before, "what was stored before is as it was"
    assert check_store(out, deep=True).ok
    reports = sorted(out.glob("ingest_report*.json"), key=lambda path: path.stat().st_mtime_ns)
    items = json.loads(reports[-1].read_text())["left_out"]
    text = "\n".join(str(value) for item in items for value in item.values())
    for word in case.says:
        assert word in text, f"{word!r} is not in the report:\n{text}"
    for case_id in case.left_out:
        assert any(item.get("case_id") == case_id for item in items)
    assert "Left out (all of it in ingest_report.json):" in answer.stdout
    assert all(str(item["id"]) in answer.stdout for item in items[:5])


@pytest.mark.parametrize("adding", [False, True], ids=["new", "adding"])
@pytest.mark.parametrize("case", CORPUS, ids=IDS)
def test_a_bad_input(case: Case, adding: bool, tmp_path: Path, good_store: MakeStore) -> None:
    inputs = COHORTS[case.kind](tmp_path / "sources")
    case.spoil(inputs)
    sources, place = state(tmp_path / "sources"), tmp_path / "place"
    place.mkdir()
    out, stored = place / "STORE", dict[str, bytes]()
    if adding:
        shutil.copytree(good_store(case.kind), out)
        stored = bags(out)
    before = state(place)
    assert_refused(gimp(*inputs.arguments(out), "--strict"), case)
    assert state(place) == before, "nothing is left behind, and a store is as it was"
    answer = gimp(*inputs.arguments(out))
    if case.refused:
        assert_refused(answer, case)
        assert state(place) == before
    else:
        assert_left_out(answer, case, out, stored)
    assert [path.name for path in place.iterdir()] == ["STORE"] * out.exists()
    assert state(tmp_path / "sources") == sources, "sources are never written to, and no pickle is executed"


@pytest.mark.parametrize("kind", COHORTS)
@pytest.mark.parametrize("adding", [False, True], ids=["new", "adding"])
def test_the_cohort_that_is_spoiled_is_good(kind: str, adding: bool, tmp_path: Path, good_store: MakeStore) -> None:
    inputs, out = COHORTS[kind](tmp_path / "sources"), tmp_path / "place" / "STORE"
    if adding:
        shutil.copytree(good_store(kind), out)
    answer = gimp(*inputs.arguments(out), "--strict")
    assert answer.exit_code == 0, answer.output
    assert "Left out: nothing" in answer.stdout
    assert CohortStore.open(out).manifest.num_cases == len(CASES) + adding * len(STORED_CASES)
    assert gimp("check", out, "--deep").exit_code == 0
    for slide_id, bag in inputs.sources.bags.items():
        np.testing.assert_array_equal(CohortStore.open(out).read_bag(slide_id), bag.astype(np.float16))


def test_the_corpus_is_large_and_each_case_its_own() -> None:
    assert len(CORPUS) >= 80 and len(set(IDS)) == len(IDS)
