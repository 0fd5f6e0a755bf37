"""Samples, units and gene names follow their rules, and what the rules cannot decide is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
from gene_files import GENES, sheet_row, some_values, write_htseq, write_matrix, write_sheet, write_star
from hypothesis import given
from hypothesis import strategies as st

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.genes import GeneMatrix, GeneOptions, read_expression
from gimp_ray.ingest.genes.names import is_par_y, x_copy
from gimp_ray.ingest.genes.samples import Sample, barcode_in, choose_samples, code_of
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.gene_sets import without_version
from gimp_ray.store.units import LINEAR, canonical, is_linear, looks_linear, parse_unit

A, B = "TCGA-05-4244", "TCGA-44-2655"


def _read(*paths: Path, cases: tuple[str, ...] = (A, B), sheet: Path | None = None, **options: object) -> GeneMatrix:
    return read_expression(paths, cases, GeneOptions(**options), sheet)  # type: ignore[arg-type]


def _matrix(root: Path, rows: dict[str, list[float]], name: str = "g.tsv", samples: tuple[str, ...] = (A, B)) -> Path:
    """Genes by samples; the row names may repeat with a `#number` that is cut off."""
    columns = {sample: [values[i] for values in rows.values()] for i, sample in enumerate(samples)}
    return write_matrix(root / name, columns, [gene.partition("#")[0] for gene in rows])


# -- samples


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["01A-11R-1", "01A-12R-1"], "01A-11R-1"),
        (["01B-11R-1", "01A-99R-1"], "01A-99R-1"),
        (["06A-11R-1", "01B-11R-1"], "01B-11R-1"),
        (["02A-11R-1", "05A-11R-1"], "05A-11R-1"),
        (["11A-11R-1", "01A-11R-1"], "01A-11R-1"),
        (["06A-11R-1", "02B-11R-1"], "02B-11R-1"),
        (["09A-11R-1", "03A-11R-1"], "03A-11R-1"),
        (["11A-11R-1", "10A-11R-1"], None),
    ],
)
def test_the_primary_tumour_is_used(tmp_path: Path, names: list[str], used: str | None) -> None:
    for order in itertools.permutations(names):
        samples = {f"{A}-{name}": [float(names.index(name) + 1)] for name in order} | {B: [9.0]}
        matrix = _read(write_matrix(tmp_path / "g.tsv", samples, ["TP53"]))
        if used is None:
            assert list(matrix.row_of) == [B]
            assert matrix.without[A].what == "the case's only gene samples are normal tissue"
            assert {item.reason for item in matrix.left_out} == {"it is normal tissue"}
            continue
        assert matrix.source_ids[matrix.row_of[A]] == f"{A}-{used}"
        assert matrix.expression(A)[0] == names.index(used) + 1
        [other] = matrix.left_out
        assert (other.kind, other.case_id, other.counts) == ("gene sample", A, False)
        assert other.id == f"{A}-{next(name for name in names if name != used)}"
    assert any("no primary tumour" in note for note in matrix.notes) == (used in ("02B-11R-1",))


def test_samples_mean_and_refuse(tmp_path: Path) -> None:
    samples = {f"{A}-01A": [1.0, 4.0], f"{A}-01B": [3.0, 8.0], f"{A}-11A": [99.0, 99.0], f"{B}-06A": [5.0, 5.0]}
    path = write_matrix(tmp_path / "g.tsv", samples, ["TP53", "EGFR"])
    matrix = _read(path, samples="mean")
    np.testing.assert_array_equal(matrix.expression(A), [2.0, 6.0])
    np.testing.assert_array_equal(matrix.expression(B), [5.0, 5.0])
    assert f"{A}-01A + {A}-01B" in matrix.source_ids
    with pytest.raises(InputError, match="several samples") as caught:
        _read(path, samples="refuse")
    assert caught.value.case == A and caught.value.found is not None and f"{A}-11A" in caught.value.found


def test_the_sample_sheet_s_type_beats_the_barcode(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    files = [write_star(folder / f"{i}" / f"{i}.tsv", seed=i) for i in (1, 2)]
    rows = [sheet_row(files[0], f"{A}-01A", "Solid Tissue Normal"), sheet_row(files[1], f"{A}-02A", "Primary Tumor")]
    matrix = _read(folder, sheet=write_sheet(tmp_path / "s.tsv", rows))
    assert matrix.sources == [files[1]]


def test_a_sample_sheet_names_the_samples_of_a_matrix(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "g.tsv", {"S1": [1.0], "S2": [2.0], "S3": [3.0]}, ["TP53"])
    sheet = tmp_path / "data_clinical_sample.txt"
    sheet.write_text(
        "#Patient\tSample\tType\nPATIENT_ID\tSAMPLE_ID\tSAMPLE_TYPE\nP1\tS1\tMetastasis\nP1\tS2\tPrimary\nP2\tS3\tPrimary\n"
    )
    matrix = _read(path, cases=("P1", "P2"), sheet=sheet)
    assert [matrix.expression(case)[0] for case in ("P1", "P2")] == [2.0, 3.0]


def test_samples_whose_kind_nobody_says_are_refused(tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_text("sample,case\nS1,P1\nS2,P1\n")
    path = write_matrix(tmp_path / "g.tsv", {"S1": [1.0], "S2": [2.0]}, ["TP53"])
    with pytest.raises(InputError, match="which is the primary tumour") as caught:
        _read(path, cases=("P1",), sheet=sheet)
    assert (caught.value.case, caught.value.found) == ("P1", "S1, S2")
    assert _read(path, cases=("P1",), sheet=sheet, samples="mean").expression("P1")[0] == 1.5


@pytest.mark.parametrize(
    ("case_id", "sample", "matches"),
    [
        (A, f"{A}-01A-11R-1755-07", True),
        (A, f"{A}-01", True),
        (A, A.replace("-", ".") + ".01A", True),
        (f"{A}-01A", f"{A}-01A-11R-1755-07", True),
        (f"{A}-01", f"{A}-01A-11R-1755-07", True),
        (f"{A}-01A", A, True),
        (f"{A}-01Z-00-DX1", f"{A}-01A-11R-1755-07", True),
        (f"{A}-01A", f"{A}-11A-11R-1755-07", False),
        (f"{A}-01A", f"{A}-06A-11R-1755-07", False),
        (f"{A}-11A", f"{A}-11A", True),
        (A, f"{A}-11A", False),
        (A, f"{B}-01A", False),
        (A, f"{A}0-01A", False),
        ("TARGET-20-PAEERJ", "TARGET-20-PAEERJ-09A", True),
        ("C3L-00001", "C3L-00001-01", False),
        ("C3L-00001", "C3L-00001", True),
    ],
)
def test_whose_a_sample_is(case_id: str, sample: str, matches: bool) -> None:
    choice = choose_samples([Sample(sample, 0, 0, Path("g"))], [case_id], "primary")
    assert (case_id in choice.samples) == matches
    assert len(choice.left_out) == (not matches)


def test_a_case_that_names_a_vial_has_that_vial() -> None:
    samples = [Sample(f"{A}-01{vial}-11R", 0, i, Path("g")) for i, vial in enumerate("ABC")]
    choice = choose_samples(samples, [f"{A}-01B"], "primary")
    assert [sample.name for sample in choice.samples[f"{A}-01B"]] == [f"{A}-01B-11R"]


def test_frozen_tissue_before_ffpe(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    files = [write_star(folder / f"{i}" / f"{i}.tsv", seed=i) for i in (1, 2)]
    columns = ["File Name", "Case ID", "Sample ID", "Sample Type", "Preservation Method"]
    rows = [
        [files[0].name, A, f"{A}-01A", "Primary Tumor", "FFPE"],
        [files[1].name, A, f"{A}-01B", "Primary Tumor", "OCT"],
    ]
    assert _read(folder, sheet=write_sheet(tmp_path / "s.tsv", rows, columns)).sources == [files[1]]


def test_a_case_with_an_exact_sample_has_no_other(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "g.tsv", {A: [1.0], f"{A}-01A": [2.0], f"{B}-01A": [3.0]}, ["TP53"])
    matrix = _read(path)
    assert [matrix.expression(case)[0] for case in (A, B)] == [1.0, 3.0]
    assert [(item.id, item.reason) for item in matrix.left_out] == [
        (f"{A}-01A", "the case table asks for another sample of its patient")
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 6, 11, 20]), st.sampled_from("ABZ"), st.integers(10, 99)),
        min_size=1,
        unique=True,
    ),
    st.randoms(),
)
def test_the_choice_does_not_hang_on_the_order(parts: list[tuple[int, str, int]], random: object) -> None:
    samples = [Sample(f"{A}-{code:02}{vial}-{plate}R", 0, i, Path("g")) for i, (code, vial, plate) in enumerate(parts)]
    first = choose_samples(samples, [A], "primary")
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    second = choose_samples(shuffled, [A], "primary")
    assert first.samples == second.samples
    assert len(first.left_out) + len(first.samples.get(A, ())) == len(samples)
    if A in first.samples:
        code = code_of(first.samples[A][0])
        assert code in (1, 2, 3, 6) and (code == 1) == any(part[0] == 1 for part in parts)


def test_barcodes_in_names() -> None:
    assert barcode_in("uuid.htseq.counts.gz") is None
    found = barcode_in("unc.edu.TCGA-49-6745-01A-11R-1858-07.FPKM.txt")
    assert found is not None and (found.patient, found.code, found.vial) == ("TCGA-49-6745", 1, "A")
    found = barcode_in("tcga_49_6745")
    assert found is not None and (found.patient, found.code) == ("TCGA-49-6745", None)


# -- units


@given(st.sampled_from(LINEAR), st.sampled_from(["{}", "log2({}+1)", "log2({} + 1)", "LOG2( {}+1 )", "log2(1 + {})"]))
def test_spellings_of_units(base: str, way: str) -> None:
    expected = base if way == "{}" else f"log2({base}+1)"
    for spelling in (base, base.lower(), base.replace("-", "_"), base.replace("-", " ")):
        assert parse_unit(way.format(spelling)) == expected
    assert parse_unit(expected) == expected and is_linear(expected) == (way == "{}")


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("z-scores", "z-score"),
        ("Z Score", "z-score"),
        ("raw counts", "counts"),
        ("log2(norm_count+1)", "log2(RSEM+1)"),
        ("log2(tpm+0.001)", "log2(TPM+0.001)"),
        ("Unknown", "unknown"),
        ("log2(FPKM)", None),
        ("log10(TPM+1)", None),
        ("log2(counts+0.001)", None),
        ("vst", None),
    ],
)
def test_spellings_that_are_and_are_not_known(text: str, unit: str | None) -> None:
    assert parse_unit(text) == unit
    assert canonical(text) == (unit or text)


def _hdf5(root: Path, values: list[list[float]], unit: str | None) -> Path:
    with h5py.File(root / "g.h5", "w") as file:
        file["expression"], file["case_id"] = np.array(values, np.float32), [A, B]
        file["gene_id"] = [f"G{i}" for i in range(len(values[0]))]
        if unit is not None:
            file.attrs["unit"] = unit
    return root / "g.h5"


def test_what_a_file_says_of_its_unit_holds(tmp_path: Path) -> None:
    path = _hdf5(tmp_path, [[1.0, 2.0], [3.0, 4.0]], "log2(FPKM + 1)")
    assert _read(path).unit == "log2(FPKM+1)"
    assert _read(path, unit="log2(fpkm+1)").unit == "log2(FPKM+1)"
    with pytest.raises(InputError, match="unit declared is not the file's") as caught:
        _read(path, unit="TPM")
    assert (caught.value.file, caught.value.found) == (str(path), "the file says log2(FPKM+1)")


def test_a_declared_unit_beats_a_name_aloud(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "TCGA-LUAD.htseq_fpkm.tsv", {A: [500.0], B: [1.0]}, ["TP53"])
    matrix = _read(path, unit="FPKM")
    assert matrix.unit == "FPKM"
    assert "the gene unit was declared as FPKM, but TCGA-LUAD.htseq_fpkm.tsv looks like log2(FPKM+1)" in matrix.notes
    assert any("do not look logged" in note for note in _read(path).notes)


@pytest.mark.parametrize("unit", [*LINEAR, "fpkm_uq"])
def test_negative_values_of_a_linear_unit_are_refused(tmp_path: Path, unit: str) -> None:
    path = _matrix(tmp_path, {"TP53": [1.0, 99.0], "EGFR": [2.0, -0.5]})
    with pytest.raises(InputError, match="negative values") as caught:
        _read(path, unit=unit)
    assert (caught.value.case, caught.value.found) == (B, "-0.5 for gene EGFR")
    assert caught.value.file == str(path)
    assert _read(path, unit="z-score").notes == ()


def test_negative_values_of_a_unit_that_only_a_name_says_are_a_note(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "data_mrna_seq_fpkm.txt", {A: [-1.0], B: [99.0]}, ["TP53"], "Hugo_Symbol")
    matrix = _read(path)
    assert matrix.unit == "FPKM" and any("negative values down to -1" in note for note in matrix.notes)


@pytest.mark.parametrize(
    ("unit", "values", "word"),
    [
        ("counts", [100.0, 1.5], "no whole numbers"),
        ("RSEM", [100.0, 1.5], None),
        ("TPM", [3.0, 1.5], "are they logged"),
        ("log2(TPM+1)", [-3.0, 1.5], "negative values"),
        ("log2(TPM+0.001)", [-9.9, 1.5], None),
        ("log2(CPM+1)", [99.0, 1.5], "do not look logged"),
        ("vst", [9.0, 1.5], "none of the known"),
        ("unknown", [9.0, 1.5], "Say it"),
    ],
)
def test_doubts_are_notes(tmp_path: Path, unit: str, values: list[float], word: str | None) -> None:
    matrix = _read(_matrix(tmp_path, {"TP53": values, "EGFR": [0.0, 0.0]}), unit=unit)
    assert matrix.unit == unit
    assert len(matrix.notes) == (word is not None)
    assert word is None or word in matrix.notes[0]


def test_nan_is_no_value_to_doubt(tmp_path: Path) -> None:
    path = _matrix(tmp_path, {"TP53": [float("nan"), 99.0], "EGFR": [float("nan"), 2.0]})
    matrix = _read(path, unit="FPKM")
    assert matrix.notes == () and np.isnan(matrix.expression(A)).all()


def test_genes_that_some_case_lacks_can_go_in_place_of_the_case(tmp_path: Path) -> None:
    nan = float("nan")
    path = _matrix(tmp_path, {"TP53": [1.0, 2.0], "EGFR": [nan, 3.0], "KRAS": [4.0, 5.0], "ALK": [6.0, nan]})
    matrix = _read(path, missing="gene", unit="z-score")
    assert matrix.gene_ids == ["TP53", "KRAS"]
    np.testing.assert_array_equal([matrix.expression(A), matrix.expression(B)], [[1.0, 4.0], [2.0, 5.0]])
    assert matrix.notes == ("2 genes are missing in some case and were left out: EGFR, ALK",)
    assert np.isnan(_read(path, unit="z-score").expression(A)[1])
    with pytest.raises(InputError, match="no gene has a value in every case"):
        _read(_matrix(tmp_path, {"EGFR": [nan, 3.0]}), missing="gene")


def test_files_of_different_units_are_refused_unless_all_are_silent(tmp_path: Path) -> None:
    one = _matrix(tmp_path, {"TP53": [500.0]}, "TCGA-LUAD.star_tpm.tsv", (A,))
    two = _matrix(tmp_path, {"TP53": [500.0]}, "two.tsv", (B,))
    with pytest.raises(InputError, match="different units") as caught:
        _read(one, two)
    assert caught.value.found == "log2(TPM+1): TCGA-LUAD.star_tpm.tsv; unknown: two.tsv"
    assert _read(one, two, unit="log2(TPM+1)").unit == "log2(TPM+1)"


# -- genes


def test_versions_and_names(tmp_path: Path) -> None:
    path = write_star(tmp_path / f"{A}-01A.tsv")
    kept = _read(path, cases=(A,))
    assert kept.gene_ids == list(GENES) and "source_id" not in kept.gene_columns
    stripped = _read(path, cases=(A,), versions="strip")
    assert stripped.gene_ids == [gene.partition(".")[0] for gene in GENES]
    assert stripped.gene_columns["source_id"] == list(GENES)
    symbols = _read(path, cases=(A,), names="symbol")
    assert symbols.gene_ids == ["TSPAN6", "TP53", "EGFR", "PLCXD1"]
    assert symbols.gene_columns["source_id"] == list(GENES)
    with pytest.raises(InputError, match="no Entrez ids"):
        _read(path, cases=(A,), names="entrez")


def test_symbols_without_a_column_of_symbols(tmp_path: Path) -> None:
    assert _read(_matrix(tmp_path, {"TP53": [1.0, 2.0]}), names="symbol").gene_ids == ["TP53"]
    with pytest.raises(InputError, match="no symbols") as caught:
        _read(_matrix(tmp_path, {GENES[0]: [1.0, 2.0]}), names="symbol")
    assert caught.value.found is not None and GENES[0] in caught.value.found


ROWS = {"TP53": [1.0, 2.0], "EGFR": [7.0, 7.0], "TP53#2": [5.0, 0.0], "TP53#3": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("first", [1.0, 2.0]), ("max", [5.0, 0.0]), ("mean", [2.0, 1.0]), ("sum", [6.0, 3.0])],
)
def test_rows_of_one_name(tmp_path: Path, rule: str, expected: list[float]) -> None:
    matrix = _read(_matrix(tmp_path, ROWS), duplicates=rule, unit="RSEM")
    assert matrix.gene_ids == ["TP53", "EGFR"]
    assert [matrix.expression(case)[0] for case in (A, B)] == expected
    assert [matrix.expression(case)[1] for case in (A, B)] == [7.0, 7.0]
    assert any(note.startswith("1 genes stand in 3 rows of g.tsv") for note in matrix.notes)


def test_rows_of_one_name_that_cannot_be_decided(tmp_path: Path) -> None:
    path = _matrix(tmp_path, ROWS)
    with pytest.raises(InputError, match="gene stands twice") as caught:
        _read(path)
    assert caught.value.found == "TP53"
    assert caught.value.fix is not None and "gene_duplicates: max" in caught.value.fix
    with pytest.raises(InputError, match="cannot be summed") as caught:
        _read(path, duplicates="sum", unit="log2(RSEM+1)")
    assert caught.value.fix is not None and "mean" in caught.value.fix


def test_the_columns_beside_are_those_of_the_row_used(tmp_path: Path) -> None:
    beside = {"gene_name": ["TP53", "TP53"], "gene_type": ["lncRNA", "protein_coding"]}
    path = write_matrix(tmp_path / "g.tsv", {A: [1.0, 5.0], B: [1.0, 5.0]}, GENES[:2], beside=beside)
    matrix = _read(path, names="symbol", duplicates="max")
    assert matrix.gene_columns == {"symbol": ["TP53"], "gene_type": ["protein_coding"], "source_id": [GENES[1]]}


@pytest.mark.parametrize(
    ("gene", "copy"),
    [
        ("ENSG00000182378.15", "ENSG00000182378.15_PAR_Y"),
        ("ENSG00000281849.1", "ENSGR0000281849.1"),
        ("ENSG00000281849", "ENSGR0000281849"),
    ],
)
def test_y_copies(tmp_path: Path, gene: str, copy: str) -> None:
    assert is_par_y(copy) and not is_par_y(gene) and x_copy(copy) == gene
    path = write_htseq(tmp_path / f"{A}-01A.FPKM.txt", {copy: 2.0, gene: 50.0, "ENSG00000141510.18": 1.0})
    dropped = _read(path, cases=(A,))
    assert dropped.gene_ids == [gene, "ENSG00000141510.18"]
    assert any("1 of them are not 0 in every sample" in note for note in dropped.notes)
    assert _read(path, cases=(A,), par_y="keep").gene_ids == [copy, *dropped.gene_ids]
    added = _read(path, cases=(A,), par_y="add")
    np.testing.assert_array_equal(added.expression(A), [52.0, 1.0])
    stripped = _read(path, cases=(A,), par_y="keep", versions="strip")
    assert len(set(stripped.gene_ids)) == 3
    with pytest.raises(InputError, match="cannot be added"):
        _read(path, cases=(A,), par_y="add", unit="log2(FPKM+1)")


def test_y_copies_of_zero_go_without_a_doubt(tmp_path: Path) -> None:
    notes = _read(write_star(tmp_path / f"{A}-01A.tsv", par_y=0.0), cases=(A,)).notes
    assert "1 Y copies of pseudo-autosomal genes (PAR_Y) were dropped" in notes


def test_several_files_are_joined_by_gene(tmp_path: Path) -> None:
    one = _matrix(tmp_path, {"TP53": [1.0], "EGFR": [2.0]}, "one.tsv", (A,))
    two = _matrix(tmp_path, {"EGFR": [3.0], "TP53": [4.0]}, "two.tsv", (B,))
    matrix = _read(one, two)
    assert matrix.gene_ids == ["TP53", "EGFR"]
    np.testing.assert_array_equal([matrix.expression(A), matrix.expression(B)], [[1.0, 2.0], [4.0, 3.0]])
    assert matrix.sources == [one, two]
    three = _matrix(tmp_path, {"KRAS": [5.0], "EGFR": [6.0]}, "three.tsv", (B,))
    with pytest.raises(InputError, match="different genes") as caught:
        _read(one, three)
    assert caught.value.found == "2 genes, 1 of them the same; only here: KRAS; not here: TP53"
    assert caught.value.fix is not None and "intersect" in caught.value.fix
    common = _read(one, three, genes="intersect")
    assert (common.gene_ids, common.expression(A).tolist(), common.expression(B).tolist()) == (["EGFR"], [2.0], [6.0])
    with pytest.raises(InputError, match="stands in two gene matrices") as caught:
        _read(two, three)
    assert caught.value.case == B


def test_the_row_with_the_highest_mean_is_the_same_in_every_file(tmp_path: Path) -> None:
    rows = {"TP53": [9.0, 9.0, 0.0], "EGFR": [1.0, 1.0, 1.0], "TP53#2": [0.0, 0.0, 27.0]}
    cases = (A, B, "TCGA-99-0001")
    paths = []
    for name, places in (("one.tsv", (0, 1)), ("two.tsv", (2,))):
        part = {gene: [values[i] for i in places] for gene, values in rows.items()}
        paths.append(_matrix(tmp_path, part, name, tuple(cases[i] for i in places)))
    matrix = _read(*paths, cases=cases, duplicates="max")
    assert [matrix.expression(case)[0] for case in cases] == [0.0, 0.0, 27.0]
    other = _matrix(tmp_path, {"EGFR": [1.0], "TP53": [1.0], "TP53#2": [0.0]}, "two.tsv", cases[2:])
    with pytest.raises(InputError, match="cannot be chosen alike"):
        _read(paths[0], other, cases=cases, duplicates="max")


@pytest.mark.parametrize("kind", ["txt", "csv", "gmt"])
def test_a_gene_list_keeps_and_orders(tmp_path: Path, kind: str) -> None:
    content = {
        "txt": "EGFR\nENSG00000141510\nNOSUCH\n",
        "csv": "rank,gene\n1,EGFR\n2,ENSG00000141510\n3,NOSUCH\n",
        "gmt": "SET\thttp://x\tEGFR\tENSG00000141510\nOTHER\tna\tEGFR\tNOSUCH\n",
    }
    (tmp_path / f"list.{kind}").write_text(content[kind])
    matrix = _read(write_star(tmp_path / f"{A}-01A.tsv"), cases=(A,), gene_list=tmp_path / f"list.{kind}")
    assert matrix.gene_ids == [GENES[2], GENES[1]]
    assert matrix.gene_columns["symbol"] == ["EGFR", "TP53"]
    assert any(note.endswith("1 of its genes are not in TCGA-05-4244-01A.tsv: NOSUCH") for note in matrix.notes)
    assert str(tmp_path / f"list.{kind}") in matrix.hashes


def test_a_gene_list_of_other_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("YFG\n")
    with pytest.raises(InputError, match="no gene of the gene list"):
        _read(write_star(tmp_path / f"{A}-01A.tsv"), cases=(A,), gene_list=tmp_path / "l.txt")


@given(
    st.sampled_from(["ENSG", "ENSMUSG"]),
    st.integers(0, 99_999_999_999),
    st.sampled_from(["", ".1", ".15"]),
    st.sampled_from(["", "_PAR_Y"]),
)
def test_versions_are_cut_and_nothing_else(species: str, number: int, version: str, suffix: str) -> None:
    assert without_version(f"{species}{number:011}{version}{suffix}") == f"{species}{number:011}{suffix}"
    assert without_version(f"RP11-{number}{version}") == f"RP11-{number}{version}"


# -- the whole


def test_only_samples_of_cases_are_held(tmp_path: Path) -> None:
    """Pan-cancer matrices are far larger than a cohort: other samples stay on disk."""
    from gimp_ray.ingest.genes.read import read_matrix

    samples = {f"S{i}": some_values(5, i) for i in range(50)}
    wanted = ({"S7", "S30"}.__contains__,)
    raw = read_matrix(write_matrix(tmp_path / "g.tsv", samples, [f"G{i}" for i in range(5)]), wanted)
    assert raw.values.shape == (2, 5) and len(raw.samples) == 50
    lines = [",".join(["case", *(f"G{i}" for i in range(5))])]
    lines += [",".join([name, *map(str, values)]) for name, values in samples.items()]
    (tmp_path / "g.csv").write_text("\n".join(lines))
    raw = read_matrix(tmp_path / "g.csv", wanted)
    assert raw.values.shape == (2, 5) and len(raw.samples) == 50
    np.testing.assert_array_equal(raw.values[1], np.array(samples["S30"], np.float32))


def test_an_ingest_accounts_for_samples_and_files(tmp_path: Path) -> None:
    """Normal tissue alone, a damaged file, a sample of nobody's case, and a table that lies about."""
    values = {gene: 64.0 * i for i, gene in enumerate(GENES)}
    cases = [f"TCGA-05-000{i}" for i in range(6)]
    folder = tmp_path / "d"
    for case_id in cases:
        code = "11A" if case_id == cases[4] else "01A"
        write_htseq(folder / f"{case_id}-{code}.FPKM.txt.gz", values)
    (folder / f"{cases[5]}-01A.FPKM.txt.gz").write_bytes(b"")
    write_htseq(folder / f"{B}-01A.FPKM.txt.gz", values)
    write_matrix(folder / "clinical.tsv", {"age": [60.0]}, ["x"])
    table = tmp_path / "cases.csv"
    table.write_text("case_id,label\n" + "".join(f"{case_id},{'xy'[i % 2]}\n" for i, case_id in enumerate(cases)))
    options = IngestOptions(workers=1, progress=False)
    report = ingest_cohort(patches=None, genes=folder, cases=table, out=tmp_path / "S", options=options)
    assert (report.manifest.num_cases, report.manifest.gene_unit) == (4, "FPKM")
    assert {(item.kind, item.id): item.reason for item in report.left_out} == {
        ("case", cases[4]): "the case's only gene samples are normal tissue",
        ("case", cases[5]): "the sample's gene file is damaged",
        ("gene sample", f"{cases[4]}-11A"): "it is normal tissue",
        ("gene sample", f"{cases[5]}-01A"): "the sample's gene file is damaged",
        ("gene sample", f"{B}-01A"): "its case is not in the case table",
        ("gene file", "clinical.tsv"): "it is a matrix or table beside per-sample gene files",
    }
    with pytest.raises(InputError, match="strict ingest: case TCGA-05-0004"):
        strict = IngestOptions(workers=1, progress=False, strict=True)
        ingest_cohort(patches=None, genes=folder, cases=table, out=tmp_path / "T", options=strict)


