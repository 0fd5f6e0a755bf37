"""Several modalities in a store, cases that lack some of them or a label, and what is refused at use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cohort_files import Sources, make_sources, write_csv

from gimp_ray.cli.store import info
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.plan import Batching, epoch_plan, index_cases
from gimp_ray.ingest.ingest import IngestOptions
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.merge import merge_stores

CNV = ("9p21", "7p11", "17q12")


def _cnv(sources: Sources, cases: list[str]) -> Path:
    path = sources.root / "cnv.tsv"
    rows = [[feature, *(str(round(0.1 * i - 0.2 * j, 3)) for j in range(len(cases)))] for i, feature in enumerate(CNV)]
    write_csv(path, ["segment", *cases], rows, separator="\t")
    return path


def _values(cases: list[str], case_id: str) -> np.ndarray:
    return np.array([round(0.1 * i - 0.2 * cases.index(case_id), 3) for i in range(len(CNV))], dtype=np.float32)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return make_sources(tmp_path)


def test_further_vectors_stand_beside_the_genes(sources: Sources) -> None:
    having = ["A0", "A2", "B1"]
    store = sources.store(vectors={"cnv": _cnv(sources, having)}, vector_units={"cnv": "log2 ratio"})
    vector = store.manifest.vectors["cnv"]
    assert list(store.manifest.modalities) == ["patches", "rna", "cnv"]
    assert (vector.unit, vector.num_features, vector.num_cases) == ("log2 ratio", 3, 3)
    assert store.features("cnv") == list(CNV) and store.features("rna") == store.gene_ids
    found = store.read_vector("cnv", ["B1", "A0", "B1"])
    np.testing.assert_array_equal(found, [_values(having, case) for case in ("B1", "A0", "B1")])
    np.testing.assert_array_equal(store.read_vector("rna", ["A0"]), store.read_genes(["A0"]))
    assert store.complete_cases("cnv", "rna", "patches") == having
    with pytest.raises(InputError, match="cases have no values of cnv") as caught:
        store.read_vector("cnv", ["B1", "B0", "A1"])
    assert caught.value.case == "A1, B0" and "complete_cases" in str(caught.value.fix)
    with pytest.raises(InputError, match="no modality protein") as caught:
        store.read_vector("protein", ["A0"])
    assert caught.value.found == "patches, rna, cnv"
    assert check_store(sources.out, deep=True).ok
    report = json.loads((sources.out / "ingest_report.json").read_text())
    assert "3 of 6 stored cases have no cnv" in report["notes"]
    text = CliRunner().invoke(info, [str(sources.out)], catch_exceptions=False).output
    assert "3 cases have no cnv" in text and "cnv" in text and "unit log2 ratio" in text


def test_stores_with_further_vectors_are_added_to_and_merged(sources: Sources, tmp_path: Path) -> None:
    having = ["A0", "A2", "B1"]
    cnv = _cnv(sources, having)
    last = sources.rows.pop()
    sources.write_cases()
    sources.ingest(vectors={"cnv": cnv})
    sources.rows.append(last)
    sources.write_cases()
    store = sources.store()  # without the file: what is stored stays
    assert store.complete_cases("cnv") == having and store.manifest.num_cases == 6
    more = ["A0", "A2", "B1", "B2"]
    report = sources.ingest(vectors={"cnv": _cnv(sources, more)})
    assert report.manifest.vectors["cnv"].num_cases == 4
    store = CohortStore.open(sources.out)
    np.testing.assert_array_equal(store.read_vector("cnv", ["B2", "A2"]), [_values(more, c) for c in ("B2", "A2")])
    assert check_store(sources.out, deep=True).ok
    other = make_sources(tmp_path / "other", case_ids=("C0", "C1", "D0"))
    other.ingest(vectors={"cnv": _cnv(other, ["C0", "C1", "D0"])})
    merge_stores([sources.out, other.out], tmp_path / "ALL")
    merged = CohortStore.open(tmp_path / "ALL")
    assert merged.complete_cases("cnv") == ["A0", "A2", "B1", "B2", "C0", "C1", "D0"]
    np.testing.assert_array_equal(merged.read_vector("cnv", ["A2"]), [_values(more, "A2")])
    assert check_store(tmp_path / "ALL", deep=True).ok


def test_incomplete_cases_are_kept_if_asked_and_refused_at_use(sources: Sources) -> None:
    (sources.patches / "A0-DX1.h5").unlink()
    sources.rows[1][2] = ""
    sources.write_cases()
    sources.write_genes([case for case in sources.expression if case != "B2"])
    report = sources.ingest(incomplete="keep", split_schemes=("kfold",))
    store = CohortStore.open(sources.out)
    assert store.cases["case_id"].to_pylist() == ["A0", "A1", "A2", "B0", "B1", "B2"]
    assert store.cases["label"].to_pylist() == ["LUAD", None, "LUAD", "LUSC", "LUSC", "LUSC"]
    assert store.classes == ("LUAD", "LUSC")
    notes = " ".join(report.notes)
    for part in (
        "1 of 6 stored cases have no label",
        "1 of 6 stored cases have no rna",
        "1 of 6 stored cases have no slide",
    ):
        assert part in notes
    assert store.complete_cases("patches", "rna", "label") == ["A2", "B0", "B1"]
    assert check_store(sources.out, deep=True).ok, str(check_store(sources.out))
    assert "A2" in index_cases(store, ["A2", "B0"]).case_ids.tolist()
    with pytest.raises(InputError, match="label") as caught:
        index_cases(store, ["A1", "A2"])
    assert caught.value.case == "A1" and caught.value.fix
    with pytest.raises(InputError, match="slide") as caught:
        epoch_plan(0, 0, index_cases(store, ["A0", "A2"]), Batching(balance="natural", window=4))
    assert caught.value.case == "A0" and caught.value.fix
    # adding keeps what is there, and completes it
    sources.write_genes()
    report = sources.ingest()
    assert report.manifest.num_cases == 6


def test_incomplete_cases_are_left_out_by_default(sources: Sources) -> None:
    sources.rows[1][2] = ""
    sources.write_cases()
    report = sources.ingest()
    assert report.manifest.num_cases == 5 and [item.id for item in report.left_out if item.kind == "case"] == ["A1"]


@pytest.mark.parametrize("name", ["rna", "Patches", "label", "a b", ""])
def test_names_a_modality_cannot_have(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot have this name"):
        IngestOptions(vectors={name: Path("f.tsv")})
    with pytest.raises(ConfigError, match="without a file"):
        IngestOptions(vector_units={"cnv": "log2"})
