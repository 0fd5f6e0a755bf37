"""Bad gene files: matrices as CSV, TSV, Parquet, HDF5 and h5ad, Xena, cBioPortal, and GDC's folders of samples."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from gene_files import GENES, write_htseq, write_manifest, write_matrix, write_sheet, write_star

from tests.bad_inputs.corpus import CASE, CASES, Case, Inputs, left_out, option, refused, star_file, wrong_option

Spoil = Callable[[Inputs], object]
Change = Callable[[str], str]


def text(change: Change, name: str = "genes.tsv") -> Spoil:
    """The gene matrix with its text changed, under a name of its own."""

    def spoil(inputs: Inputs) -> None:
        old = inputs.sources.genes.read_text()
        inputs.sources.genes.unlink()
        inputs.genes = [inputs.root / name]
        inputs.genes[0].write_text(change(old))

    return spoil


def content(data: bytes, name: str = "genes.tsv") -> Spoil:
    """A gene file of these bytes."""

    def spoil(inputs: Inputs) -> None:
        inputs.genes = [inputs.root / name]
        inputs.genes[0].write_bytes(data)

    return spoil


def values(change: Callable[[dict[str, np.ndarray]], object], *options: str) -> Spoil:
    """The gene matrix with its values changed, with further options."""

    def spoil(inputs: Inputs) -> None:
        change(inputs.sources.expression)
        inputs.sources.write_genes()
        inputs.options += options

    return spoil


def _set(value: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda expression: expression[CASE].__setitem__(0, value)


def _rename_all(expression: dict[str, np.ndarray]) -> None:
    for case_id in list(expression):
        expression[f"patient {case_id}"] = expression.pop(case_id)


def matrix_frame(inputs: Inputs) -> pd.DataFrame:
    """Genes by cases."""
    return pd.DataFrame(inputs.sources.expression, index=inputs.sources.gene_ids)


def _gz_cut(inputs: Inputs) -> None:
    data = gzip.compress(inputs.sources.genes.read_bytes())
    content(data[: len(data) // 2], "genes.tsv.gz")(inputs)


def _gz_damaged(inputs: Inputs) -> None:
    data = bytearray(gzip.compress(inputs.sources.genes.read_bytes()))
    data[len(data) // 2] ^= 0xFF
    content(bytes(data), "genes.tsv.gz")(inputs)


def _parquet_cut(inputs: Inputs) -> None:
    inputs.genes = [inputs.root / "genes.parquet"]
    matrix_frame(inputs).reset_index(names="gene").to_parquet(inputs.genes[0])
    data = inputs.genes[0].read_bytes()
    inputs.genes[0].write_bytes(data[: len(data) // 2])


def _parquet(columns: dict[str, Sequence[object]]) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        inputs.genes = [inputs.root / "genes.parquet"]
        pq.write_table(pa.table(columns), inputs.genes[0])

    return spoil


def _hdf5(**arrays: np.ndarray | list[str]) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        inputs.genes = [inputs.root / "genes.h5"]
        with h5py.File(inputs.genes[0], "w") as file:
            for name, array in arrays.items():
                file[name] = array

    return spoil


def _h5ad(change: Callable[[Path], object] = lambda path: None, *options: str) -> Spoil:
    """The matrix as AnnData, whose file a function may spoil."""

    def spoil(inputs: Inputs) -> None:
        import anndata

        frame = matrix_frame(inputs).T.astype(np.float32)
        inputs.genes = [inputs.root / "genes.h5ad"]
        names = [pd.Index([*axis], dtype=object) for axis in frame.axes]
        obs, var = (pd.DataFrame(index=axis) for axis in names)
        anndata.AnnData(frame.to_numpy(), obs, var).write_h5ad(inputs.genes[0])
        change(inputs.genes[0])
        inputs.options += options

    return spoil


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def _without_var(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["var"]["_index"]


def _two_files(first: str, second: str, genes: Sequence[str] | None = None, *options: str) -> Spoil:
    """The matrix as two files of two cases each; the second may be of other genes."""

    def spoil(inputs: Inputs) -> None:
        own, samples = inputs.sources.gene_ids, inputs.sources.expression
        parts: list[Mapping[str, Sequence[float]]] = [
            {case_id: list(samples[case_id]) for case_id in half} for half in (CASES[:2], CASES[2:])
        ]
        inputs.genes = [
            write_matrix(inputs.root / first, parts[0], own),
            write_matrix(inputs.root / second, parts[1], own if genes is None else genes),
        ]
        inputs.options += options

    return spoil


def _same_file_twice(inputs: Inputs) -> None:
    inputs.genes = [inputs.genes[0], inputs.root / "again.tsv"]
    shutil.copy(*inputs.genes)


def _cbioportal(change: Change) -> Spoil:
    """The matrix as cBioPortal's, its text changed."""

    def spoil(inputs: Inputs) -> None:
        place = inputs.root / "data_mrna_seq_fpkm.txt"
        samples = {case_id: list(v) for case_id, v in inputs.sources.expression.items()}
        beside = {"Entrez_Gene_Id": ["7157", "1956", "3845", "6794", "238"]}
        inputs.genes = [write_matrix(place, samples, inputs.sources.gene_ids, "Hugo_Symbol", beside)]
        place.write_text(change(place.read_text()))

    return spoil


