"""Bad case tables (our own, CLAM's, cBioPortal's, GDC's), bad split files, and options that cannot be."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Sequence

from cohort_files import write_csv

from tests.bad_inputs.corpus import (
    CASE,
    CASES,
    SLIDE,
    Case,
    Inputs,
    option,
    passed_over,
    refused,
    split_table,
    wrong_option,
)

Spoil = Callable[[Inputs], object]
HEADER = ("case_id", "slide_id", "label")


def text(change: Callable[[str], str]) -> Spoil:
    """The case table with its text changed."""
    return lambda i: i.sources.cases.write_text(change(i.sources.cases.read_text()))


def content(data: bytes) -> Spoil:
    """A case table of these bytes."""
    return lambda i: i.sources.cases.write_bytes(data)


def rows(*more: Sequence[str]) -> Spoil:
    """The case table with more rows."""
    return lambda i: i.rows(*more)


def _packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "case_id,label\nA0,x\n")
    return buffer.getvalue()


def _folder(inputs: Inputs) -> None:
    inputs.sources.cases.unlink()
    inputs.sources.cases.mkdir()


def _second_table(header: Sequence[str], *table: Sequence[str]) -> Spoil:
    """A second case table, joined with the first."""
    return lambda i: i.cases.append(write_csv(i.root / "clinical.csv", header, table))


def _cbioportal(inputs: Inputs) -> None:
    """A sample file with one case of two cancer types, cBioPortal's names and comment lines."""
    path = inputs.root / "data_clinical_sample.txt"
    body = "".join(f"{c}\t{c}-01\tLuad\n" for c in CASES) + f"{CASE}\t{CASE}-02\tLusc\n"
    path.write_text("#Patient\tSample\tType\n#a\tb\tc\n#STRING\tSTRING\tSTRING\n#1\t1\t1\n"
                    "PATIENT_ID\tSAMPLE_ID\tCANCER_TYPE\n" + body)  # fmt: skip
    inputs.cases, inputs.patches = [path], None


def _gdc_without_slides(inputs: Inputs) -> None:
    """GDC's clinical table alone, which names no slides, for patches named by slide."""
    lines = ["case_submitter_id\tproject_id\tvital_status", *(f"{c}\tTCGA-LUAD\tAlive" for c in CASES)]
    inputs.cases = [inputs.root / "clinical.tsv"]
    inputs.cases[0].write_text("\n".join(lines) + "\n")


def _splits(*table: Sequence[str], header: Sequence[str] = ("case_id", "part")) -> Spoil:
    return lambda i: split_table(i, table, header)


def _parts(*parts: str) -> list[list[str]]:
    return [[case_id, part] for case_id, part in zip(CASES, parts, strict=True)]


def _patient_in_two_parts(inputs: Inputs) -> None:
    """A0 and A1 are samples of one patient, and the split puts them apart."""
    patients = {"A0": "P-7", "A1": "P-7"}
    inputs.sources.rows = [[*row, patients.get(row[0], row[0])] for row in inputs.sources.rows]
    inputs.sources.write_cases((*HEADER, "patient_id"))
    split_table(inputs, _parts("train", "test", "train", "val"))


def _clam_splits(**files: str) -> Spoil:
    """A folder of CLAM's split files."""

    def spoil(inputs: Inputs) -> None:
        inputs.splits = inputs.root / "splits"
        inputs.splits.mkdir()
        for name, content in files.items():
            (inputs.splits / f"{name}.csv").write_text(content)

    return spoil


FOLD = ",train,val,test\n0,A0-DX1,B1-DX1,A1-DX1\n1,B0-DX1,,\n"

