"""The case table: several slides a case, extra columns with their types, stems, odd files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cohort_files import Sources, features, grid, write_csv, write_h5

from gimp_ray.errors import InputError
from gimp_ray.ingest.cases import read_cases, slide_stem
from gimp_ray.store import CohortStore


def test_several_slides_a_case(sources: Sources) -> None:
    extra = features(30, seed=50)
    write_h5(sources.patches / "A0-DX2.h5", extra, grid(30))
    sources.rows.append(["A0", "A0-DX2", "LUAD"])
    sources.write_cases()
    store = sources.store()
    assert store.cases.num_rows == 6
    of_a0 = [row["slide_id"] for row in store.slides.to_pylist() if row["case_id"] == "A0"]
    assert of_a0 == ["A0-DX1", "A0-DX2"]
    np.testing.assert_array_equal(store.read_bag("A0-DX2"), extra.astype(np.float16))


def test_extra_columns_keep_their_types_and_go_where_they_vary(sources: Sources) -> None:
    write_h5(sources.patches / "A0-DX2.h5", features(30), grid(30))
    header = ("case_id", "slide_id", "label", "blocks", "site", "n_patches", "stain_year", "never")
    rows = [[*row, 50 + i, "05", 1, 2000 + i, ""] for i, row in enumerate(sources.rows)]
    rows.append(["A0", "A0-DX2", "LUAD", 50, "05", 2, 2020, ""])
    write_csv(sources.cases, header, rows)
    store = sources.store()
    assert store.cases.schema.names == ["case_id", "label", "blocks", "site", "never"]
    assert store.cases.schema.field("blocks").type == pa.int64()
    assert store.cases["blocks"].to_pylist() == [50, 51, 52, 53, 54, 55]
    assert store.cases.schema.field("never").type == pa.string()
    by_slide = {row["slide_id"]: row for row in store.slides.to_pylist()}
    assert (by_slide["A0-DX1"]["stain_year"], by_slide["A0-DX2"]["stain_year"]) == (2000, 2020)
    # a name the slides table has already
    assert (by_slide["A0-DX2"]["n_patches"], by_slide["A0-DX2"]["table_n_patches"]) == (30, 2)


def test_varying_columns_of_a_gene_only_store_are_said_to_go(sources: Sources) -> None:
    rows = [[*row, i] for i, row in enumerate(sources.rows)] + [["A0", "A0-DX2", "LUAD", 9]]
    write_csv(sources.cases, ("case_id", "slide_id", "label", "block"), rows)
    report = sources.ingest(patches=False)
    assert CohortStore.open(sources.out).cases.schema.names == ["case_id", "label"]
    assert any("block" in note for note in report.notes)


def test_no_slide_column_is_needed_for_genes_alone(sources: Sources) -> None:
    write_csv(sources.cases, ("case_id", "label"), [[row[0], row[2]] for row in sources.rows])
    assert sources.store(patches=False).cases.num_rows == 6


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffcase_id,slide_id,label\r\n 007 , 007.svs ,1\r\n008,008.h5,0\r\n",
        "case_id\tslide_id\tlabel\n007\t007.svs\t1\n008\t008.h5\t0\n",
        'slide_id,label,case_id\n"007.svs","1","007"\n008.h5,0,008\n',
    ],
    ids=["bom-windows-spaces", "tabs", "quotes-other-order"],
)
def test_odd_but_clear_tables_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text, encoding="utf-8", newline="")
    table = read_cases([path])
    assert table.case_ids == ["007", "008"]
    assert table.slide_ids == ["007", "008"]
    assert table.labels == ["1", "0"], "labels are text, never numbers"


@pytest.mark.parametrize(
    ("text", "message", "found"),
    [
        ("case_id,slide_id,grade\na,b,c\n", "no label column", "case_id, slide_id, grade"),
        ("name,slide_id,label\na,b,c\n", "no case_id column", "name, slide_id, label"),
        ("case_id;slide_id;label\na;b;c\n", "no label column", "case_id;slide_id;label"),
        ("case_id,slide_id,label\n", "no rows", "a header alone"),
        ("", "cannot be read", "an empty file"),
        ("case_id,slide_id,label\na,b\n", "cannot be read", "Expected 3 columns, got 2"),
        ("case_id,slide_id,label,label\na,b,c,d\n", "column twice", "label"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, text: str, message: str, found: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_cases([path])
    assert caught.value.file == str(path)
    assert caught.value.found is not None and found in caught.value.found


def test_types_come_from_the_whole_file(tmp_path: Path) -> None:
    """A text in row 60,000 of a column of numbers, beyond Arrow's first block."""
    rows = [[f"c{i:06d}", "x" * 20, "y", i] for i in range(60_000)]
    rows[-1][3] = "not done"
    extra = read_cases([write_csv(tmp_path / "c.csv", ("case_id", "note", "label", "grade"), rows)]).extra
    assert extra.schema.field("grade").type == pa.string()
    assert extra["grade"][-1].as_py() == "not done"


def test_line_ends_within_quotes(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text('case_id,label,report\na,x,"first\nsecond"\nb,y,none\n')
    table = read_cases([path])
    assert table.case_ids == ["a", "b"]
    assert table.extra["report"].to_pylist() == ["first\nsecond", "none"]


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes("case_id,label,hospital\na,x,Köln\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8") as caught:
        read_cases([path])
    assert caught.value.found == "byte 0xf6 in line 2"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("TCGA-05-4249-01Z-00-DX1.9fce0297.svs", "TCGA-05-4249-01Z-00-DX1.9fce0297"),
        ("a.svs.h5", "a"),
        ("a.SVS", "a"),
        ("a.b", "a.b"),
        ("plain", "plain"),
        (".h5", ".h5"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert slide_stem(name) == stem
