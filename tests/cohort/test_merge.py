"""`merge_stores`: what a merged store holds, that it moves with its members, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohort_files import features, grid, write_csv, write_h5
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.merge import merge_stores
from gimp_ray.store.merge_places import below, canonical, name_from, short_names
from tests.object_storage.fixtures import bucket, s3_env, s3_proxy, s3_server  # noqa: F401

GENES = ("TP53", "EGFR", "KRAS", "STK11")


@dataclass
class Made:
    """A store and what is in it."""

    path: Path
    bags: dict[str, np.ndarray] = field(default_factory=dict)
    expression: dict[str, dict[str, float]] = field(default_factory=dict)


def make(
    root: Path,
    name: str,
    cases: Sequence[str],
    *,
    genes: Sequence[str] | None = GENES,
    dim: int | None = 8,
    unit: str = "TPM",
    columns: dict[str, Sequence[object]] | None = None,
    encoder: str | None = None,
    slides: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    patch_size: int = 256,
    out: Path | str | None = None,
    **options: object,
) -> Made:
    """Ingest the cases given, one slide each, label after the store's name; `columns` are those of the case table."""
    source = root / "sources" / name
    source.mkdir(parents=True)
    made = Made(Path(out or root / name))
    seed = sum(map(ord, name))
    slides = slides or [f"{case}-DX1" for case in cases]
    for i, slide in enumerate(slides):
        if dim is not None:
            made.bags[slide] = features(5 + i, dim, seed=seed + i)
            attributes = {"patch_size": patch_size, "patch_level": 0} | ({"encoder": encoder} if encoder else {})
            write_h5(source / "patches" / f"{slide}.h5", made.bags[slide], grid(5 + i), **attributes)
    if genes:
        rng = np.random.default_rng(seed)
        made.expression = {c: {g: round(float(rng.uniform(1, 9)), 2) for g in genes} for c in cases}
        rows = [[g, *(made.expression[c][g] for c in cases)] for g in genes]
        write_csv(source / "genes.tsv", ["gene", *cases], rows, separator="\t")
    columns = columns or {}
    labels = labels or [name] * len(cases)
    rows = [
        [c, *([s] if dim else []), x, *more]
        for c, s, x, *more in zip(cases, slides, labels, *columns.values(), strict=True)
    ]
    write_csv(source / "cases.csv", ["case_id", *(["slide_id"] if dim else []), "label", *columns], rows)
    ingest_cohort(
        patches=source / "patches" if dim is not None else None,
        genes=source / "genes.tsv" if genes else None,
        cases=source / "cases.csv",
        out=out or made.path,
        options=IngestOptions(workers=1, progress=False, gene_unit=unit if genes else "unknown", **options),  # type: ignore[arg-type]
    )
    return made


@pytest.fixture(scope="module")
def two_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    root = tmp_path_factory.mktemp("two")
    brca = make(root, "BRCA", ["c1", "c3", "c5", "c7"], columns={"grade": [50, 61, 72, 83]})
    luad = make(root, "LUAD", ["c2", "c4", "c6", "c8"], columns={"grade": [1.5, 2.5, 3.5, 4.5], "smoker": list("ynyn")})
    return brca, luad


@pytest.fixture
def two(two_made: tuple[Made, Made], tmp_path: Path) -> tuple[Made, Made]:
    """BRCA and LUAD, whose case ids alternate when sorted."""
    brca, luad = (dataclasses.replace(m, path=shutil.copytree(m.path, tmp_path / m.path.name)) for m in two_made)
    return brca, luad


def holds(store: CohortStore, *members: Made) -> None:
    """Every bag and every expression value of the members is in the store."""
    for made in members:
        for slide, bag in made.bags.items():
            np.testing.assert_array_equal(store.read_bag(slide), bag.astype(np.float16))
            np.testing.assert_array_equal(store.read_window(slide, 2, 3), bag[2:5].astype(np.float16))
        for case, values in made.expression.items():
            row = dict(zip(store.gene_ids, store.read_genes([case])[0].tolist(), strict=True))
            for gene, value in values.items():
                assert gene not in row or row[gene] == np.float32(value), (case, gene)


