"""Gene matrices: every format and orientation gives the same expression, keyed by case."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from cohort_files import Sources, write_csv

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.ingest import ingest_cohort
from gimp_ray.store import CohortStore
from gimp_ray.store.units import parse_unit

Frame = pd.DataFrame


def _hdf5(path: Path, frame: Frame, transposed: bool = False, **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        file["expression"] = (frame.T if transposed else frame).to_numpy(np.float32)
        file["case_id"], file["gene_id"] = list(frame.index), list(frame.columns)
        file.attrs.update(attributes)
    return path


def _gzip(path: Path, frame: Frame) -> Path:
    with gzip.open(path, "wt") as stream:
        frame.to_csv(stream, sep="\t")
    return path


def _written(path: Path, write: Callable[[Path], None]) -> Path:
    write(path)
    return path


FORMATS: dict[str, Callable[[Path, Frame], Path]] = {
    "csv cases x genes": lambda d, f: _written(d / "g.csv", f.to_csv),
    "csv genes x cases": lambda d, f: _written(d / "g.csv", f.T.to_csv),
    "tsv.gz genes x cases": lambda d, f: _gzip(d / "g.tsv.gz", f.T),
    "txt cases x genes": lambda d, f: _written(d / "g.txt", lambda p: f.to_csv(p, sep="\t")),
    "parquet with index": lambda d, f: _written(d / "g.parquet", f.to_parquet),
    "parquet genes x cases": lambda d, f: _written(d / "g.parquet", f.T.rename_axis("gene").reset_index().to_parquet),
    "hdf5 cases x genes": lambda d, f: _hdf5(d / "g.h5", f),
    "hdf5 genes x cases": lambda d, f: _hdf5(d / "g.h5", f, transposed=True),
}  # fmt: skip


def _frame(sources: Sources) -> Frame:
    return pd.DataFrame.from_dict(sources.expression, orient="index", columns=sources.gene_ids)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same(sources: Sources, kind: str) -> None:
    frame = _frame(sources).sample(frac=1, random_state=1)  # the file's order of cases is not the table's
    path = FORMATS[kind](sources.root, frame)
    sources_genes = ingest_cohort(patches=None, genes=path, cases=sources.cases, out=sources.out, options=_quiet())
    store = CohortStore.open(sources.out)
    assert sources_genes.manifest.num_genes == 5
    assert store.gene_ids == sources.gene_ids
    cases = ["B1", "A2"]
    expected = np.stack([sources.expression[c] for c in cases]).astype(np.float32)
    np.testing.assert_allclose(store.read_genes(cases), expected, rtol=1e-7)


def test_wide_files_fit(sources: Sources) -> None:
    """A header line of 1.2 MB, as a full gene list has (here of fewer genes with longer names, to be quick)."""
    genes = [f"ENSG{i:055d}" for i in range(20_000)]
    values = np.random.default_rng(0).random((6, len(genes))).astype(np.float32)
    path = sources.root / "wide.csv"
    cases = list(sources.expression)
    lines = [",".join(["case_id", *genes])] + [",".join([c, *map(str, v)]) for c, v in zip(cases, values, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    ingest_cohort(patches=None, genes=path, cases=sources.cases, out=sources.out, options=_quiet())
    store = CohortStore.open(sources.out)
    assert store.gene_ids == genes
    np.testing.assert_array_equal(store.read_genes(cases), values)


def test_tcga_samples_match_by_patient_when_nothing_matches_exactly(sources: Sources) -> None:
    patients = ["TCGA-05-424" + str(i) for i in range(6)]
    sources.expression = {f"{p}-01A-11R": v for p, v in zip(patients, sources.expression.values(), strict=True)}
    sources.write_genes()
    write_csv(sources.cases, ("case_id", "label"), [[p, "xy"[i % 2]] for i, p in enumerate(patients)])
    report = sources.ingest(patches=False)
    assert any("matched by TCGA patient" in note for note in report.notes)
    assert report.kept["cases"][0]["gene_sample"] == "TCGA-05-4240-01A-11R"
    values = CohortStore.open(sources.out).read_genes(patients[:1])
    np.testing.assert_array_equal(values[0], sources.expression["TCGA-05-4240-01A-11R"].astype(np.float32))


def test_a_gz_that_is_none_is_read(sources: Sources) -> None:
    """Browsers unpack a download and keep its name."""
    sources.genes.rename(sources.root / "g.tsv.gz")
    report = ingest_cohort(
        patches=None, genes=sources.root / "g.tsv.gz", cases=sources.cases, out=sources.out, options=_quiet()
    )
    assert report.manifest.num_genes == 5


@pytest.mark.parametrize(
    ("change", "message", "found"),
    [
        (lambda f: f.rename(index={"A1": "A0"}), "case stands twice", "A0"),
        (lambda f: f.set_axis([*f.columns[:-1], "TP53"], axis=1), "gene stands twice", "TP53"),
        (lambda f: f.rename(index=lambda c: "other" + c), "no case of the case table", "otherA0"),
        (lambda f: f.rename(columns={"TP53": "A0"}), "case ids on both axes", "6 cases among the rows and 1"),
        (lambda f: f.astype(object).replace({f.iloc[2, 1]: "high"}), "not a table of numbers", "high"),
        (lambda f: f.iloc[:0], "is empty", "0 rows"),
        (lambda f: f.iloc[:, :0], "not a table of numbers", "one column"),
    ],
)
def test_contradicting_matrices_are_refused(
    sources: Sources, change: Callable[[Frame], Frame], message: str, found: str
) -> None:
    path = sources.root / "g.csv"
    change(_frame(sources)).to_csv(path)
    with pytest.raises(InputError, match=message) as caught:
        ingest_cohort(patches=None, genes=path, cases=sources.cases, out=sources.out, options=_quiet())
    assert caught.value.file == str(path)
    assert caught.value.found is not None and found in caught.value.found
    assert not sources.out.exists()


def test_an_orientation_that_is_said_is_used(sources: Sources) -> None:
    frame = _frame(sources).rename(columns={"TP53": "A0"})
    frame.to_csv(sources.root / "g.csv")
    options = _quiet(gene_orientation="cases_by_genes")
    ingest_cohort(patches=None, genes=sources.root / "g.csv", cases=sources.cases, out=sources.out, options=options)
    assert CohortStore.open(sources.out).gene_ids == ["A0", "EGFR", "KRAS", "STK11", "ALK"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("g.tsv.gz", gzip.compress(b"gene\tA0\nTP53\t1\n" * 99, mtime=0)[:-20], "ended before"),
        ("g.h5", b"no hdf5", "signature"),
        ("g.parquet", b"no parquet", "Parquet magic bytes"),
        ("g.csv", b"", "empty"),
        ("g.csv", b"gene,A0,B0\nTP53,1\n", "Expected 3 columns"),
        ("g.csv", b"\xff\xfe\x00", "UTF-16"),
        ("g.xlsx", b"?", ".xlsx"),
    ],
)
def test_damaged_gene_files_are_refused(sources: Sources, name: str, content: bytes, found: str) -> None:
    path = sources.root / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        ingest_cohort(patches=None, genes=path, cases=sources.cases, out=sources.out, options=_quiet())
    assert caught.value.file == str(path)
    assert caught.value.expected is not None
    assert caught.value.found is not None and found in caught.value.found


def test_hdf5_shapes_must_agree(sources: Sources) -> None:
    with h5py.File(sources.root / "g.h5", "w") as file:
        file["expression"], file["case_id"], file["gene_id"] = np.zeros((6, 4)), list(sources.expression), ["a"] * 5
    with pytest.raises(InputError, match="not a matrix") as caught:
        ingest_cohort(patches=None, genes=sources.root / "g.h5", cases=sources.cases, out=sources.out, options=_quiet())
    assert caught.value.found == "expression (6, 4), 6 case ids, 5 gene ids"


@pytest.mark.parametrize(
    ("declared", "scale", "unit", "note"),
    [
        ("unknown", 1, "unknown", "the gene unit is unknown"),
        ("unknown", 1000, "unknown", "look not logged"),
        ("log2(FPKM+1)", 1000, "log2(FPKM+1)", "do not look logged"),
        ("FPKM", 1, "FPKM", "are they logged?"),
        ("counts", 1000.5, "counts", "no whole numbers"),
        ("log2(FPKM+1)", 1, "log2(FPKM+1)", None),
    ],
)
def test_units_are_stored_as_declared_and_doubted_aloud(
    sources: Sources, declared: str, scale: float, unit: str, note: str | None
) -> None:
    (_frame(sources) * scale).to_csv(sources.root / "g.csv")
    report = ingest_cohort(
        patches=None,
        genes=sources.root / "g.csv",
        cases=sources.cases,
        out=sources.out,
        options=_quiet(gene_unit=declared),
    )
    assert report.manifest.gene_unit == unit
    notes = [n for n in report.notes if "unit" in n]
    assert notes == [] if note is None else any(note in n for n in notes)


def test_the_file_s_unit_is_taken(sources: Sources) -> None:
    path = _hdf5(sources.root / "g.h5", _frame(sources), unit="log2(FPKM + 1)")
    report = ingest_cohort(patches=None, genes=path, cases=sources.cases, out=sources.out, options=_quiet())
    assert report.manifest.gene_unit is not None
    assert parse_unit(report.manifest.gene_unit) == "log2(FPKM+1)"
    assert not any("unit" in note for note in report.notes)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="orientation") as caught:
        _quiet(gene_orientation="sideways")
    assert caught.value.expected is not None and "cases_by_genes" in caught.value.expected
    with pytest.raises(ConfigError, match="compression"):
        _quiet(compression="gzip")


def _quiet(**options: object):  # type: ignore[no-untyped-def]
    from gimp_ray.ingest.ingest import IngestOptions

    return IngestOptions(**{"workers": 1, "progress": False, **options})  # type: ignore[arg-type]