CASE_TABLES = (
    refused("cases nowhere", lambda i: i.sources.cases.unlink(), "no such case table", "cases.csv", "nothing at"),
    refused("cases a folder", _folder, "no such case table", "cases.csv", "a folder"),
    refused("cases of no bytes", content(b""), "cannot be read", "cases.csv", "empty file"),
    refused("cases, a header alone", text(lambda t: t.partition("\n")[0]), "no rows", "cases.csv"),
    refused("cases in Latin-1", content("case_id,label\né,x\n".encode("latin-1")), "not UTF-8", "0xe9 in line 2"),
    refused("cases in UTF-16", content("case_id,label\nA0,x\n".encode("utf-16")), "not UTF-8", "UTF-16"),
    refused("cases of zero bytes", content(bytes(200)), "cases.csv"),
    refused("cases as an Excel file", content(_packed("xl/workbook.xml", "x")), "Excel file", "cases.csv"),
    refused("cases, a zip of two tables", content(_packed("a.csv", "b.csv")), "several files", "a.csv, b.csv"),
    refused("cases, a zip cut short", content(_packed("a.csv")[:40]), "cannot be read", "cases.csv"),
    refused("cases, a gz cut short", content(gzip.compress(b"case_id,label\nA0,x\n")[:20]), "cannot be read", "cases"),
    refused("a row too long", text(lambda t: t + "A9,A9-DX1,LUAD,more\n"), "cannot be read", "cases.csv"),
    refused("a column twice", lambda i: i.sources.write_cases(("case_id", "label", "label")), "column twice", "label"),
    refused(
        "no case column", lambda i: i.sources.write_cases(("who", "slide_id", "label")), "no case_id column", "who"
    ),
    refused("no label column", lambda i: i.sources.write_cases(("case_id", "slide_id", "x")), "no label column", "x"),
    refused("no slide column", lambda i: i.sources.write_cases(("case_id", "x", "label")), "no slide_id column", "x"),
    refused(
        "two label columns", lambda i: i.sources.write_cases(("case_id", "subtype", "class")), "could be the label"
    ),
    refused("two labels", rows([CASE, f"{CASE}-DX2", "LUSC"]), "two labels", "LUAD and LUSC"),
    refused("slide twice", rows([CASE, SLIDE, "LUAD"]), "stands twice", "rows 2 and 5"),
    refused("slide of two cases", rows(["B1", f"{SLIDE}.h5", "LUSC"]), "stands twice", "rows 2 and 5"),
    refused("slide above", rows([CASE, "../x", "LUAD"]), "is a path", "../x", "cases.csv"),
    refused("slide far above", rows([CASE, "../../etc/passwd", "LUAD"]), "is a path", "../../etc/passwd"),
    refused("slide from the root", rows([CASE, "/etc/passwd", "LUAD"]), "is a path", "/etc/passwd"),
    refused("slide on drive C", rows([CASE, "C:\\slides\\x", "LUAD"]), "is a path", "C:\\slides\\x"),
    refused("slide of dots", rows([CASE, "..", "LUAD"]), "is a path"),
    passed_over("row without a case", rows(["", "A9-DX1", "LUAD"]), "no case_id", "cases.csv"),
    passed_over("row without a slide", rows([CASE, "", "LUAD"]), "no slide_id", "cases.csv"),
    passed_over("case without a label", rows(["A9", "A9-DX1", "NA"]), "no label", "cases.csv"),
    passed_over("slide without a file", rows([CASE, "A9-DX1", "LUAD"]), "no patch file", "A9-DX1.h5"),
    refused("no case of a second table", _second_table(("case_id", "age"), ["Z1", "3"]), "in common", "clinical.csv"),
    refused("second table without cases", _second_table(("who", "age"), [CASE, "3"]), "no case_id", "clinical.csv"),
    refused("cBioPortal, two labels", _cbioportal, "two labels", "data_clinical_sample.txt", "Luad and Lusc"),
    refused("GDC, no slides", _gdc_without_slides, "no slide_id column", "clinical.tsv"),
    refused("label column of another name", option("--label-column", "grade"), "no column grade", "cases.csv"),
    refused("a label that no case has", option("--labels", "{COAD: x}"), "label that no case has", "COAD"),
    wrong_option("a survival endpoint", "--survival", "XYZ", says=("survival", "XYZ")),
)

SPLITS = (
    refused("splits nowhere", lambda i: setattr(i, "splits", i.root / "s.csv"), "no such split table", "s.csv"),
    refused("splits of no bytes", _clam_splits(splits_0=""), "cannot be read", "splits_0.csv"),
    refused("splits, a header alone", _splits(), "no rows", "splits.csv"),
    refused("unknown part", _splits(*_parts("train", "train", "valid", "test")), "unknown part", "valid", "splits.csv"),
    refused("a case in two parts", _splits(*_parts("train", "val", "test", "val"), ["A0", "test"]), "shares", "A0"),
    refused("a patient in two parts", _patient_in_two_parts, "shares 1 patient", "P-7", "splits.csv"),
    refused("splits without parts", _splits([CASE], header=("case_id",)), "splits.csv"),
    refused("splits without ids", _splits(["1", "train"], header=("fold", "part")), "no case_id", "splits.csv"),
    refused("a split row without an id", _splits(*_parts("train", "val", "test", "val"), ["", "test"]), "without case"),
    refused("a fold that is no number", _splits([CASE, "test", "one"], header=("case_id", "part", "fold")), "'one'"),
    refused("splits of another cohort", _splits(["Z1", "train"], ["Z2", "test"]), "no id of the splits", "Z1, Z2"),
    passed_over("a split entry of nobody", _splits(*_parts("train", "val", "test", "val"), ["Z1", "test"]), "Z1"),
    refused("a split without training", _splits(*_parts("test", "val", "test", "val")), "nothing to train on"),
    refused("CLAM, an empty folder", _clam_splits(), "holds no splits", "empty folder"),
    refused("CLAM, a fold twice", _clam_splits(splits_0=FOLD, split_0=FOLD), "two files", "splits_0.csv"),
    refused("CLAM, other columns", _clam_splits(splits_0=FOLD.replace(",test", ",test,more")), "unknown columns"),
    refused("CLAM, a slide in two parts", _clam_splits(splits_0=FOLD + "2,A1-DX1,,\n"), "shares 1 patient", "A1"),
    wrong_option("unknown scheme", "--split-schemes", "[lucky]", says=("no such split scheme", "lucky")),
    wrong_option("too few folds", "--folds", "2", says=("folds",)),
    wrong_option("shares beyond one", "--split-shares", "[0.9, 0.9, 0.9]", "--split-schemes", "[fixed]", says=("0.9",)),
    wrong_option("scheme by a column", "--split-schemes", "['leave_one_out:hospital']", says=("column hospital",)),
)

OPTIONS = (
    wrong_option("unknown option", "--slide", "DX1", says=("unknown option 'slide'",)),
    wrong_option("unknown slide rule", "--slides", "DX9", says=("DX9",)),
    wrong_option("unknown dtype", "--dtype", "float8", says=("dtype", "float8")),
    wrong_option("unknown compression", "--compression", "lz4", says=("compression", "lz4")),
    wrong_option("workers that are words", "--workers", "many", says=("workers", "many")),
)

BAD_TABLES: tuple[Case, ...] = (*CASE_TABLES, *SPLITS, *OPTIONS)
