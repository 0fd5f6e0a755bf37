"""Gene files of every format give the values that stand in them, whatever the file is called."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from gene_files import (
    GENES,
    SHEET_COLUMNS,
    STAR_COLUMNS,
    SYMBOLS,
    sheet_row,
    some_values,
    star_value,
    write_htseq,
    write_manifest,
    write_matrix,
    write_sheet,
    write_star,
)

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes import GeneMatrix, GeneOptions, read_expression
from gimp_ray.ingest.genes.files import htseq_hint as unit_hint

A, B = "TCGA-05-4244", "TCGA-44-2655"
CASES = [A, B]
STAR = "rna_seq.augmented_star_gene_counts.tsv"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _read(path: Path, cases: list[str] = CASES, sheet: Path | None = None, **options: object) -> GeneMatrix:
    return read_expression([path], cases, GeneOptions(**options), sheet)  # type: ignore[arg-type]


def _download(root: Path) -> tuple[Path, list[Path]]:
    """GDC's download: a folder a file, logs and annotations beside; the files of A and B and of A's normal tissue."""
    folder = root / "gdc"
    files = [write_star(folder / f"uuid-{i}" / f"star-{i}.{STAR}", seed=i) for i in (1, 2, 3)]
    for file in files:
        (file.parent / "logs").mkdir()
        (file.parent / "logs" / f"{file.name}.parcel").write_text("x")
        write_star(file.parent / "logs" / f"{A}-01A.{STAR}", seed=9)
        (file.parent / "annotations.txt").write_text("id\tsubmitter_id\n")
    rows = [sheet_row(files[0], f"{A}-01A"), sheet_row(files[1], f"{B}-01A")]
    write_sheet(
        root / "gdc_sample_sheet.2024-01-01.tsv",
        [*rows, sheet_row(files[2], f"{A}-11A", "Solid Tissue Normal")],
    )
    return folder, files


@pytest.mark.parametrize(
    ("options", "column", "unit"),
    [
        ({}, "fpkm_unstranded", "FPKM"),
        ({"unit": "TPM"}, "tpm_unstranded", "TPM"),
        ({"unit": "counts"}, "unstranded", "counts"),
        ({"column": "stranded_second"}, "stranded_second", "counts"),
        ({"column": "fpkm_uq_unstranded", "unit": "fpkm_uq"}, "fpkm_uq_unstranded", "FPKM-UQ"),
    ],
)
def test_star_counts_of_a_gdc_download(tmp_path: Path, options: dict[str, str], column: str, unit: str) -> None:
    folder, files = _download(tmp_path)
    matrix = _read(folder, sheet=next(tmp_path.glob("*.tsv")), **options)
    assert matrix.gene_ids == list(GENES)  # neither N_unmapped nor the Y copy
    assert matrix.gene_columns == {"symbol": list(SYMBOLS), "gene_type": ["protein_coding"] * 4}
    place = STAR_COLUMNS.index(column)
    for case_id, seed in ((A, 1), (B, 2)):
        expected = np.array([star_value(seed, g, place) for g in range(4)], np.float32)
        np.testing.assert_array_equal(matrix.expression(case_id), expected)
    assert matrix.unit == unit
    assert [(item.id, item.reason) for item in matrix.left_out] == [(f"{A}-11A", "it is normal tissue")]
    assert set(matrix.hashes) == {str(files[0]), str(files[1]), str(next(tmp_path.glob("*.tsv")))}


def test_a_star_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_star(tmp_path / f"{A}-01A.tsv")
    with pytest.raises(InputError, match="no column tpm") as caught:
        _read(path, [A], column="tpm")
    assert caught.value.expected == ", ".join(STAR_COLUMNS)
    with pytest.raises(InputError, match="unit declared is not the file's"):
        _read(path, [A], column="unstranded", unit="TPM")


def test_a_sample_sheet_that_lies_with_the_files_is_used(tmp_path: Path) -> None:
    folder, _ = _download(tmp_path)
    shutil.move(next(tmp_path.glob("*.tsv")), folder)
    matrix = _read(folder)
    assert sorted(matrix.row_of) == CASES
    assert any("gdc_sample_sheet" in note for note in matrix.notes)


def test_two_sample_sheets_are_one_too_many(tmp_path: Path) -> None:
    folder, _ = _download(tmp_path)
    sheet = next(tmp_path.glob("*.tsv"))
    for name in ("a.tsv", "b.tsv"):
        shutil.copy(sheet, folder / name)
    with pytest.raises(InputError, match="several sample sheets") as caught:
        _read(folder)
    assert caught.value.found == f"{folder / 'a.tsv'}, {folder / 'b.tsv'}"
    assert sorted(_read(folder, sheet=sheet).row_of) == CASES


@pytest.mark.parametrize("kind", ["metadata json", "2024 sheet", "listed cells", "own csv", "unzipped"])
def test_sample_sheets_of_every_kind(tmp_path: Path, kind: str) -> None:
    folder, files = _download(tmp_path)
    sheet = tmp_path / "gdc_sample_sheet.2024-01-01.tsv"
    samples = [f"{A}-01A-11R-1755-07", f"{B}-01A-11R-1755-07", f"{A}-11A-01R-1755-07"]
    if kind == "metadata json":
        sheet = tmp_path / "metadata.cart.json"
        document = [
            {"file_name": f.name, "file_id": f.parent.name, "associated_entities": [{"entity_submitter_id": s}]}
            for f, s in zip(files, samples, strict=True)
        ]
        sheet.write_text(json.dumps(document))
    elif kind == "2024 sheet":
        columns = [*SHEET_COLUMNS[:-1], "Tissue Type", "Tumor Descriptor", "Preservation Method"]
        types = [("Tumor", "Primary"), ("Tumor", "Primary"), ("Normal", "Not Applicable")]
        rows = [[*sheet_row(f, s[:16])[:-1], *t, "OCT"] for f, s, t in zip(files, samples, types, strict=True)]
        write_sheet(sheet, rows, columns)
    elif kind == "listed cells":
        rows = [sheet_row(f, s[:16]) for f, s in zip(files, samples, strict=True)]
        rows[2][-1] = "Solid Tissue Normal"
        write_sheet(sheet, [[*row[:5], f"{row[5]}, {row[5]}", f"{row[6]}, {row[6]}", row[7]] for row in rows])
    elif kind == "own csv":
        sheet = tmp_path / "mine.csv"
        lines = [f"{f.name},{s}" for f, s in zip(files, samples, strict=True)]
        sheet.write_text("\n".join(["filename,barcode", *lines]))
    else:
        write_sheet(
            sheet,
            [
                [*row[:1], f"{row[1]}.gz", *row[2:]]
                for row in (
                    sheet_row(f, s[:16], "Solid Tissue Normal" if "-11A" in s else "Primary Tumor")
                    for f, s in zip(files, samples, strict=True)
                )
            ],
        )
    matrix = _read(folder, sheet=sheet)
    assert sorted(matrix.row_of) == CASES
    assert matrix.expression(A)[0] == star_value(1, 0, 4)
    assert [item.reason for item in matrix.left_out] == ["it is normal tissue"]


def test_files_of_several_cases_or_none_are_left_out(tmp_path: Path) -> None:
    folder, files = _download(tmp_path)
    rows = [sheet_row(files[0], f"{A}-01A"), sheet_row(files[1], f"{B}-01A")]
    rows[1][5] = f"{A}, {B}"
    matrix = _read(folder, sheet=write_sheet(tmp_path / "s.tsv", rows))
    assert list(matrix.row_of) == [A]
    assert {item.id: item.reason for item in matrix.left_out} == {
        files[1].name: "the sample sheet names several cases for it",
        files[2].name: "it is not in the sample sheet",
    }


def test_a_sheet_of_another_download_is_refused(tmp_path: Path) -> None:
    folder, _ = _download(tmp_path)
    sheet = write_sheet(tmp_path / "s.tsv", [["x", f"other.{STAR}", "", "", "", A, f"{A}-01A", "Primary Tumor"]])
    with pytest.raises(InputError, match="no gene file is in the sample sheet") as caught:
        _read(folder, sheet=sheet)
    assert caught.value.file == str(sheet)
    with pytest.raises(InputError, match="no sample sheet") as caught:
        _read(folder, sheet=write_sheet(tmp_path / "t.tsv", [["1", "2"]], ["colour", "size"]))
    assert caught.value.found == "colour\tsize"


def test_without_a_sheet_names_tell_the_case(tmp_path: Path) -> None:
    write_star(tmp_path / "by_name" / f"{A}-01A-11R.{STAR}", seed=1)
    write_star(tmp_path / "by_name" / f"{B}-01A" / f"uuid.{STAR}", seed=2)
    matrix = _read(tmp_path / "by_name")
    assert [matrix.expression(c)[0] for c in CASES] == [star_value(1, 0, 4), star_value(2, 0, 4)]
    assert matrix.source_ids == [f"{A}-01A-11R", f"{B}-01A"]
    write_star(tmp_path / "exact" / "C1.tsv", seed=3)
    assert _read(tmp_path / "exact", ["C1"]).expression("C1")[1] == star_value(3, 1, 4)
    write_star(tmp_path / "nobody" / f"uuid.{STAR}")
    with pytest.raises(InputError, match="nothing says which cases") as caught:
        _read(tmp_path / "nobody")
    assert caught.value.fix is not None and "sample sheet" in caught.value.fix


def test_manifests_tell_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    folder, files = _download(tmp_path)
    write_manifest(folder / "gdc_manifest.2024.txt", files, missing=[f"gone.{STAR}", "slide.svs"])
    sheet = next(tmp_path.glob("*.tsv"))
    matrix = _read(folder, sheet=sheet)
    assert sorted(matrix.row_of) == CASES
    missing = [item for item in matrix.left_out if item.kind == "gene file"]
    assert [(item.id, item.reason) for item in missing] == [
        (f"gone.{STAR}", "the manifest lists it, but it is not there")
    ]
    files[1].write_text(files[1].read_text().replace("protein_coding", "lncRNA", 1))
    matrix = _read(folder, sheet=sheet)
    assert list(matrix.row_of) == [A]
    assert "not the one of the manifest" in matrix.without[B].what
    assert matrix.without[B].file == str(files[1])


def test_files_of_one_name_have_each_their_md5(tmp_path: Path) -> None:
    folder = tmp_path / "gdc"
    files = [write_star(folder / name / f"x.{STAR}", seed) for name, seed in ((f"{A}-01A", 1), (f"{B}-01A", 2))]
    write_manifest(folder / "MANIFEST.txt", files)
    assert sorted(_read(folder).row_of) == CASES
    files[1].write_bytes(files[0].read_bytes())
    assert list(_read(folder).row_of) == [A]


@pytest.mark.parametrize("damage", ["cut gzip", "empty", "words", "no such column"])
def test_a_damaged_sample_leaves_its_case_without_genes(tmp_path: Path, damage: str) -> None:
    for name, seed in ((A, 1), (B, 2)):
        write_htseq(tmp_path / "d" / f"{name}-01A.FPKM.txt.gz", {g: 100 * seed + i for i, g in enumerate(GENES)})
    bad = tmp_path / "d" / f"{B}-01A.FPKM.txt.gz"
    if damage == "no such column":
        with pytest.raises(InputError, match="no columns to choose from"):
            _read(tmp_path / "d", column="tpm_unstranded")
        return
    data = {"cut gzip": bad.read_bytes()[:-12], "empty": b"", "words": gzip.compress(b"ENSG1\t1\nENSG2\thigh\n")}
    bad.write_bytes(data[damage])
    matrix = _read(tmp_path / "d")
    assert list(matrix.row_of) == [A] and matrix.expression(A)[2] == 102
    assert matrix.without[B].file == str(bad)
    assert [(item.id, item.case_id) for item in matrix.left_out] == [(f"{B}-01A", B)]


def test_genes_are_aligned_by_id_and_other_genes_refused(tmp_path: Path) -> None:
    values = {g: float(i + 1) * 64 for i, g in enumerate(GENES)}
    write_htseq(tmp_path / f"{A}-01A.FPKM.txt.gz", values)
    other = tmp_path / f"{B}-01A.FPKM.txt.gz"
    write_htseq(other, dict(reversed(values.items())))
    matrix = _read(tmp_path)
    np.testing.assert_array_equal(matrix.expression(B), matrix.expression(A))
    write_htseq(other, {**values, "ENSG00000999999.1": 1.0})
    with pytest.raises(InputError, match="different genes") as caught:
        _read(tmp_path)
    assert caught.value.found == "5 genes; 1 more: ENSG00000999999.1"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("uuid.FPKM.txt.gz", "FPKM"),
        ("uuid.FPKM-UQ.txt.gz", "FPKM-UQ"),
        ("uuid.htseq.counts.gz", "counts"),
        ("uuid.htseq_counts.txt", "counts"),
        ("accounts.txt", None),
        ("myfpkms.txt", None),
    ],
)
def test_units_in_the_names_of_htseq_files(name: str, unit: str | None) -> None:
    assert unit_hint(name) == unit


def test_counts_and_fpkm_in_one_folder_are_refused(tmp_path: Path) -> None:
    values = {g: float(i) for i, g in enumerate(GENES)}
    write_htseq(tmp_path / f"{A}-01A.FPKM.txt.gz", values)
    write_htseq(tmp_path / f"{B}-01A.htseq.counts.gz", values, counts=True)
    with pytest.raises(InputError, match="different units") as caught:
        _read(tmp_path)
    assert caught.value.found is not None
    assert "FPKM: TCGA-05" in caught.value.found and "counts: TCGA-44" in caught.value.found


def test_counts_and_fpkm_of_one_sample_are_no_two_samples(tmp_path: Path) -> None:
    values = {g: float(i) for i, g in enumerate(GENES)}
    write_htseq(tmp_path / "d" / f"{A}-01A.FPKM.txt.gz", values)
    write_htseq(tmp_path / "d" / f"{A}-01A.htseq.counts.gz", values, counts=True)
    with pytest.raises(InputError, match="different units"):
        _read(tmp_path / "d", [A])


def test_htseq_counts_are_known_by_their_content(tmp_path: Path) -> None:
    """The name says nothing, and the rows that belong to no gene are no genes."""
    values = {g: 100.0 * i for i, g in enumerate(GENES)}
    path = write_htseq(tmp_path / f"{A}-01A.txt", values, counts=True)
    matrix = _read(path, [A])
    assert (matrix.unit, matrix.gene_ids) == ("counts", list(GENES))
    with pytest.raises(InputError, match="unit declared is not the file's"):
        _read(path, [A], unit="FPKM")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("TCGA-LUAD.htseq_fpkm.tsv.gz", "log2(FPKM+1)"),
        ("TCGA-LUAD.star_fpkm-uq.tsv.gz", "log2(FPKM-UQ+1)"),
        ("TCGA-LUAD.star_tpm.tsv", "log2(TPM+1)"),
        ("TCGA-LUAD.star_counts.tsv.gz", "log2(counts+1)"),
        ("tcga_RSEM_gene_tpm.gz", "log2(TPM+0.001)"),
        ("TCGA.LUAD.sampleMap_HiSeqV2.gz", "log2(RSEM+1)"),
        ("HiSeqV2", "log2(RSEM+1)"),
        ("HiSeqV2_PANCAN", "unknown"),
    ],
)
def test_xena_matrices(tmp_path: Path, name: str, unit: str) -> None:
    values = {f"{A}-01": [1.5, 2.0], f"{A}-11": [9.0, 9.0], f"{B}-01": [0.0, 3.25], "TCGA-99-0000-01": [5.0, 5.0]}
    path = write_matrix(tmp_path / name, values, GENES[:2], corner="sample")
    matrix = _read(path)
    assert matrix.unit == unit
    np.testing.assert_array_equal(matrix.expression(A), [1.5, 2.0])
    np.testing.assert_array_equal(matrix.expression(B), [0.0, 3.25])
    assert {item.id: item.reason for item in matrix.left_out} == {
        f"{A}-11": "it is normal tissue",
        "TCGA-99-0000-01": "its case is not in the case table",
    }


@pytest.mark.parametrize(
    ("name", "meta", "unit"),
    [
        ("data_mrna_seq_v2_rsem.txt", "", "RSEM"),
        ("data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt", "", "z-score"),
        ("data_mrna_seq_fpkm.txt", "", "FPKM"),
        ("data_mrna_seq_read_counts.txt", "", "counts"),
        ("data_expression.txt", "profile_name: mRNA expression (RNA Seq TPM)\n", "TPM"),
        ("data_expression.txt", "profile_name: RSEM\ndatatype: Z-SCORE\n", "z-score"),
        ("data_expression.txt", "profile_name: log RNA Seq TPM\n", "unknown"),
    ],
)
def test_cbioportal(tmp_path: Path, name: str, meta: str, unit: str) -> None:
    samples = {f"{A}-01": [100.5, 200.0, 3.0], f"{B}-01": [1.0, 2.0, 4.0]}
    beside = {"Entrez_Gene_Id": ["7157", "1956", "100130426"]}
    path = write_matrix(tmp_path / name, samples, ["TP53", "EGFR", ""], "Hugo_Symbol", beside)
    if meta:
        (tmp_path / "meta_expression.txt").write_text(f"{meta}data_filename: {name}\n")
    matrix = _read(path)
    assert matrix.gene_ids == ["TP53", "EGFR", "100130426"]
    assert matrix.gene_columns["entrez"] == ["7157", "1956", "100130426"]
    assert matrix.unit == unit
    np.testing.assert_array_equal(matrix.expression(A), [100.5, 200.0, 3.0])
    assert _read(path, names="entrez").gene_ids == ["7157", "1956", "100130426"]


def test_cbioportal_rows_without_any_name_are_counted(tmp_path: Path) -> None:
    beside = {"Entrez_Gene_Id": ["7157", "NA", ""]}
    path = write_matrix(
        tmp_path / "d.txt", {A: [1.0, 2.0, 3.0], B: [4.0, 5.0, 6.0]}, ["TP53", "", ""], "Hugo_Symbol", beside
    )
    matrix = _read(path, unit="z-score")
    assert matrix.gene_ids == ["TP53"]
    assert "2 rows of d.txt without a gene name were left out" in matrix.notes


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_anndata(tmp_path: Path, layout: str) -> None:
    anndata = pytest.importorskip("anndata")
    from scipy import sparse

    values = np.array([[0, 1, 2], [3, 0, 5], [7, 7, 7]], np.float32)
    to = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[layout]
    with pd.option_context("future.infer_string", False):  # anndata cannot write pandas' newer strings
        data = anndata.AnnData(
            to(values),
            obs=pd.DataFrame({"case_id": [A, B, "other"]}, index=["s1", "s2", "s3"]),
            var=pd.DataFrame({"gene_name": list(SYMBOLS[:3]), "n_cells": [1, 2, 3]}, index=list(GENES[:3])),
            layers={"counts": to(values * 10)},
        )
        data.uns["unit"] = "log2(TPM+1)"
        data.write_h5ad(tmp_path / "a.h5ad")
    matrix = _read(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(matrix.expression(B), values[1])
    assert (matrix.unit, matrix.gene_ids) == ("log2(TPM+1)", list(GENES[:3]))
    assert matrix.gene_columns == {"symbol": list(SYMBOLS[:3])}
    with pytest.raises(InputError, match="on the other axis") as caught:
        _read(tmp_path / "a.h5ad", orientation="genes_by_cases")
    assert caught.value.fix == "say gene_orientation: cases_by_genes"
    np.testing.assert_array_equal(_read(tmp_path / "a.h5ad", [B]).expression(B), values[1])
    matrix = _read(tmp_path / "a.h5ad", column="counts")
    np.testing.assert_array_equal(matrix.expression(B), values[1] * 10)
    assert matrix.unit == "counts"
    with pytest.raises(InputError, match="no layer tpm") as caught:
        _read(tmp_path / "a.h5ad", column="tpm")
    assert caught.value.found == "counts"


def test_anndata_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:  # known by its groups, not its name
        file.create_group("obs"), file.create_group("var")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(InputError, match="needs the package anndata") as caught:
        _read(tmp_path / "a.h5")
    assert caught.value.fix == "pip install 'gimp-ray[formats]'"


def test_text_columns_stand_beside_genes_alone(tmp_path: Path) -> None:
    beside = {"gene_name": SYMBOLS, "Entrez_Gene_Id": ["1", "2", "3", "4"], "Cytoband": ["p", "q", "NA", "q"]}
    samples = {c: some_values(4, i) for i, c in enumerate(CASES)}
    matrix = _read(write_matrix(tmp_path / "g.tsv", samples, GENES, beside=beside))
    assert matrix.gene_columns == {
        "symbol": list(SYMBOLS),
        "entrez": ["1", "2", "3", "4"],
        "cytoband": ["p", "q", None, "q"],
    }
    np.testing.assert_array_equal(matrix.expression(B), np.array(samples[B], np.float32))
    frame = pd.DataFrame(samples, index=list(GENES)).T.assign(label="x", age=70)
    for path in (tmp_path / "c.csv", tmp_path / "c.parquet"):
        frame.to_csv(path) if path.suffix == ".csv" else frame.to_parquet(path)
        with pytest.raises(InputError, match="columns that are no genes") as caught:
            _read(path)
        assert caught.value.found == "label, age"


@pytest.mark.parametrize("write", ["parquet", "hdf5", "gzip"])
def test_files_are_known_by_their_content(tmp_path: Path, write: str) -> None:
    path = tmp_path / "genes.dat"
    frame = pd.DataFrame({A: [1.0, 2.0], B: [3.0, 4.0]}, index=["TP53", "EGFR"])
    if write == "parquet":
        frame.to_parquet(path)
    elif write == "gzip":
        path.write_bytes(gzip.compress(frame.to_csv().encode()))
    else:
        with h5py.File(path, "w") as file:
            file["expression"], file["case_id"], file["gene_id"] = frame.T.to_numpy(), CASES, list(frame.index)
            file["gene_type"] = ["protein_coding", "lncRNA"]
    matrix = _read(path)
    assert matrix.expression(B).tolist() == [3.0, 4.0]
    assert matrix.gene_columns == ({"gene_type": ["protein_coding", "lncRNA"]} if write == "hdf5" else {})


def test_parquet_keeps_text_columns_of_genes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"gene_id": GENES, "gene_name": SYMBOLS, A: some_values(4), "other": 1.0, B: 2})
    frame.to_parquet(tmp_path / "g.parquet")
    matrix = _read(tmp_path / "g.parquet")
    assert matrix.gene_columns == {"symbol": list(SYMBOLS)}
    np.testing.assert_array_equal(matrix.expression(A), np.array(some_values(4), np.float32))
    np.testing.assert_array_equal(matrix.expression(B), [2, 2, 2, 2])


def test_a_matrix_of_one_sample_is_no_htseq_file(tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_text("gene\t101\nTP53\t5\n")
    matrix = _read(tmp_path / "g.tsv", ["101"])
    assert (matrix.gene_ids, matrix.expression("101").tolist()) == (["TP53"], [5.0])


def test_headers_as_other_tools_write_them(tmp_path: Path) -> None:
    """R's header is one name short and has dots in barcodes; GCT has two lines before the header."""
    (tmp_path / "r.txt").write_text(f"{A}-01A\t{B}-01A\nTP53\t1\t2\nEGFR\t3\t4\n".replace("-", "."))
    (tmp_path / "g.gct").write_text(f"#1.2\n2\t2\nName\tDescription\t{A}\t{B}\nENSG1\tTP53\t1\t2\nENSG2\tEGFR\t3\t4\n")
    for name in ("r.txt", "g.gct"):
        np.testing.assert_array_equal(_read(tmp_path / name).expression(B), [2, 4])


