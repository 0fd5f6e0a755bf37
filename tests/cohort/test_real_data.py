"""Real files of real tools: CLAM-style features, CLAM's coordinates, TCGA expression and clinical table."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from cohort_files import features, write_csv, write_h5

from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine"),
]
QUIET = IngestOptions(workers=1, progress=False)


def test_pseudoslides(tmp_path: Path) -> None:
    folder = SHARED / "patches" / "pseudoslides"
    with (folder / "labels.csv").open() as stream:
        labels = {row["slide_id"]: row["label"] for row in csv.DictReader(stream)}
    files = {path.stem: path for path in sorted(folder.glob("*.h5"))}
    assert len(files) == 12
    cases = write_csv(tmp_path / "cases.csv", ("case_id", "slide_id", "label"), [[s, s, labels[s]] for s in labels])
    report = ingest_cohort(patches=folder, genes=None, cases=cases, out=tmp_path / "S", options=QUIET)
    store = CohortStore.open(tmp_path / "S")
    assert store.slides["slide_id"].to_pylist() == sorted(files)
    assert store.classes == ("LUAD", "LUSC", "NORMAL")
    assert store.manifest.encoder == "efficientnet-lite0 (ImageNet), global average pool"
    assert set(store.slides["patch_size"].to_pylist()) == {224}
    for slide_id, path in files.items():
        with h5py.File(path) as file:
            np.testing.assert_array_equal(store.read_bag(slide_id), file["features"][:].astype(np.float16))
            np.testing.assert_array_equal(store.read_coords(slide_id), file["coords"][:])
    missing = {item.id for item in report.left_out if item.kind == "slide"}
    assert missing == set(labels) - set(files)
    assert check_store(tmp_path / "S", deep=True).ok


def test_bags_of_real_slides(tmp_path: Path) -> None:
    folder = SHARED / "patches" / "wsi_bags"
    rows = [["p1", "TCGA-CR-7395-01A-01-TS1.svs", "x"], ["p2", "CMU-1-Small-Region.svs", "y"]]
    cases = write_csv(tmp_path / "cases.csv", ("case_id", "slide_id", "label"), rows)
    ingest_cohort(patches=folder, genes=None, cases=cases, out=tmp_path / "S", options=QUIET)
    store = CohortStore.open(tmp_path / "S")
    rows_of = {row["slide_id"]: row for row in store.slides.to_pylist()}
    assert {s: row["n_patches"] for s, row in rows_of.items()} == {
        "CMU-1-Small-Region": 59,
        "TCGA-CR-7395-01A-01-TS1": 204,
    }
    assert all(row["patch_size_level0"] == 224 for row in rows_of.values())
    for slide_id, row in rows_of.items():
        with h5py.File(folder / f"{slide_id}.h5") as file:
            coords = file["coords"][:]
            np.testing.assert_array_equal(store.read_window(slide_id, 7, 40), file["features"][7:47].astype(np.float16))
        np.testing.assert_array_equal(store.read_coords(slide_id), coords)
        assert [row["x_min"], row["y_min"], row["x_max"], row["y_max"]] == [*coords.min(0), *coords.max(0)]


def test_clam_s_coordinates_keep_their_geometry(tmp_path: Path) -> None:
    """Real scan order of thousands of patches; features made up."""
    known, level_dims = {}, {}
    for i, path in enumerate(sorted((SHARED / "patches" / "clam_coords").glob("*.h5"))):
        with h5py.File(path) as file:
            attributes = dict(file["coords"].attrs)
            level_dims[path.stem] = attributes["level_dim"]
            known[path.stem] = (file["coords"][:], features(len(file["coords"]), seed=i))
        coords, values = known[path.stem]
        write_h5(tmp_path / "p" / path.name, values, coords, **attributes)
    assert len(known) == 2
    cases = write_csv(
        tmp_path / "cases.csv", ("case_id", "slide_id", "label"), [[s[:12], f"{s}.svs", s[5:7]] for s in known]
    )
    ingest_cohort(patches=tmp_path / "p", genes=None, cases=cases, out=tmp_path / "S", options=QUIET)
    store = CohortStore.open(tmp_path / "S")
    for slide_id, (coords, values) in known.items():
        np.testing.assert_array_equal(store.read_coords(slide_id), coords)
        start = len(coords) - 700
        np.testing.assert_array_equal(store.read_window(slide_id, start, 700), values[start:].astype(np.float16))
        row = next(r for r in store.slides.to_pylist() if r["slide_id"] == slide_id)
        assert (row["patch_size"], row["patch_level"], row["patch_size_level0"]) == (512, 0, 512)
        assert (row["level0_width"], row["level0_height"]) == tuple(level_dims[slide_id])


def test_tcga_expression_with_the_clinical_table(tmp_path: Path) -> None:
    genes = SHARED / "rna" / "tcga_nsclc_log2fpkm.h5"
    with (SHARED / "clinical" / "tcga_nsclc_clinical.csv").open() as stream:
        header, *rows = csv.reader(stream)
    cases = write_csv(tmp_path / "cases.csv", [*header[:-1], "label"], rows)
    report = ingest_cohort(patches=None, genes=genes, cases=cases, out=tmp_path / "S", options=QUIET)
    store = CohortStore.open(tmp_path / "S")
    assert (store.manifest.num_cases, store.num_genes, store.classes) == (900, 25_223, ("LUAD", "LUSC"))
    assert store.manifest.gene_unit == "log2(FPKM+1)"
    given = ["age", "site", "survival_months", "censorship", "is_female"]
    assert store.cases.schema.names == ["case_id", "label", *given, "event", "sex"]
    with h5py.File(genes) as file:
        position = {case_id: i for i, case_id in enumerate(file["case_id"].asstr()[:])}
        truth, gene_ids = file["expression"][:], list(file["gene_id"].asstr()[:])
    assert store.gene_ids == gene_ids
    asked = store.cases["case_id"].to_pylist()[::-37]
    np.testing.assert_array_equal(store.read_genes(asked), truth[[position[c] for c in asked]].astype(np.float32))
    without = {item.id for item in report.left_out if item.kind == "case"}
    assert without == {row[0] for row in rows} - set(position) and len(without) == 3
    split = store.split("kfold", 0)
    assert (len(split.train), len(split.val), len(split.test)) == (540, 180, 180)
    label = dict(zip(store.cases["case_id"].to_pylist(), store.cases["label"].to_pylist(), strict=True))
    assert sum(label[c] == "LUAD" for c in split.test) == 90
    assert check_store(tmp_path / "S").ok
