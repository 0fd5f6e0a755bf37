"""Every bad input through the command line: the promised message, exit code, and what is at the store's place.

Each runs with `--strict`, which refuses, and without it; into a new store and into one that is there. Odd inputs that
are good give the same store as the clean ones. Left out: what the machine does to an ingest (`test_machine.py`).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from gimp_ray.store import CohortStore
from gimp_ray.store.manifest import checksum
from tests.bad_inputs.bad_genes import BAD_GENES
from tests.bad_inputs.bad_patches import BAD_PATCHES
from tests.bad_inputs.bad_tables import BAD_TABLES
from tests.bad_inputs.corpus import CASES, COHORTS, STORED_CASES, Case, Inputs, copied, plain_cohort
from tests.bad_inputs.running import assert_error, gimp, state
from tests.bad_inputs.tolerated import TOLERATED, with_splits

CORPUS: tuple[Case, ...] = (*BAD_PATCHES, *BAD_GENES, *BAD_TABLES)
IDS = [case.name for case in CORPUS]


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


@dataclass(frozen=True)
class Good:
    """A cohort to copy and spoil, and a store of other cases of its kind with what it holds."""

    inputs: Inputs
    store: Path
    bags: dict[str, bytes]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Good]:
    """The good cohort and store of each kind, made once."""

    @functools.cache
    def make(kind: str) -> Good:
        folder = tmp_path_factory.mktemp(kind)
        store = folder / "STORE"
        answer = gimp(*COHORTS[kind](folder / "stored", STORED_CASES).arguments(store), "--strict")
        assert answer.exit_code == 0, answer.output
        return Good(COHORTS[kind](folder / "sources"), store, bags(store))

    return make


MakeGood = Callable[[str], Good]


def assert_refused(answer: Result, case: Case) -> None:
    """The refusal that the case promises."""
    assert_error(answer, *case.says, has_file=case.has_file)


def assert_left_out(answer: Result, case: Case, out: Path, before: dict[str, bytes]) -> None:
    """Exit code 0, a store of all the rest, and a report that says what was left out and why."""
    assert answer.exit_code == 0, (answer.output, answer.exception)
    store = CohortStore.open(out)
    stored = {*STORED_CASES} if before else set()
    assert set(store.cases["case_id"].to_pylist()) == stored | set(CASES) - set(case.left_out)
    if before:
        after = bags(out)
        assert {name: after[name] for name in before} == before, "what was stored before is as it was"
    reports = sorted(out.glob("ingest_report*.json"), key=lambda path: path.stat().st_mtime_ns)
    items = json.loads(reports[-1].read_text())["left_out"]
    text = "\n".join(str(value) for item in items for value in item.values())
    for word in case.says:
        assert word in text, f"{word!r} is not in the report:\n{text}"
    for case_id in case.left_out:
        assert any(item.get("case_id") == case_id for item in items)
    assert "Left out (all of it in ingest_report.json):" in answer.stdout
    assert all(str(item["id"]) in answer.stdout for item in items[:5])


@pytest.mark.parametrize("case", CORPUS, ids=IDS)
def test_a_bad_input(case: Case, tmp_path: Path, good: MakeGood) -> None:
    clean = good(case.kind)
    inputs = copied(clean.inputs, tmp_path / "sources")
    case.spoil(inputs)
    sources = state(tmp_path / "sources")
    new, adding = tmp_path / "new", tmp_path / "adding"
    new.mkdir()
    shutil.copytree(clean.store, adding / "STORE")
    for place, stored in ((new, {}), (adding, clean.bags)):
        before = state(place)
        assert_refused(gimp(*inputs.arguments(place / "STORE"), "--strict"), case)
        assert state(place) == before, f"{place.name}: nothing is left behind, and a store is as it was"
        answer = gimp(*inputs.arguments(place / "STORE"))
        if case.refused:
            assert_refused(answer, case)
            assert state(place) == before, f"{place.name}: nothing is left behind, and a store is as it was"
        else:
            assert_left_out(answer, case, place / "STORE", stored)
            assert [path.name for path in place.iterdir()] == ["STORE"]
    assert state(tmp_path / "sources") == sources, "sources are never written to, and no pickle is executed"


@pytest.mark.parametrize("name", TOLERATED)
def test_an_odd_input_gives_the_same_store(name: str, tmp_path: Path, clean_fingerprint: str) -> None:
    inputs = with_splits(plain_cohort(tmp_path / "sources"))
    TOLERATED[name](inputs)
    answer = gimp(*inputs.arguments(tmp_path / "STORE"), "--strict")
    assert answer.exit_code == 0, answer.output
    assert CohortStore.open(tmp_path / "STORE").fingerprint == clean_fingerprint


@pytest.fixture(scope="module")
def clean_fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the store that the clean inputs give."""
    folder = tmp_path_factory.mktemp("clean")
    assert gimp(*with_splits(plain_cohort(folder)).arguments(folder / "STORE"), "--strict").exit_code == 0
    return CohortStore.open(folder / "STORE").fingerprint


