"""Case tables of other tools: CLAM, PORPOISE, cBioPortal, GDC; several files joined; columns under one name."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cohort_files import write_csv

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.cases import CaseOptions, CaseTable, read_cases

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def _read(path: Path, **options: Any) -> CaseTable:
    return read_cases([path], CaseOptions(**options))


def _column(table: CaseTable, name: str) -> list[object]:
    values: list[object] = table.extra[name].to_pylist()
    return values


CLAM = """,case_id,slide_id,site,is_female,oncotree_code,age,survival_months,censorship,train
0,TCGA-05-4244,TCGA-05-4244-01Z-00-DX1.svs,05,1,LUAD,70,12.5,0,1.0
1,TCGA-05-4244,TCGA-05-4244-01Z-00-DX2.svs,05,1,LUAD,70,12.5,0,1.0
2,TCGA-AA-0001,TCGA-AA-0001-01Z-00-DX1.svs,AA,0,LUSC,61,3,1,0.0
"""


def test_clam(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "clam.csv", CLAM))
    assert table.labels == ["LUAD", "LUAD", "LUSC"] and table.slide_ids is not None
    assert table.slide_ids[2] == "TCGA-AA-0001-01Z-00-DX1"
    assert table.extra.column_names == [
        *("site", "is_female", "oncotree_code", "age", "survival_months", "censorship", "train"), "event", "sex"
    ]  # fmt: skip
    assert _column(table, "event") == [True, True, False], "the event was seen where nothing is censored"
    assert _column(table, "survival_months") == [12.5, 12.5, 3.0] and _column(table, "site") == ["05", "05", "AA"]
    assert _column(table, "sex") == ["female", "female", "male"]
    types = {name: table.extra.schema.field(name).type for name in ("survival_months", "event", "age", "site")}
    assert list(types.values()) == [pa.float64(), pa.bool_(), pa.float64(), pa.string()]
    assert any("1 columns without a name" in note for note in table.notes)


@pytest.mark.parametrize("packed", ["csv", "csv.zip", "csv.gz"])
def test_porpoise_s_genes_are_no_clinical_columns(tmp_path: Path, packed: str) -> None:
    genes = [f"G{i}_{kind}" for i in range(300) for kind in ("mut", "cnv", "rnaseq")]
    header = ["", "case_id", "slide_id", "oncotree_code", "survival_months", "censorship", *genes]
    rows = [[i, f"P{i}", f"P{i}.svs", "BRCA", i, i % 2, *[0.25] * len(genes)] for i in range(4)]
    path = write_csv(tmp_path / "tcga_brca_all_clean.csv", header, rows)
    if packed == "csv.zip":
        with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
            archive.write(path, path.name)
            archive.writestr(f"__MACOSX/._{path.name}", "x")
    elif packed == "csv.gz":
        (tmp_path / "t.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    table = _read(path if packed == "csv" else tmp_path / f"t.{packed}")
    assert table.extra.column_names == ["oncotree_code", "survival_months", "censorship", "event"]
    assert any("900 columns of genes, such as G0_mut" in note for note in table.notes)
    assert _read(path, label_column="G1_mut").labels == ["0.25"] * 4, "a gene can be the label"


def test_a_few_gene_columns_of_a_study_stay(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "t.csv", "case_id,label,EGFR_mut,KRAS_mut\na,x,1,0\nb,y,0,1\n"))
    assert table.extra.column_names == ["EGFR_mut", "KRAS_mut"]


PATIENTS = """#Patient Identifier\tSex\tDiagnosis Age\tOverall Survival\tOverall Survival (Months)\tDFS\tDFS (Months)
#Identifier\tSex\tAge, "years"\tStatus\tMonths\tStatus\tMonths
#STRING\tSTRING\tNUMBER\tSTRING\tNUMBER\tSTRING\tNUMBER
#1\t1\t1\t1\t1\t1\t1
PATIENT_ID\tSEX\tAGE\tOS_STATUS\tOS_MONTHS\tDFS_STATUS\tDFS_MONTHS
TCGA-2J-AAB1\tMale\t65\t1:DECEASED\t2.17\t1:Recurred/Progressed\t1.5
TCGA-2J-AAB4\tFemale\t48\t0:LIVING\t23.95\t0:DiseaseFree\t23.95
TCGA-XN-A8T3\t[Not Available]\t[Not Available]\tLIVING\t[Not Available]\t[Not Applicable]\t[Not Available]
TCGA-XN-A8T5\tMale\t70\tDECEASED\t-0.03\t[Not Available]\t[Not Available]
"""
SAMPLES = """#Sample Identifier\tPatient Identifier\tCancer Type\tOncotree Code\tPurity
#a\tb\tc\td\te
#STRING\tSTRING\tSTRING\tSTRING\tNUMBER
#1\t1\t1\t1\t1
SAMPLE_ID\tPATIENT_ID\tCANCER_TYPE\tONCOTREE_CODE\tPURITY
TCGA-2J-AAB1-01\tTCGA-2J-AAB1\tPancreatic Cancer\tPAAD\t0.5
TCGA-2J-AAB1-06\tTCGA-2J-AAB1\tPancreatic Cancer\tPAAD\t0.7
TCGA-2J-AAB4-01\tTCGA-2J-AAB4\tPancreatic Cancer\tPAAD\t0.2
TCGA-XN-A8T3-01\tTCGA-XN-A8T3\tLung\tLUAD\t
TCGA-XN-A8T5-01\tTCGA-XN-A8T5\tLung\tLUAD\t0.1
"""


def _portal(tmp_path: Path) -> list[Path]:
    names = ("data_clinical_patient.txt", "data_clinical_sample.txt")
    return [_write(tmp_path / name, text) for name, text in zip(names, (PATIENTS, SAMPLES), strict=True)]


def test_cbioportal_patients_and_samples(tmp_path: Path) -> None:
    paths = _portal(tmp_path)
    with pytest.raises(InputError, match="several columns could be the label") as caught:
        read_cases(paths)
    assert caught.value.found == "data_clinical_sample.txt: CANCER_TYPE, ONCOTREE_CODE"
    assert "label_column=CANCER_TYPE or label_column=ONCOTREE_CODE" in (caught.value.fix or "")
    table = read_cases(paths, CaseOptions(label_column="ONCOTREE_CODE"))
    assert table.case_ids == ["TCGA-2J-AAB1", "TCGA-2J-AAB4", "TCGA-XN-A8T3", "TCGA-XN-A8T5"]
    assert table.labels == ["PAAD", "PAAD", "LUAD", "LUAD"] and table.slide_ids is None
    assert _column(table, "event") == [True, False, False, True]
    assert _column(table, "survival_months") == [2.17, 23.95, None, None]
    assert _column(table, "sex") == ["male", "female", None, "male"] and _column(table, "age") == [65, 48, None, 70]
    assert _column(table, "site") == ["2J", "2J", "XN", "XN"]
    assert "OS_STATUS" in table.extra.column_names and "SAMPLE_ID" not in table.extra.column_names
    notes = " | ".join(table.notes)
    assert "left out, for a case has several values: SAMPLE_ID, PURITY" in notes
    assert "survival_months is null, for it is negative, in 1 cases: TCGA-XN-A8T5" in notes
    assert "the event is known without a time in 1 cases: TCGA-XN-A8T3" in notes


def test_the_table_cbioportal_offers_for_download(tmp_path: Path) -> None:
    text = (
        "Study ID\tPatient ID\tSample ID\tDiagnosis Age\tCancer Type\t"
        "Overall Survival (Months)\tOverall Survival Status\n"
        "luad\tTCGA-05-4244\tTCGA-05-4244-01\t70\tLung\t1.5\t1:DECEASED\n"
        "luad\tTCGA-05-4244\tTCGA-05-4244-02\t70\tLung\t1.5\t1:DECEASED\n"
    )
    table = _read(_write(tmp_path / "clinical_data.tsv", text))
    assert (table.case_ids, table.labels) == (["TCGA-05-4244"], ["Lung"])
    assert [_column(table, name) for name in ("survival_months", "event", "age")] == [[1.5], [True], [70.0]]


def test_times_without_events(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "t.csv", "case_id,label,survival_months\na,x,5\n"))
    assert table.extra.schema.field("survival_months").type == pa.float64()
    assert "event" not in table.extra.column_names and "no censorship" in table.notes[0]


def test_other_endpoints(tmp_path: Path) -> None:
    paths = _portal(tmp_path)
    for name in ("DFS", "DFI"):
        table = read_cases(paths, CaseOptions(label_column="ONCOTREE_CODE", survival=name))
        assert _column(table, "survival_months") == [1.5, 23.95, None, None]
        assert _column(table, "event") == [True, False, None, None]
    with pytest.raises(InputError, match="no endpoint PFI") as caught:
        read_cases(paths, CaseOptions(label_column="ONCOTREE_CODE", survival="PFI"))
    assert caught.value.found == "DFI, OS"
    survpath = "case_id,label,survival_months,censorship,survival_months_dss,censorship_dss\na,x,5,0,4,1\n"
    table = _read(_write(tmp_path / "s.csv", survpath), survival="DSS")
    assert (_column(table, "survival_months"), _column(table, "event")) == ([4.0], [False])
    assert _column(table, "survival_months_as_given") == [5] and any("kept as" in note for note in table.notes)
    cdr = "bcr_patient_barcode,label,PFI,PFI.time\nTCGA-OR-A5J1,x,1,304.375\n"
    path = _write(tmp_path / "cdr.csv", cdr)
    table = _read(path, survival="PFS")
    assert (_column(table, "survival_months"), _column(table, "event")) == ([10.0], [True])
    assert any("no overall survival" in note for note in _read(path).notes)


GDC_OLD = """case_id\tcase_submitter_id\tproject_id\tage_at_index\tdays_to_death\tgender\tvital_status\tage_at_diagnosis\tdays_to_last_follow_up\tprimary_diagnosis\ttreatment_type\tempty
u1\tTCGA-18-3406\tTCGA-LUSC\t67\t371\tmale\tDead\t24527\t'--\tSquamous cell carcinoma, NOS\tRadiation Therapy, NOS\t'--
u1\tTCGA-18-3406\tTCGA-LUSC\t67\t371\tmale\tDead\t24527\t'--\tSquamous cell carcinoma, NOS\tPharmaceutical Therapy, NOS\t'--
u2\tTCGA-05-4244\tTCGA-LUAD\t70\t'--\tfemale\tAlive\t25752\t300\tAdenocarcinoma, NOS\t'--\t'--
u2\tTCGA-05-4244\tTCGA-LUAD\t70\t'--\tfemale\tAlive\t25752\t730.5\tAdenocarcinoma, NOS\t'--\t'--
u3\tTCGA-05-4245\tTCGA-LUAD\t'--\t'--\t'--\tNot Reported\t'--\t10\tAcinar cell carcinoma\t'--\t'--
"""  # noqa: E501
GDC_NEW = """project.project_id\tcases.case_id\tcases.submitter_id\tdemographic.days_to_death\tdemographic.sex_at_birth\tdemographic.vital_status\tdiagnoses.age_at_diagnosis\tdiagnoses.days_to_last_follow_up
TCGA-LUAD\tu2\tTCGA-05-4244\t'--\tfemale\tAlive\t25567.5\t365.25
TCGA-LUAD\tu2\tTCGA-05-4244\t'--\tfemale\tAlive\t'--\t'--
"""  # noqa: E501


def test_gdc(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "clinical.tsv", GDC_OLD))
    assert table.case_ids == ["TCGA-18-3406", "TCGA-05-4244", "TCGA-05-4245"]
    assert table.labels == ["TCGA-LUSC", "TCGA-LUAD", "TCGA-LUAD"], "the project, unless the user says otherwise"
    months = _column(table, "survival_months")
    assert months == [pytest.approx(371 / 30.4375), pytest.approx(24.0), None], "the last follow-up of any row"
    assert _column(table, "event") == [True, False, None] and _column(table, "age") == [67, 70, None]
    assert _column(table, "sex") == ["male", "female", None]
    assert "project_id" in table.extra.column_names, "leave_one_out:project_id needs it"
    notes = " | ".join(table.notes)
    assert "several values: treatment_type" in notes and "1 columns without any value" in notes
    by_diagnosis = _read(tmp_path / "clinical.tsv", label_column="primary_diagnosis")
    assert by_diagnosis.labels[2] == "Acinar cell carcinoma"


def test_gdc_with_prefixes(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "clinical.tsv", GDC_NEW))
    assert (table.case_ids, table.labels) == (["TCGA-05-4244"], ["TCGA-LUAD"])
    assert _column(table, "survival_months") == [12.0] and _column(table, "sex") == ["female"]
    assert _column(table, "age") == [70.0], "days become years"
    assert any("age from diagnoses.age_at_diagnosis (days / 365.25)" in note for note in table.notes)


def test_two_diagnoses_are_two_labels_unless_renamed_to_one(tmp_path: Path) -> None:
    text = GDC_OLD.replace("730.5\tAdenocarcinoma, NOS", "730.5\tMucinous adenocarcinoma")
    path = _write(tmp_path / "clinical.tsv", text)
    with pytest.raises(InputError, match="two labels") as caught:
        _read(path, label_column="primary_diagnosis")
    assert caught.value.case == "TCGA-05-4244"
    to = {"Adenocarcinoma, NOS": "LUAD", "Mucinous adenocarcinoma": "LUAD", "Acinar cell carcinoma": None}
    table = _read(path, label_column="primary_diagnosis", labels=to)
    assert table.labels == ["Squamous cell carcinoma, NOS", "LUAD", None]
    assert table.dropped == {"TCGA-05-4245": "Acinar cell carcinoma"}


def test_labels_are_renamed_and_misspelt_ones_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "case_id,label\na,Lung Adenocarcinoma\nb,LUSC\nc,Normal\nd,\n")
    table = _read(path, labels={"Lung Adenocarcinoma": "LUAD", "Normal": None})
    assert table.labels == ["LUAD", "LUSC", None, None] and table.dropped == {"c": "Normal"}
    assert _column(table, "label_as_given")[0] == "Lung Adenocarcinoma"
    with pytest.raises(InputError, match="names a label that no case has") as caught:
        _read(path, labels={"Lung Adenocarcinma": "LUAD"})
    assert (caught.value.found, caught.value.expected) == (
        "Lung Adenocarcinma",
        "LUSC, Lung Adenocarcinoma, Normal",
    )
    for bad in ({0: "x"}, {"LUSC": 1}, {"LUSC": " "}):
        with pytest.raises(ConfigError, match="labels has an unusable entry"):
            CaseOptions(labels=bad)  # type: ignore[arg-type]
    for option in ({"slides": "DX9"}, {"survival": "EFS"}):
        with pytest.raises(ConfigError, match="impossible value"):
            CaseOptions(**option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "role", "found"),
    [
        ("patient,PATIENT_ID,label", "case", "patient, PATIENT_ID"),
        ("case_id,slide,filename,label", "slide", "slide, filename"),
        ("case_id,subtype,oncotree_code", "label", "t.csv: subtype, oncotree_code"),
    ],
)
def test_two_candidates_are_never_chosen_between(tmp_path: Path, header: str, role: str, found: str) -> None:
    path = write_csv(tmp_path / "t.csv", header.split(","), [["a"] * len(header.split(","))])
    with pytest.raises(InputError, match=f"several columns could be the {role}") as caught:
        _read(path)
    first = found.removeprefix("t.csv: ").partition(",")[0]
    assert caught.value.found == found and f"{role}_column={first}" in (caught.value.fix or "")
    table = _read(path, **{f"{role}_column": first})
    assert (table.case_ids, table.labels) == (["a"], ["a"])


@pytest.mark.parametrize(
    ("header", "extra"),
    [
        ("Patient,SLIDE,Subtype", ["Subtype"]),
        ("Case ID,File Name,CANCER_TYPE", ["CANCER_TYPE"]),
        ("case_id,slide_id,label", []),
        ("bcr_patient_barcode,filename,class", ["class"]),
    ],
)
def test_usual_names_are_recognised(tmp_path: Path, header: str, extra: list[str]) -> None:
    table = _read(_write(tmp_path / "t.csv", f"\ufeff{header}\r\n A b ,s1.svs, x \r\nC,s2.svs,y\r\n"))
    assert (table.case_ids, table.slide_ids, table.labels) == (["A b", "C"], ["s1", "s2"], ["x", "y"])
    assert table.extra.column_names == extra, "the project's own names count first, a found label stays as it is"


def test_own_names_count_before_usual_ones(tmp_path: Path) -> None:
    table = _read(_write(tmp_path / "t.csv", "case_id,patient_id,label,subtype\nb1,007,x,y\n"))
    assert (table.case_ids, table.labels) == (["b1"], ["x"])
    assert _column(table, "patient_id") == ["007"], "text, not the number 7"


def test_options_that_name_no_column_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "case_id,label\na,x\n")
    for option in ("case_column", "slide_column", "label_column"):
        with pytest.raises(InputError, match=f"no column grade, which {option} names") as caught:
            _read(path, **{option: "grade"})
        assert caught.value.found == "case_id, label"
    with pytest.raises(InputError, match="no label column"):
        _read(_write(tmp_path / "u.csv", "case_id,grade\na,x\n"))
    with pytest.raises(InputError, match="no case_id column"):
        _read(_write(tmp_path / "v.csv", "slide_id,label\na,x\n"))
    with pytest.raises(InputError, match="no label column") as caught:
        _read(_write(tmp_path / "w.csv", "case_id;label\na;x\n"))
    assert "not by ;" in (caught.value.fix or "")
    with pytest.raises(ConfigError, match="no case table"):
        read_cases([])


def test_a_slide_list_with_a_clinical_table(tmp_path: Path) -> None:
    slides = _write(tmp_path / "slides.csv", "case_id,slide_id\nA,A1.svs\nA,A2.svs\nB,B1.svs\nX,X1.svs\n")
    clinical = _write(tmp_path / "clinical.csv", "patient,age,subtype\nA,50,LUAD\nB,60.5,LUSC\nC,70,LUSC\n")
    for paths in ([slides, clinical], [clinical, slides]):
        table = read_cases(paths)
        assert table.path == slides and table.case_ids == ["A", "A", "B", "X"]
        assert table.slide_ids == ["A1", "A2", "B1", "X1"] and table.labels == ["LUAD", "LUAD", "LUSC", None]
        assert _column(table, "age") == [50, 50, 60.5, None]
        assert "1 cases of slides.csv are not in clinical.csv, such as X" in table.notes
        assert "1 cases of clinical.csv are not in slides.csv, and are not used, such as C" in table.notes


def test_the_said_slide_column_decides_which_table_has_slides(tmp_path: Path) -> None:
    labels = _write(tmp_path / "labels.csv", "case_id,label,filename\nA,x,report.pdf\nA,x,report.pdf\n")
    slides = _write(tmp_path / "slides.csv", "case_id,image\nA,A1.svs\nA,A2.svs\n")
    table = read_cases([labels, slides], CaseOptions(slide_column="image"))
    assert (table.path, table.slide_ids, table.labels) == (slides, ["A1", "A2"], ["x", "x"])
    assert _column(table, "filename") == ["report.pdf"] * 2
    bare = _write(tmp_path / "bare.csv", "case_id,label\nA,x\nA,x\n")
    table = read_cases([bare, slides], CaseOptions(slide_column="image"))
    assert table.labels == ["x", "x"] and table.extra.column_names == []


def test_joined_columns_of_one_name(tmp_path: Path) -> None:
    first = _write(tmp_path / "a.csv", "case_id,label,grade,stage,n\nA,x,1,I,1\nB,y,,II,2\n")
    second = _write(tmp_path / "b.csv", "case_id,label,grade,stage,n\nB,y,2.5,III,z\nA,,1,I,1\n")
    table = read_cases([first, second])
    assert (table.labels, _column(table, "grade")) == (["x", "y"], [1, 2.5]), "what one lacks the other knows"
    assert (_column(table, "stage"), _column(table, "stage_2")) == (["I", "II"], ["I", "III"])
    assert _column(table, "n_2") == ["1", "z"], "two types that cannot be one"
    assert any("stage of b.csv differs from that of a.csv" in note for note in table.notes)
    third = _write(tmp_path / "c.csv", "case_id,label\nA,z\n")
    with pytest.raises(InputError, match="two labels") as caught:
        read_cases([first, third])
    assert (caught.value.case, caught.value.found, caught.value.file) == ("A", "x and z", str(third))


def test_joining_by_tcga_patient(tmp_path: Path) -> None:
    labels = _write(tmp_path / "labels.csv", "case_id,label\nTCGA-05-4244-01A,x\nTCGA-05-4245-01A,y\n")
    clinical = _write(tmp_path / "clinical.csv", "case_id,age\nTCGA-05-4244,50\n")
    table = read_cases([labels, clinical])
    assert _column(table, "age") == [50, None] and any("by TCGA patient" in note for note in table.notes)
    several = _write(tmp_path / "d.csv", "case_id,age\nTCGA-05-4244-06A,1\nTCGA-05-4244-11A,2\n")
    with pytest.raises(InputError, match="several rows") as caught:
        read_cases([labels, several])
    assert caught.value.case == "TCGA-05-4244"
    with pytest.raises(InputError, match="no case in common") as caught:
        read_cases([labels, _write(tmp_path / "e.csv", "case_id,age\nQ,1\n")])
    assert caught.value.found == "ids, such as Q"


def test_odd_values_are_null_and_told(tmp_path: Path) -> None:
    text = "case_id,label,age,sex,OS_MONTHS,OS_STATUS\na,x,90+,F,5,maybe\nb,x,200,Male,x,LIVING\nc,x,40,diverse,1,0\n"
    table = _read(_write(tmp_path / "t.csv", text))
    assert (_column(table, "age"), _column(table, "age_as_given")) == ([None, None, 40], ["90+", "200", "40"])
    assert _column(table, "sex") == ["female", "male", None]
    assert _column(table, "sex_as_given") == ["F", "Male", "diverse"]
    assert (_column(table, "survival_months"), _column(table, "event")) == ([5, None, 1], [None, False, False])
    notes = " | ".join(table.notes)
    for told in (
        "no number, in 1 cases: a",
        "between 0 and 150, in 1 cases: b",
        "neither female nor male, in 1 cases: c",
        "without a time in 1 cases: b",
        "without an event in 1 cases: a",
    ):
        assert told in notes
    coded = _read(_write(tmp_path / "u.csv", "case_id,label,sex\na,x,1\nb,x,2\n"))
    assert _column(coded, "sex") == [1, 2] and "neither female nor male" in coded.notes[0], "nobody said which is which"


def test_clean_values_stay_where_they_are(tmp_path: Path) -> None:
    text = "case_id,label,sex,event,survival_months\na,x,Female,1,5\nb,x,male,0,6.5\n"
    table = _read(_write(tmp_path / "t.csv", text))
    assert table.extra.column_names == ["sex", "event", "survival_months"]
    assert (_column(table, "sex"), _column(table, "event")) == (["female", "male"], [True, False])


@pytest.mark.parametrize(
    ("name", "content", "message", "found"),
    [
        ("t.csv", "case_id,label\na,x\n".encode("utf-16"), "not UTF-8", "UTF-16 text"),
        ("t.csv", b"case_id,label,x,x\na,b,c,d\n", "column twice", "x"),
        ("t.csv", b'case_id,label\n"a,x\n', "cannot be read", None),
        ("t.csv.gz", b"\x1f\x8b\x08truncated", "cannot be read", None),
        ("t.csv", b"#only\n#comments\n", "cannot be read", "an empty file"),
    ],
)
def test_files_that_are_no_tables_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str, found: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path / name)
    assert caught.value.file == str(tmp_path / name) and (found is None or caught.value.found == found)


def test_zips_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    for names, message in ((("a.csv", "b.csv"), "zip of several files"), (("xl/workbook.xml", "z"), "an Excel file")):
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "case_id,label\na,x\n")
        with pytest.raises(InputError, match=message):
            _read(tmp_path / "t.zip")
    with pytest.raises(InputError, match="no such case table") as caught:
        _read(tmp_path)
    assert caught.value.found == "a folder"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine")
def test_real_clinical_tables() -> None:
    clinical, mutations = (SHARED / "clinical" / f"tcga_{name}.csv" for name in ("nsclc_clinical", "luad_mutations"))
    table = read_cases([clinical])
    assert len(table.case_ids) == 999 and set(table.labels) == {"LUAD", "LUSC"}
    events, censored = _column(table, "event"), _column(table, "censorship")
    assert [None if c is None else c == 0 for c in censored] == events and events.count(True) > 300
    months = [m for m in table.extra["survival_months"].to_pylist() if m is not None]
    assert min(months) >= 0 and 200 < max(months) < 300
    assert set(_column(table, "sex")) <= {"female", "male", None}
    joined = read_cases([clinical, mutations], CaseOptions(label_column="TP53", labels={"1": "mutated", "0": "wild"}))
    assert joined.path == clinical and set(joined.labels) == {"mutated", "wild", None}
    assert joined.labels.count(None) == 485 and "EGFR" in joined.extra.column_names
    assert any(note.startswith("451 cases of tcga_nsclc_clinical.csv are not in") for note in joined.notes)