def _gene_list(data: bytes | None) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        path = inputs.root / "list.txt"
        inputs.options += ["--gene-list", str(path)]
        if data is not None:
            path.write_bytes(data)

    return spoil


def _file(change: Callable[[Path], object], case_id: str = CASE) -> Spoil:
    """The STAR file of a case, changed by a function."""
    return lambda i: change(star_file(i, case_id))


def _edit(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


def _other_md5(inputs: Inputs) -> None:
    files = [star_file(inputs, case_id) for case_id in CASES]
    write_manifest(inputs.root / "gdc" / "MANIFEST.txt", files)
    path = star_file(inputs)
    path.write_text(path.read_text().replace("204.25", "904.25"))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    assert digest not in (inputs.root / "gdc" / "MANIFEST.txt").read_text()


def _without_the_column(inputs: Inputs) -> None:
    for case_id in CASES:
        _edit("fpkm_uq_unstranded", "other")(star_file(inputs, case_id))
    inputs.options += ["--gene-column", "fpkm_uq_unstranded"]


def _sheet(change: Change) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        assert inputs.sheet is not None
        inputs.sheet.write_text(change(inputs.sheet.read_text()))

    return spoil


def _sheet_of_others(inputs: Inputs) -> None:
    assert inputs.sheet is not None
    write_sheet(inputs.sheet, [["u", "other.tsv", "", "", "", "A0", "A0-01A", "Primary Tumor"]])


def _no_sheet(inputs: Inputs) -> None:
    assert inputs.sheet is not None
    inputs.sheet.unlink()


def _nothing_says_whose(inputs: Inputs) -> None:
    _no_sheet(inputs)
    inputs.sheet = None
    for number, case_id in enumerate(CASES):
        path = star_file(inputs, case_id)
        path.parent.rename(path.parent.with_name(f"uuid-{number}"))
        path = path.parent.with_name(f"uuid-{number}") / path.name
        path.rename(path.with_name(f"{number}.rna_seq.augmented_star_gene_counts.tsv"))


def _htseq_of_two_units(inputs: Inputs) -> None:
    """HTSeq files beside each other, one of FPKM and the others of counts."""
    shutil.rmtree(inputs.root / "gdc")
    inputs.sheet = None
    for case_id in CASES:
        kind = "FPKM.txt.gz" if case_id == CASE else "htseq.counts.gz"
        path = inputs.root / "gdc" / case_id / f"{case_id}.{kind}"
        write_htseq(path, dict.fromkeys(GENES, 3.0), counts=case_id != CASE)


def _htseq_damaged(inputs: Inputs) -> None:
    """HTSeq files whose genes are the store's; one of them is no whole gz."""
    shutil.rmtree(inputs.root / "gdc")
    inputs.sheet = None
    genes = [*GENES]
    for case_id in CASES:
        path = inputs.root / "gdc" / case_id / f"{case_id}.FPKM.txt.gz"
        write_htseq(path, dict.fromkeys(genes, 3.0))
        if case_id == CASE:
            path.write_bytes(path.read_bytes()[:-9])


NO_TABLE = "not a table of numbers"
DAMAGED = "gene file is damaged"
SHEET = "gdc_sample_sheet.tsv"
STAR = "a1.rna_seq.augmented_star_gene_counts.tsv"

MATRICES = (
    refused("genes nowhere", lambda i: i.sources.genes.unlink(), "no such gene file", "genes.tsv", "nothing at"),
    refused("genes of no bytes", content(b""), NO_TABLE, "genes.tsv", "empty file"),
    refused("genes, a header alone", text(lambda t: t.partition("\n")[0]), "genes.tsv"),
    refused("genes in one column", text(lambda t: t.replace("\t", ";")), NO_TABLE, "genes.tsv", "one column"),
    refused("a word among the numbers", text(lambda t: t.replace("\t5.", "\thigh", 1)), NO_TABLE, "genes.tsv", "high"),
    refused("a row that ends early", text(lambda t: t.rpartition("\t")[0]), NO_TABLE, "genes.tsv"),
    refused("decimal commas", text(lambda t: t.replace(".", ",")), NO_TABLE, "genes.tsv"),
    refused("genes in Latin-1", content("gène\tA0\nTP53\t1\n".encode("latin-1")), "UTF-8", "genes.tsv"),
    refused("genes in UTF-16", content("gene\tA0\nTP53\t1\n".encode("utf-16")), "UTF-16", "genes.tsv"),
    refused("genes as an Excel file", content(b"PK\x03\x04" + bytes(40), "genes.xlsx"), "unknown kind", "genes.xlsx"),
    refused("genes as an R file", content(bytes(40), "genes.rds"), "unknown kind", "genes.rds"),
    refused("genes as a pointer of Git LFS", content(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    refused("gz cut short", _gz_cut, "genes.tsv.gz"),
    refused("gz with a damaged byte", _gz_damaged, "genes.tsv.gz"),
    refused("a gene twice", text(lambda t: t + t.splitlines()[1] + "\n"), "gene stands twice", "genes.tsv", "TP53"),
    refused("a case twice", text(lambda t: t.replace("A0", "A1", 1)), "case stands twice", "genes.tsv", "A1"),
    refused("no case in common", values(_rename_all), "no case of the case table", "genes.tsv", "ids such as"),
    left_out("a case without genes", values(lambda e: e.pop(CASE)), "the case has no genes", "genes.tsv"),
    left_out("NaN expression", values(_set(np.nan)), "NaN or Inf", "nan for gene TP53"),
    left_out("Inf expression", values(_set(np.inf)), "NaN or Inf", "inf for gene TP53"),
    refused("negative FPKM", values(_set(-1.5), "--gene-unit", "FPKM"), "negative", "FPKM", "-1.5 for gene TP53"),
    refused("other orientation", option("--gene-orientation", "cases_by_genes"), "on the other axis", "genes.tsv"),
    refused("parquet genes cut short", _parquet_cut, "genes.parquet", "not a matrix"),
    refused("parquet genes without ids", _parquet({"A0": [1.0], "A1": [1.0]}), "genes.parquet", "not a matrix"),
    refused("HDF5 without ids", _hdf5(expression=np.ones((4, 5))), "no case_id, no gene_id", "genes.h5"),
    refused(
        "HDF5 of other lengths", _hdf5(expression=np.ones((4, 5)), case_id=[*CASES], gene_id=["TP53"]),
        "genes.h5", "(4, 5), 4 case ids, 1 gene ids",
    ),
    refused(
        "HDF5 of texts", _hdf5(expression=np.full((4, 1), b"x"), case_id=[*CASES], gene_id=["TP53"]),
        "of type |S1", "genes.h5",
    ),
    refused("HDF5 that is text", content(b"TP53 1\n", "genes.h5"), "genes.h5"),
    refused("h5ad cut short", _h5ad(_cut), "cannot be read", "genes.h5ad"),
    refused("h5ad without names", _h5ad(_without_var), "cannot be read", "genes.h5ad"),
    refused("h5ad without a layer", _h5ad(lambda p: None, "--gene-column", "tpm"), "no layer tpm", "genes.h5ad"),
    refused("files of two units", _two_files("TCGA.star_fpkm.tsv", "TCGA.star_tpm.tsv"), "different units", "star_tpm"),
    refused("files of two gene lists", _two_files("a.tsv", "b.tsv", list("vwxyz")), "different genes", "b.tsv"),
    refused("a sample in two files", _same_file_twice, "stands in two", "again.tsv"),
    refused("cBioPortal, cut short", _cbioportal(lambda t: t[:-8]), NO_TABLE, "data_mrna_seq_fpkm.txt"),
    refused("cBioPortal, a gene twice", _cbioportal(lambda t: t + t.splitlines()[1] + "\n"), "twice", "TP53"),
    refused("a gene list of other genes", _gene_list(b"XIST\nH19\n"), "no gene of the gene list", "XIST"),
    refused("a gene list nowhere", _gene_list(None), "no such gene list", "list.txt"),
    refused("a gene list of no bytes", _gene_list(b""), "no gene list", "list.txt"),
    refused("a column of a plain matrix", option("--gene-column", "tpm"), "no columns to choose"),
    refused("genes a folder of matrices", lambda i: i.genes.__setitem__(0, i.root), "no per-sample", "genes.tsv"),
    wrong_option("an empty unit", "--gene-unit", "' '", says=("gene unit is empty",)),
    wrong_option("a rule for duplicates", "--gene-duplicates", "median", says=("duplicates", "median")),
)  # fmt: skip

SAMPLES = (
    left_out("STAR of no bytes", _file(lambda p: p.write_bytes(b"")), DAMAGED, STAR, kind="star"),
    left_out("STAR cut short", _file(lambda p: p.write_text(p.read_text()[:-12])), STAR, kind="star"),
    left_out("STAR with a word", _file(_edit("204.25", "low")), STAR, "low", kind="star"),
    left_out("STAR without numbers", _file(lambda p: p.write_text("<html></html>")), "no genes", kind="star"),
    left_out("STAR, not the manifest's", _other_md5, "not the one of the manifest", STAR, "MD5", kind="star"),
    left_out("STAR, normal tissue", _sheet(lambda t: t.replace("A1-01A\tPrimary Tumor", "A1-11A\tSolid Tissue Normal")),
             "normal tissue", kind="star"),
    left_out("STAR, of no row of the sheet", _sheet(lambda t: t.replace("a1.rna", "zz.rna").replace("uuid-A1", "zz")),
             "no genes", kind="star"),
    left_out("STAR, no file", _file(lambda p: shutil.rmtree(p.parent)), "no genes", kind="star"),
    refused("STAR of another gene model", _file(lambda p: write_star(p, genes=GENES[:3], par_y=None), "B1"),
            "different genes", "b1.rna", kind="star"),
    refused("STAR without the column", _without_the_column, "no column fpkm_uq_unstranded", kind="star"),
    refused("STAR, declared as another unit", option("--gene-unit", "TPM", "--gene-column", "fpkm_unstranded"),
            "declared is not the file's", "FPKM", kind="star"),
    refused("sheet of other files", _sheet_of_others, "no gene file is in the sample sheet", SHEET, kind="star"),
    refused("sheet nowhere", _no_sheet, "no such sample sheet", SHEET, kind="star"),
    refused("sheet of no bytes", _sheet(lambda t: ""), "no sample sheet", SHEET, kind="star"),
    refused("sheet with other columns", _sheet(lambda t: "a\tb\n1\t2\n"), "no sample sheet", SHEET, kind="star"),
    refused("sheet that contradicts itself", _sheet(lambda t: t + t.splitlines()[2].replace("A1\tA1", "A0\tA0") + "\n"),
            "two rows", SHEET, kind="star"),
    refused("nothing says which cases", _nothing_says_whose, "nothing says which cases", kind="star"),
    refused("folder of no samples", lambda i: shutil.rmtree(i.root / "gdc") or (i.root / "gdc").mkdir(),
            "no per-sample gene files", "gdc", kind="star"),
    refused("HTSeq of two units", _htseq_of_two_units, "different units", "FPKM", kind="star"),
    left_out("HTSeq, gz cut short", _htseq_damaged, DAMAGED, "A1.FPKM.txt.gz", kind="star"),
)  # fmt: skip

BAD_GENES: tuple[Case, ...] = (*MATRICES, *SAMPLES)