@pytest.mark.parametrize(
    ("content", "message", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS", "git lfs pull"),
        (b"PK\x03\x04\x00\x00", "unknown kind", "unzip"),
        (b"\x00\x01\x02", "unknown kind", "save the matrix"),
    ],
)
def test_what_is_no_gene_file_says_so(tmp_path: Path, content: bytes, message: str, word: str) -> None:
    (tmp_path / "genes.data").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path / "genes.data")
    assert caught.value.fix is not None and word in caught.value.fix


def test_a_link_back_is_walked_once(tmp_path: Path) -> None:
    folder, _ = _download(tmp_path)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    matrix = _read(folder, sheet=next(tmp_path.glob("*.tsv")))
    assert len(matrix.source_ids) + len(matrix.left_out) == 3


def test_a_folder_of_matrices_names_them(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "study" / "m.tsv", {A: [1.0]}, ["TP53"])
    with pytest.raises(InputError, match="no per-sample gene files") as caught:
        _read(tmp_path / "study")
    assert caught.value.found is not None and str(path) in caught.value.found


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine")
def test_real_gdc_files() -> None:
    """Per-sample FPKM files against the same cases' log2(FPKM + 1) in the matrix of the cohort, in float16."""
    rna = SHARED / "rna"
    cases = ["TCGA-49-6745", "TCGA-55-6985", "TCGA-55-6975", "TCGA-85-A50Z"]
    matrix = _read(rna / "raw_luad_fpkm", cases, rna / "raw_samples.csv", par_y="keep")
    assert (matrix.unit, len(matrix.gene_ids)) == ("FPKM", 60_483)
    assert list(matrix.row_of) == cases[:2]
    assert "normal tissue" in matrix.without["TCGA-55-6975"].what
    with h5py.File(rna / "tcga_luad_log2fpkm_60483.h5") as file:
        row_of = {name: i for i, name in enumerate(file["case_id"].asstr()[:])}
        place = {gene: i for i, gene in enumerate(file["gene_id"].asstr()[:])}
        order = [place[gene] for gene in matrix.gene_ids]
        for case_id in cases[:2]:
            logged = np.log2(matrix.expression(case_id).astype(np.float64) + 1).astype(np.float16)
            # the matrix was rounded once on its way: 18 values of 60,483 differ in their last bit
            np.testing.assert_array_max_ulp(logged, file["expression"][row_of[case_id]][order], maxulp=1)
    assert len(_read(rna / "raw_luad_fpkm", cases[:2], rna / "raw_samples.csv").gene_ids) == 60_483 - 50
    with pytest.raises(InputError, match="different units"):
        read_expression([rna / "raw_luad_fpkm", rna / "raw_lusc_counts"], cases, GeneOptions(), rna / "raw_samples.csv")
    counts = _read(rna / "raw_lusc_counts", cases, rna / "raw_samples.csv")
    assert counts.unit == "counts" and list(counts.row_of) == cases[3:]