def test_a_matrix_and_per_sample_files_together(tmp_path: Path) -> None:
    path = write_htseq(tmp_path / f"{A}-01A.FPKM.txt", {gene: 64.0 * i for i, gene in enumerate(GENES)})
    other = write_matrix(tmp_path / "m.tsv", {B: [3.0, 2.0, 1.0, 0.0]}, list(reversed(GENES)))
    matrix = _read(other, path, unit="FPKM")
    assert matrix.gene_ids == list(reversed(GENES))
    np.testing.assert_array_equal(matrix.expression(A), [192.0, 128.0, 64.0, 0.0])


@pytest.mark.parametrize(
    "name", ["orientation", "versions", "names", "duplicates", "par_y", "samples", "genes", "unit"]
)
def test_options_are_checked(name: str) -> None:
    value = " " if name == "unit" else "sideways"
    with pytest.raises(ConfigError) as caught:
        GeneOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.found == repr(value)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no gene file was given"):
        _read()
    with pytest.raises(InputError, match="no such gene file"):
        _read(tmp_path / "none.tsv")
    path = _matrix(tmp_path, {"TP53": [1.0]}, samples=("other",))
    with pytest.raises(InputError, match="no case of the case table") as caught:
        _read(path)
    assert caught.value.found is not None and "other" in caught.value.found


@pytest.mark.parametrize(
    ("unit", "linear"),
    [("FPKM", True), ("fpkm_uq", True), ("kallisto est_counts", True), ("log2(FPKM+1)", False), ("Z_score", False),
     ("counts, vst", False), ("arbitrary", None)],
)  # fmt: skip
def test_linear_and_scaled_units(unit: str, linear: bool | None) -> None:
    assert looks_linear(unit) is linear