def test_slide_ids_with_blanks_and_umlauts(tmp_path: Path) -> None:
    inputs = plain_cohort(tmp_path / "sources")
    names = {f"{case_id}-DX1": f"{case_id} Größe 1 (a)" for case_id in CASES}
    for old, new in names.items():
        (inputs.sources.patches / f"{old}.h5").rename(inputs.sources.patches / f"{new}.h5")
    inputs.sources.rows = [
        [case_id, f"{names[f'{case_id}-DX1']}.svs", label] for case_id, _, label in inputs.sources.rows
    ]
    inputs.sources.write_cases()
    assert gimp(*inputs.arguments(tmp_path / "STORE"), "--strict").exit_code == 0
    store = CohortStore.open(tmp_path / "STORE")
    assert store.slides["slide_id"].to_pylist() == sorted(names.values())
    for old, new in names.items():
        np.testing.assert_array_equal(store.read_bag(new), inputs.sources.bags[old].astype(np.float16))


# --- what is at the store's place


def _a_file(out: Path) -> None:
    out.write_text("mine")


def _a_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")


def _of_a_store(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        inputs = plain_cohort(out.parent.parent / "before", STORED_CASES)
        assert gimp(*inputs.arguments(out)).exit_code == 0
        change(out)

    return make


def _cut(name: str) -> Callable[[Path], object]:
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-40])


def _in_manifest(old: str, new: str) -> Callable[[Path], object]:
    def change(out: Path) -> None:
        text = (out / "manifest.json").read_text()
        assert old in text
        changed = json.loads(text.replace(old, new))
        (out / "manifest.json").write_text(json.dumps({**changed, "checksum": checksum(changed)}))

    return change


# what is there -> (how, what is said, further options)
AT_THE_PLACE: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "a file": (_a_file, ("exists already and is no store", "a file"), ()),
    "a folder": (_a_folder, ("exists already and is no store", "a folder"), ()),
    "a link to nothing": (lambda out: out.symlink_to("nowhere"), ("exists already and is no store",), ()),
    "a link to itself": (lambda out: out.symlink_to(out.name), ("exists already and is no store",), ()),
    "no manifest": (_of_a_store(lambda o: (o / "manifest.json").unlink()), ("exists already and is no store",), ()),
    "manifest cut short": (_of_a_store(_cut("manifest.json")), ("manifest", "damaged"), ()),
    "manifest of another version": (_of_a_store(_in_manifest('"version": 3', '"version": 99')), ("version", "99"), ()),
    "slides cut short": (_of_a_store(_cut("slides.parquet")), ("slides.parquet",), ()),
    "cases gone": (_of_a_store(lambda o: (o / "cases.parquet").unlink()), ("cases.parquet",), ()),
    "expression cut short": (_of_a_store(_cut("expression.parquet")), ("expression.parquet",), ()),
    "another dtype": (_of_a_store(lambda o: None), ("dtype is another", "float32"), ("--dtype", "float32")),
    "another unit": (
        _of_a_store(_in_manifest('"unit": "unknown"', '"unit": "TPM"')), ("another unit", "FPKM"),
        ("--gene-unit", "FPKM"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", AT_THE_PLACE)
def test_something_else_at_the_place_of_the_store(what: str, tmp_path: Path) -> None:
    make, says, options = AT_THE_PLACE[what]
    inputs, place = plain_cohort(tmp_path / "sources"), tmp_path / "place"
    place.mkdir()
    make(place / "STORE")
    before = state(place)
    for more in ((), ("--strict",), ("--dry-run",)):
        assert_error(gimp(*inputs.arguments(place / "STORE"), *options, *more), *says)
        assert state(place) == before


@pytest.mark.parametrize("kind", COHORTS)
@pytest.mark.parametrize("adding", [False, True], ids=["new", "adding"])
def test_the_cohort_that_is_spoiled_is_good(kind: str, adding: bool, tmp_path: Path, good: MakeGood) -> None:
    inputs, out = COHORTS[kind](tmp_path / "sources"), tmp_path / "place" / "STORE"
    if adding:
        shutil.copytree(good(kind).store, out)
    answer = gimp(*inputs.arguments(out), "--strict")
    assert answer.exit_code == 0, answer.output
    assert "Left out: nothing" in answer.stdout
    assert CohortStore.open(out).manifest.num_cases == len(CASES) + adding * len(STORED_CASES)
    assert gimp("check", out, "--deep").exit_code == 0
    for slide_id, bag in inputs.sources.bags.items():
        np.testing.assert_array_equal(CohortStore.open(out).read_bag(slide_id), bag.astype(np.float16))


def test_the_corpus_is_large_and_each_case_its_own() -> None:
    assert len(CORPUS) >= 80 and len(set(IDS)) == len(IDS)