def test_a_merged_store_holds_its_members_and_copies_no_patch(two: tuple[Made, Made], tmp_path: Path) -> None:
    report = merge_stores([two[0].path, two[1].path], tmp_path / "ALL", deep=True)
    store = CohortStore.open(tmp_path / "ALL")
    holds(store, *two)
    assert not (tmp_path / "ALL" / "patches").exists()
    assert store.cases["case_id"].to_pylist() == [f"c{i}" for i in range(1, 9)]
    assert store.cases["cohort"].to_pylist() == ["BRCA", "LUAD"] * 4
    assert store.cases["grade"].to_pylist() == [50, 1.5, 61, 2.5, 72, 3.5, 83, 4.5]
    assert store.cases["smoker"].to_pylist() == [None, "y", None, "n"] * 2
    assert store.classes == ("BRCA", "LUAD")
    assert store.slides["file"].unique().to_pylist() == [
        "../BRCA/patches/part-00000.parquet",
        "../LUAD/patches/part-00000.parquet",
    ]
    assert store.manifest.members == {
        "../BRCA": CohortStore.open(two[0].path).fingerprint,
        "../LUAD": CohortStore.open(two[1].path).fingerprint,
    }
    assert check_store(tmp_path / "ALL", deep=True).ok
    fold = store.split("kfold", 0)
    assert sorted([*fold.train, *fold.val, *fold.test]) == [f"c{i}" for i in range(1, 9)]
    assert len({(row["kind"], row["file"]) for row in store.table("sources").to_pylist()}) == 12
    written = json.loads((tmp_path / "ALL" / "ingest_report.json").read_text())
    assert [m["cohorts"] for m in written["merged"]] == [{"BRCA": 4}, {"LUAD": 4}]
    assert any("own splits (kfold)" in note for note in written["notes"])
    assert any("grade is int64 and double" in note for note in report.notes)
    assert "merged of 2 stores" in str(report) and "Note: " in str(report)
    assert not list(tmp_path.glob(".ALL*")), "no lock and no hidden folder is left"


def test_a_merged_store_moves_with_its_members(two: tuple[Made, Made], tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    for made in two:
        shutil.move(made.path, tmp_path / "x" / made.path.name)
    merge_stores([tmp_path / "x" / "BRCA", tmp_path / "x" / "LUAD"], tmp_path / "x" / "y" / "ALL")
    shutil.move(tmp_path / "x", tmp_path / "elsewhere")
    holds(CohortStore.open(tmp_path / "elsewhere" / "y" / "ALL"), *two)
    assert check_store(tmp_path / "elsewhere" / "y" / "ALL").ok
    shutil.move(tmp_path / "elsewhere" / "LUAD", tmp_path / "LUAD")
    failed = [f.what for f in check_store(tmp_path / "elsewhere" / "y" / "ALL").findings if f.level == "FAIL"]
    assert any("merged from" in what and "LUAD" in what for what in failed)


def test_a_member_that_changed_is_found(two: tuple[Made, Made], tmp_path: Path) -> None:
    merge_stores([two[0].path, two[1].path], tmp_path / "ALL")
    shutil.rmtree(two[1].path)
    make(tmp_path / "again", "LUAD", ["c2", "c4", "c6", "c8"], dim=8, out=two[1].path, labels=["other"] * 4)
    failed = [f for f in check_store(tmp_path / "ALL").findings if f.level == "FAIL"]
    assert any("is not what it was" in f.what and "merge the stores again" in (f.fix or "") for f in failed)


def test_a_damaged_member_is_refused_and_nothing_is_left(two: tuple[Made, Made], tmp_path: Path) -> None:
    part = two[1].path / "patches" / "part-00000.parquet"
    chunk = pq.read_metadata(part).row_group(0).column(2)
    content = bytearray(part.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match="hash differs"):
        merge_stores([two[0].path, two[1].path], tmp_path / "ALL", deep=True)
    assert not (tmp_path / "ALL").exists() and not list(tmp_path.glob(".ALL*"))
    part.unlink()
    with pytest.raises(InputError, match="not sound"):
        merge_stores([two[0].path, two[1].path], tmp_path / "ALL")


def test_the_same_members_give_the_same_fingerprint_wherever_they_are(two: tuple[Made, Made], tmp_path: Path) -> None:
    one = merge_stores([two[0].path, two[1].path], tmp_path / "ALL")
    (tmp_path / "copy").mkdir()
    copies = [shutil.copytree(made.path, tmp_path / "copy" / made.path.name) for made in two]
    other = merge_stores(copies, tmp_path / "copy" / "deep" / "ALL")
    assert one.manifest.fingerprint == other.manifest.fingerprint
    assert one.manifest.members != other.manifest.members


@pytest.mark.parametrize("rule", ["same", "intersect", "union"])
def test_genes(tmp_path: Path, rule: str) -> None:
    one = make(tmp_path, "ONE", ["a1", "a2"], genes=["A", "B", "C", "D"], dim=None)
    two = make(tmp_path, "TWO", ["b1", "b2"], genes=["C", "E", "B", "A"], dim=None)
    if rule == "same":
        with pytest.raises(InputError, match="other genes") as caught:
            merge_stores([one.path, two.path], tmp_path / "ALL", genes=rule)
        assert "such as D" in str(caught.value.found)
        return
    report = merge_stores([one.path, two.path], tmp_path / "ALL", genes=rule)
    store = CohortStore.open(tmp_path / "ALL")
    holds(store, one, two)
    counts = [(m.genes_left_out, m.genes_filled) for m in report.members]
    if rule == "intersect":
        assert store.gene_ids == ["A", "B", "C"] and counts == [(1, 0), (1, 0)]
    else:
        assert store.gene_ids == ["A", "B", "C", "D", "E"] and counts == [(0, 1), (0, 1)]
        assert store.read_genes(["a1"])[0, 4] == 0 and store.read_genes(["b2"])[0, 3] == 0
        assert "1 genes stored as 0" in str(report)
    assert store.manifest.members == {} and store.dim is None and store.manifest.gene_unit == "TPM"


def test_same_genes_in_another_order_are_the_same(tmp_path: Path) -> None:
    one = make(tmp_path, "ONE", ["a1", "a2"], genes=["A", "B", "C"], dim=None)
    two = make(tmp_path, "TWO", ["b1", "b2"], genes=["C", "A", "B"], dim=None)
    merge_stores([one.path, two.path], tmp_path / "ALL", genes="same")
    store = CohortStore.open(tmp_path / "ALL")
    assert store.gene_ids == ["A", "B", "C"]
    holds(store, one, two)


@pytest.mark.parametrize("rule", ["intersect", "union"])
def test_versioned_and_unversioned_ids_do_not_match_silently(tmp_path: Path, rule: str) -> None:
    ids = [f"ENSG0000000000{i}" for i in range(6)]
    one = make(tmp_path, "ONE", ["a1", "a2"], genes=[f"{i}.12" for i in ids], dim=None)
    two = make(tmp_path, "TWO", ["b1", "b2"], genes=ids, dim=None)
    with pytest.raises(InputError, match="hardly match") as caught:
        merge_stores([one.path, two.path], tmp_path / "ALL", genes=rule)
    assert "--gene-versions strip" in str(caught.value.fix) and "0 of 6" in str(caught.value.found)


def test_three_lists_with_little_in_common_are_refused_by_intersect_alone(tmp_path: Path) -> None:
    lists = {"ONE": "ABCDEF", "TWO": "ABCGHI", "TRI": "DEFABX"[:3] + "GHI"}
    made = [
        make(tmp_path, name, [f"{name}{i}" for i in range(2)], genes=list(genes), dim=None)
        for name, genes in lists.items()
    ]
    with pytest.raises(InputError, match="few genes in common"):
        merge_stores([m.path for m in made], tmp_path / "ALL")
    merge_stores([m.path for m in made], tmp_path / "ALL", genes="union")
    assert CohortStore.open(tmp_path / "ALL").gene_ids == list("ABCDEFGHI")


def test_a_merged_member_is_replaced_by_its_own(two: tuple[Made, Made], tmp_path: Path) -> None:
    merge_stores([two[0].path, two[1].path], tmp_path / "PAIR")
    third = make(tmp_path, "GBM", ["d1", "d2"])
    report = merge_stores([tmp_path / "PAIR", third.path], tmp_path / "sub" / "ALL")
    store = CohortStore.open(tmp_path / "sub" / "ALL")
    holds(store, *two, third)
    assert sorted(store.manifest.members) == ["../../BRCA", "../../GBM", "../../LUAD"]
    assert set(store.cases["cohort"].to_pylist()) == {"BRCA", "LUAD", "GBM"}
    assert report.members[0].members == (str(two[0].path), str(two[1].path))
    shutil.rmtree(tmp_path / "PAIR")
    assert check_store(tmp_path / "sub" / "ALL", deep=True).ok


def test_cohort_column_and_leave_one_cohort_out(tmp_path: Path) -> None:
    one = make(tmp_path / "A", "store", ["a1", "a2", "a3"], columns={"project": ["P1", "P2", ""]})
    two = make(tmp_path / "B", "store", ["b1", "b2", "b3"])
    merge_stores(
        [one.path, two.path], tmp_path / "ALL", cohort_column="project", split_schemes=["leave_one_out:project"]
    )
    store = CohortStore.open(tmp_path / "ALL")
    assert store.cases["project"].to_pylist() == ["P1", "P2", "A", "B", "B", "B"]
    schemes = store.split_schemes
    assert list(schemes) == ["leave_one_out:project"]
    tests = {store.split("leave_one_out:project", fold).test for fold in schemes["leave_one_out:project"]}
    assert tests == {("a1",), ("a2",), ("a3",), ("b1", "b2", "b3")}


def test_a_column_by_case_in_one_and_by_slide_in_another_is_by_slide(tmp_path: Path) -> None:
    one = make(tmp_path, "ONE", ["a1", "a2"], columns={"block": ["x", "y"]}, genes=None)
    slides = ["b1-DX1", "b1-DX2", "b2-DX1"]
    two = make(tmp_path, "TWO", ["b1", "b1", "b2"], columns={"block": ["u", "v", "w"]}, genes=None, slides=slides)
    report = merge_stores([one.path, two.path], tmp_path / "ALL")
    store = CohortStore.open(tmp_path / "ALL")
    assert "block" not in store.cases.column_names
    assert dict(zip(store.slides["slide_id"].to_pylist(), store.slides["block"].to_pylist(), strict=True)) == {
        "a1-DX1": "x", "a2-DX1": "y", "b1-DX1": "u", "b1-DX2": "v", "b2-DX1": "w",
    }  # fmt: skip
    assert any("block" in note for note in report.notes)


def test_types_that_do_not_go_together_become_text(tmp_path: Path) -> None:
    one = make(tmp_path, "ONE", ["a1", "a2"], columns={"stage": [1, 2]}, genes=None)
    two = make(tmp_path, "TWO", ["b1", "b2"], columns={"stage": ["III", "IV"]}, genes=None)
    merge_stores([one.path, two.path], tmp_path / "ALL")
    assert CohortStore.open(tmp_path / "ALL").cases["stage"].to_pylist() == ["1", "2", "III", "IV"]


def test_compressions_may_differ(tmp_path: Path) -> None:
    one = make(tmp_path, "ONE", ["a1", "a2"])
    two = make(tmp_path, "TWO", ["b1", "b2"], compression="zstd")
    merge_stores([one.path, two.path], tmp_path / "ALL")
    store = CohortStore.open(tmp_path / "ALL")
    holds(store, one, two)
    assert store.manifest.patches.compression == "mixed"


# what the second store is, against a first of cases a1, a2 with encoder `uni` -> what is said
UNFIT: dict[str, tuple[dict[str, object], str, str]] = {
    "dim": ({"dim": 4}, "differ in dim", "4"),
    "dtype": ({"dtype": "float32"}, "differ in dtype", "float32"),
    "encoder": ({"encoder": "conch"}, "differ in encoder", "conch"),
    "patch size": ({"patch_size": 512}, "differ in patch size", "512"),
    "unit": ({"unit": "FPKM"}, "differ in gene unit", "FPKM"),
    "no genes": ({"genes": None}, "differ in modalities", "patches"),
    "no patches": ({"dim": None}, "differ in modalities", "genes"),
    "case": ({"cases": ["a2", "b2"], "slides": ["s1", "s2"]}, "case is in two", "a2"),
    "slide": ({"slides": ["a1-DX1", "s2"]}, "slide is in two", "a1-DX1"),
    "patient": ({"columns": {"patient_id": ["q", "a1"]}}, "patient is in two", "a1"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_stores_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    change, message, names = UNFIT[kind]
    one = make(tmp_path, "ONE", ["a1", "a2"], encoder="uni")
    two = make(tmp_path, "TWO", change.pop("cases", ["b1", "b2"]), **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message) as caught:
        merge_stores([one.path, two.path], tmp_path / "ALL")
    assert names in f"{caught.value.found} {caught.value.case}"
    assert caught.value.file == str(two.path) and caught.value.fix
    assert not (tmp_path / "ALL").exists()


def test_tcga_barcodes_tell_patients(tmp_path: Path) -> None:
    one = make(tmp_path, "ONE", ["TCGA-05-4244-01A", "x"], genes=None)
    two = make(tmp_path, "TWO", ["TCGA-05-4244-11A", "y"], genes=None)
    with pytest.raises(InputError, match="patient is in two") as caught:
        merge_stores([one.path, two.path], tmp_path / "ALL")
    assert caught.value.case == "TCGA-05-4244"


def test_an_encoder_one_store_does_not_name_is_noted(tmp_path: Path) -> None:
    one, two = make(tmp_path, "ONE", ["a1", "a2"], genes=None), make(tmp_path, "TWO", ["b1"], genes=None, encoder="uni")
    report = merge_stores([one.path, two.path], tmp_path / "ALL")
    assert report.manifest.encoder == "uni"
    assert any("encoder is uni" in note and str(one.path) in note for note in report.notes)


def test_places_and_options_that_cannot_be_are_refused(two: tuple[Made, Made], tmp_path: Path) -> None:
    both = [two[0].path, two[1].path]
    for stores, out, options, message in (
        (both[:1], "ALL", {}, "too few"),
        ([*both, both[0]], "ALL", {}, "given twice"),
        (both, "BRCA/ALL", {}, "would lie in"),
        (both, ".", {}, "would lie in"),
        (both, "ALL", {"genes": "all"}, "rule for genes"),
        (both, "ALL", {"cohort_column": "label"}, "cohort column"),
        (both, "ALL", {"folds": 2}, "out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge_stores(stores, tmp_path / out, **options)  # type: ignore[arg-type]
    merge_stores(both, tmp_path / "ALL")
    before = (tmp_path / "ALL" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        merge_stores(both, tmp_path / "ALL")
    assert (tmp_path / "ALL" / "manifest.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="exists already"):
        merge_stores(both, tmp_path / "other")


def test_a_merged_store_is_not_added_to(two: tuple[Made, Made], tmp_path: Path) -> None:
    merge_stores([two[0].path, two[1].path], tmp_path / "ALL")
    with pytest.raises(InputError, match="merged store cannot be added to"):
        make(tmp_path / "more", "X", ["x1"], out=tmp_path / "ALL")


def test_in_a_bucket_and_across(two: tuple[Made, Made], tmp_path: Path, bucket: str) -> None:  # noqa: F811
    remote = make(tmp_path / "r", "GBM", ["d1", "d2"], out=f"{bucket}/in/GBM")
    other = make(tmp_path / "r", "KIRC", ["e1", "e2"], out=f"{bucket}/KIRC")
    report = merge_stores([f"{bucket}/in/GBM", f"{bucket}/KIRC/"], f"{bucket}/merged/PAIR")
    store = CohortStore.open(f"{bucket}/merged/PAIR")
    holds(store, remote, other)
    assert sorted(report.manifest.members) == ["../../KIRC", "../../in/GBM"]
    assert store.slides["file"].unique().to_pylist()[0] == "../../in/GBM/patches/part-00000.parquet"
    with pytest.raises(InputError, match="exists already"):
        merge_stores([f"{bucket}/in/GBM", f"{bucket}/KIRC"], f"{bucket}/merged/PAIR")
    # a local store of what is in the bucket, and one in the bucket of what is local
    merge_stores([f"{bucket}/merged/PAIR", two[0].path], tmp_path / "ALL")
    local = CohortStore.open(tmp_path / "ALL")
    holds(local, remote, other, two[0])
    assert sorted(local.manifest.members) == ["../BRCA", f"{bucket}/KIRC", f"{bucket}/in/GBM"]
    assert check_store(tmp_path / "ALL", deep=True).ok
    merge_stores([f"{bucket}/KIRC", two[1].path], f"{bucket}/MIX")
    holds(CohortStore.open(f"{bucket}/MIX"), other, two[1])
    assert two[1].path.as_uri() in CohortStore.open(f"{bucket}/MIX").manifest.members


names = st.lists(st.sampled_from(["a", "b c", "d", "ü"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None)
@given(one=names, other=names, root=st.sampled_from(["/", "s3://bucket/", "gs://x/"]))
def test_a_relative_name_leads_back(one: str, other: str, root: str) -> None:
    target, start = canonical(root + one), canonical(root + other)
    name = name_from(target, start)
    assert "://" not in name and not name.startswith("/")
    assert below(start, name) == target


def test_names_across_file_systems_are_uris() -> None:
    assert name_from("s3://b/x", "/data/m") == "s3://b/x" == below("/data/m", "s3://b/x")
    assert name_from("/data/a b", "s3://b/m") == "file:///data/a%20b"
    assert below("s3://b/m", "file:///data/a%20b") == "/data/a b" == canonical("file:///data/a%20b/")
    assert name_from("s3://b/x", "s3://c/m") == "s3://b/x"
    assert name_from("s3://b/x?region=r", "s3://b/m") == "s3://b/x?region=r"
    assert below("s3://b/x?region=r", "patches/p") == "s3://b/x/patches/p?region=r"
    assert short_names(["/d/BRCA/store", "/d/LUAD/store"]) == ["BRCA", "LUAD"]
    assert short_names(["/d/BRCA", "s3://b/LUAD"]) == ["BRCA", "LUAD"]
    assert short_names(["/d/x/A", "/d/y/A", "/d/z/B"]) == ["x/A", "y/A", "z/B"]


def test_merged_tables_are_of_the_store_s_schema(two: tuple[Made, Made], tmp_path: Path) -> None:
    merge_stores([two[0].path, two[1].path], tmp_path / "ALL")
    store, member = CohortStore.open(tmp_path / "ALL"), CohortStore.open(two[0].path)
    assert store.slides.schema.equals(member.slides.schema)
    assert store.cases.schema.field("cohort") == pa.field("cohort", pa.string())


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine")
def test_stores_of_real_embeddings(tmp_path: Path) -> None:
    stores, files = [], {}
    for folder in ("pseudoslides", "wsi_bags"):
        found = {path.stem: path for path in (SHARED / "patches" / folder).glob("*.h5")}
        files |= found
        cases = write_csv(tmp_path / f"{folder}.csv", ("case_id", "slide_id", "label"), [[s, s, folder] for s in found])
        stores.append(tmp_path / folder)
        options = IngestOptions(workers=1, progress=False)
        ingest_cohort(patches=SHARED / "patches" / folder, genes=None, cases=cases, out=stores[-1], options=options)
    merge_stores(stores, tmp_path / "ALL", deep=True)
    store = CohortStore.open(tmp_path / "ALL")
    assert store.slides["slide_id"].to_pylist() == sorted(files) and len(files) == 14
    for slide, path in files.items():
        with h5py.File(path) as file:
            np.testing.assert_array_equal(store.read_bag(slide), file["features"][:].astype(np.float16))
            np.testing.assert_array_equal(store.read_coords(slide), file["coords"][:])
