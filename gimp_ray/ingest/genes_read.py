"""Gene files of every format as one thing: an `Expression`, samples by genes.

A format is a row of `FORMATS`: does the head of the file look like it, and a function that reads it. The content
decides, not the name. Of a matrix only the samples asked for are kept in memory, as float32.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from gimp_ray.errors import InputError
from gimp_ray.ingest.gene_units import parse_unit

CASES_BY_GENES, GENES_BY_CASES = "cases_by_genes", "genes_by_cases"
ORIENTATIONS = ("auto", CASES_BY_GENES, GENES_BY_CASES)
SYMBOL, ENTREZ = "symbol", "entrez"
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "[Not Available]")
FAULTS = (OSError, EOFError, UnicodeDecodeError, zlib.error, CsvError, pa.ArrowException, RuntimeError)
GeneColumns = dict[str, list[str | None]]
Wanted = Sequence[Callable[[str], bool]]  # how an id is known as a sample of a case, the surest first

# what tools call the columns beside the genes -> our name
_BESIDE = {
    spelling: name
    for name, spellings in {
        SYMBOL: "symbol gene_name gene_symbol genesymbol genename hugo_symbol hgnc_symbol hugo",
        "gene_type": "gene_type genetype gene_biotype biotype",
        ENTREZ: "entrez entrez_gene_id entrez_id entrezid entrezgene entrez_gene ncbi_gene_id",
        "ensembl": "ensembl ensembl_id ensembl_gene_id ensembl_gene gene_id gene_ids geneid",
        None: "chr chrom chromosome start end chromstart chromend strand length cytoband description",
    }.items()
    for spelling in spellings.split()
}
# columns of a case table; lower case, which no human gene symbol is
_OF_CASES = {
    "label",
    "class",
    "subtype",
    "age",
    "sex",
    "gender",
    "is_female",
    "site",
    "stage",
    "grade",
    "survival_months",
    "survival",
    "censorship",
    "event",
    "status",
    "os",
    "os_time",
    "dss",
    "dfi",
    "pfi",
    "oncotree",
    "oncotree_code",
    "slide",
    "slide_id",
    "train",
    "fold",
    "split",
    "batch",
}
STAR_UNITS = {
    **dict.fromkeys(("unstranded", "stranded_first", "stranded_second"), "counts"),
    **{"tpm_unstranded": "TPM", "fpkm_unstranded": "FPKM", "fpkm_uq_unstranded": "FPKM-UQ"},
}
_NO_GENES = ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")
# units by file name: HTSeq, UCSC Xena, cBioPortal
_HTSEQ = ((r"fpkm[-_]uq", "FPKM-UQ"), (r"fpkm", "FPKM"), (r"(htseq[._])?counts?", "counts"), (r"tpm", "TPM"))
_XENA = (
    *(
        (rf".*[.](htseq|star)_{name}", f"log2({unit}+1)")
        for name, unit in (("fpkm-uq", "FPKM-UQ"), ("fpkm", "FPKM"), ("tpm", "TPM"), ("counts", "counts"))
    ),
    (r"(tcga|gtex|target|tcgatargetgtex)_rsem_gene_tpm", "log2(TPM+0.001)"),
    (r"(tcga|gtex|target|tcgatargetgtex)_rsem_gene_fpkm", "log2(FPKM+0.001)"),
    (r"(tcga|gtex|target|tcgatargetgtex)_(gene_expected_count|rsem_hugo_norm_count)", "log2(RSEM+1)"),
    (r"(.*[._])?hiseqv2", "log2(RSEM+1)"),
)
_CBIOPORTAL = (
    *((r"z[ _-]?scores?", "z-score"), (r"fpkm[ _-]?uq", "FPKM-UQ"), (r"fpkm", "FPKM"), (r"rpkm", "RPKM")),
    *((r"tpm", "TPM"), (r"cpm", "CPM"), (r"(read|raw)[ _-]?counts?", "counts"), (r"rsem|rna[ _-]?seq[ _-]?v2", "RSEM")),
)


@dataclass(frozen=True)
class Expression:
    """Samples by genes.

    Attributes:
        samples: names of all samples of the file; `values` holds those at `kept`, in that order.
        genes: names of the genes.
        values: (kept, genes).
        beside: further text columns, one value a gene: symbol, gene_type, entrez, ...
        unit: what the content says; `hint`: what its name or a file beside it suggests.
    """

    path: Path
    samples: list[str]
    genes: list[str]
    values: np.ndarray
    kept: np.ndarray
    beside: GeneColumns = field(default_factory=dict)
    unit: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Head:
    """How a file begins: its first bytes, and its first lines where it is text."""

    path: Path
    magic: bytes
    lines: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        line = next((line for line in self.lines if not line.startswith("#")), "")
        return split(line) if line else []


def read_head(path: Path) -> Head:
    """The head of a file; InputError where it cannot be read or is a pointer of Git LFS."""
    try:
        magic = path.open("rb").read(8)
        with open_bytes(path) as stream:
            first = stream.read(4096)
    except FAULTS as error:
        fix = "download or copy it again, and let this user read it"
        raise InputError(
            "the gene file cannot be read", file=path, expected="a whole file", found=str(error), fix=fix
        ) from error
    lines = () if b"\0" in first else tuple(first.decode("utf-8-sig", "replace").splitlines())
    if lines and lines[0].startswith("version https://git-lfs"):
        raise InputError(
            "the gene file is a pointer of Git LFS, not the file",
            file=path,
            expected="the file itself",
            found=lines[0],
            fix="run `git lfs pull` in the folder it was cloned to, or download the file",
        )
    return Head(path, magic, lines)


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a plain or gzip file."""
    gzipped = path.open("rb").read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]


def open_text(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def require_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise InputError(
            f"there is no such {kind}", file=path, expected="a file", found="nothing at this path", fix="check the path"
        )


def split(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv_reader([line], delimiter=separator_of(line)), [])]


def separator_of(line: str) -> str:
    return "\t" if "\t" in line else ","


def is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


def gene_column(name: str) -> str | None:
    """Our name of a column that tells of genes; None where its name does not say so."""
    plain = re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_")
    return (_BESIDE[plain] or plain) if plain in _BESIDE else None


# -- one sample a file: GDC's STAR and HTSeq


def is_sample(head: Head) -> str | None:
    """`star` or `htseq`, None for a file that is neither."""
    fields = head.fields
    if head.lines and {"gene_id", "unstranded"} <= set(fields):
        return "star"
    words = ("", "gene", "genes", "gene_id", "gene_name", "symbol", "id", "sample", "ensembl_id")
    named = len(fields) == 2 and "\t" in head.lines[0] and fields[0].lower() not in words
    return "htseq" if named and not is_number(fields[0]) and is_number(fields[1]) else None


def star_column(column: str | None, declared: str) -> str:
    """The column to read: the one named, else the one of the declared unit, else FPKM."""
    unit = parse_unit(declared)
    return column or next((name for name, of in STAR_UNITS.items() if of == unit), "fpkm_unstranded")


def htseq_hint(name: str) -> str | None:
    return next((unit for word, unit in _HTSEQ if re.search(rf"[._-]{word}([._-]|$)", name.lower())), None)


def read_sample(
    path: Path, kind: str, data: bytes, column: str
) -> tuple[pa.Array, np.ndarray, GeneColumns, str | None]:
    """Gene ids, values, columns beside and unit of one sample's file.

    Raises:
        InputError: it is damaged, or has no such column.
    """
    try:
        text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except FAULTS as error:
        raise damaged(path, str(error)) from error
    lines = text.split(b"\n", 3)[:3]
    at = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(b"#")), None)
    if at is None:
        raise damaged(path, "an empty file")
    if kind == "htseq":
        table = _tsv(path, text, ["gene_id", "value"], 0, {"gene_id": pa.string(), "value": pa.float32()})
        genes = table.filter(pa.compute.invert(pa.compute.starts_with(table["gene_id"], "__")))
        return *_two(genes), {}, "counts" if genes.num_rows < table.num_rows else None
    names = lines[at].decode("utf-8", "replace").rstrip("\r").split("\t")
    if "gene_id" not in names:
        raise damaged(path, "no column gene_id")
    if column not in names:
        expected = ", ".join(name for name in STAR_UNITS if name in names)
        raise InputError(
            f"the gene file has no column {column}",
            file=path,
            expected=expected,
            found=", ".join(names),
            fix="name one of these as gene_column",
        )
    beside = {name: gene_column(name) for name in ("gene_name", "gene_type") if name in names}
    types = {"gene_id": pa.string(), column: pa.float32(), **dict.fromkeys(beside, pa.string())}
    table = _tsv(path, text, names, at + 1, types)
    table = table.filter(pa.compute.invert(pa.compute.is_in(table["gene_id"], value_set=pa.array(_NO_GENES))))
    columns = {str(own): table[name].to_pylist() for name, own in beside.items()}
    return *_two(table), columns, STAR_UNITS.get(column)


def damaged(path: Path, found: str) -> InputError:
    return InputError(
        "the sample's gene file is damaged",
        file=path,
        expected="a whole file",
        found=found,
        fix="download the file again",
    )


def _two(table: pa.Table) -> tuple[pa.Array, np.ndarray]:
    return table.column(0).combine_chunks(), np.array(table.column(1).to_numpy(), np.float32)


def _tsv(path: Path, text: bytes, names: list[str], skipped: int, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        return csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(column_names=names, skip_rows=skipped, use_threads=False),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=["", "NA", "NaN"],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise damaged(path, str(error)[:300]) from error


# -- many samples a file


def read_matrix(
    path: Path, ways: Wanted, orientation: str = "auto", column: str | None = None
) -> Expression | list[str]:
    """A matrix turned so that rows are samples; some of its ids where none is a sample that is asked for.

    Raises:
        InputError: the file is missing, of an unknown kind, empty or damaged; samples on both axes, or twice.
    """
    require_file(path, "gene file")
    read = _reader(read_head(path))
    if column is not None and read is not _h5ad:
        raise no_columns(path, column)
    try:
        raw = read(path, ways, orientation, column)
    except FAULTS as error:
        raise _bad(path, str(error)[:300]) from error
    if not raw.rows or not raw.columns:
        found = f"{len(raw.rows)} rows, {len(raw.columns)} columns"
        raise InputError(
            "the gene matrix is empty",
            file=path,
            expected="cases and genes",
            found=found,
            fix="give the matrix with its rows and columns",
        )
    return _turned(raw, ways, orientation)


@dataclass
class _Raw:
    """A matrix as its file has it; `kept` are the rows (axis 0) or columns (axis 1) that `values` holds."""

    path: Path
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    axis: int | None = None
    kept: np.ndarray | None = None
    said: str | None = None
    beside: GeneColumns = field(default_factory=dict)
    unit: str | None = None
    hint: str | None = None


def _known(names: Sequence[str], ways: Wanted) -> np.ndarray:
    return np.flatnonzero([any(way(name) for way in ways) for name in names])


def _turned(raw: _Raw, ways: Wanted, orientation: str) -> Expression | list[str]:
    if orientation == "auto":
        orientation = raw.said or _recognised(raw, ways) or ""
    if not orientation:
        return raw.rows[:3] + raw.columns[:3]
    of_rows = orientation == CASES_BY_GENES
    samples, genes = (raw.rows, raw.columns) if of_rows else (raw.columns, raw.rows)
    if (raw.kept is not None and raw.axis != int(not of_rows)) or (
        not len(_known(samples, ways)) and len(_known(genes, ways))
    ):
        other = GENES_BY_CASES if of_rows else CASES_BY_GENES
        raise InputError(
            "the gene matrix has its cases on the other axis",
            file=raw.path,
            expected=f"gene_orientation: {other} or auto, as the file has it",
            found=f"gene_orientation: {orientation}; rows such as {', '.join(raw.rows[:3])}, columns such as "
            f"{', '.join(raw.columns[:3])}",
            fix=f"say gene_orientation: {other}",
        )
    twice = sorted(name for name, count in Counter(samples).items() if count > 1)
    if twice:
        found = ", ".join(twice[:10]) + (f" and {len(twice) - 10} more" if len(twice) > 10 else "")
        raise InputError(
            "a case stands twice in the gene matrix",
            file=raw.path,
            case=twice[0],
            expected="one column or row a case",
            found=found,
            fix="keep one of each in the gene file",
        )
    kept = np.arange(len(samples)) if raw.kept is None else raw.kept
    values = raw.values if of_rows else raw.values.T
    return Expression(raw.path, samples, genes, values, kept, raw.beside, raw.unit, raw.hint)


def _recognised(raw: _Raw, ways: Wanted) -> str | None:
    for way in ways:
        rows, columns = sum(map(way, raw.rows)), sum(map(way, raw.columns))
        if rows and columns:
            raise InputError(
                "the gene matrix has case ids on both axes",
                file=raw.path,
                expected="cases on one axis, genes on the other",
                found=f"{rows} cases among the rows and {columns} among the columns",
                fix=f"say which: gene_orientation: {CASES_BY_GENES} or {GENES_BY_CASES}",
            )
        if rows or columns:
            return CASES_BY_GENES if rows else GENES_BY_CASES
    return None


def _gathered(
    path: Path,
    names: list[str],
    texts: list[str],
    ways: Wanted,
    orientation: str,
    batches: Callable[[list[int]], Iterator[tuple[list[str], list[list[str | None]], np.ndarray]]],
    hint: str | None = None,
) -> _Raw:
    """A matrix from blocks of rows: columns that are samples are read alone; where none is, rows are kept that are."""
    columns = _known(names, ways) if orientation != CASES_BY_GENES else np.zeros(0, np.int64)
    of_rows = not len(columns)
    ids: list[str] = []
    beside: list[list[str | None]] = [[] for _ in texts]
    blocks, kept = [], []
    for block_ids, block_texts, block in batches(list(range(len(names))) if of_rows else columns.tolist()):
        if of_rows:
            found = _known(block_ids, ways)
            kept.append(found + len(ids))
            block = block[found] if len(found) < len(block_ids) else block  # noqa: PLW2901
        blocks.append(block)
        ids += block_ids
        for mine, new in zip(beside, block_texts, strict=True):
            mine.extend(new)
    rows = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    strange = [name or "(unnamed)" for name in texts] + [name for name in names if name in _OF_CASES]
    if of_rows and strange and (orientation == CASES_BY_GENES or len(rows)):
        more = f" and {len(strange) - 20} more" if len(strange) > 20 else ""
        raise InputError(
            "the gene file has columns that are no genes",
            file=path,
            expected="the case id in one column, one gene in each other",
            found=", ".join(strange[:20]) + more,
            fix="remove these columns from the gene file; they belong in the case table",
        )
    values = np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
    own: GeneColumns = {}
    for name, column in zip(texts, beside, strict=True):
        key = gene_column(name) or re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_") or "unnamed"
        while key in own:
            key += "_2"
        own[key] = column
    return _Raw(path, ids, names, values, 0 if of_rows else 1, rows if of_rows else columns, None, own, None, hint)


def _text(path: Path, ways: Wanted, orientation: str, column: str | None) -> _Raw:
    """CSV, TSV, GCT, Xena, cBioPortal: a header line, ids in the first column, numbers in the rest."""
    names, skipped, first, longest, separator = _table_head(path)
    cells = [[row[i].strip() for row in first if i < len(row)] for i in range(len(names))]
    told = [[cell for cell in of if cell not in MISSING] for of in cells]
    texts = [i for i in range(1, len(names)) if gene_column(names[i]) or (told[i] and not any(map(is_number, told[i])))]
    numeric = [i for i in range(1, len(names)) if i not in set(texts)]
    if not numeric:
        raise _bad(path, "no column of numbers; the columns are " + ", ".join(names[:10]))

    def batches(wanted: list[int]) -> Iterator[tuple[list[str], list[list[str | None]], np.ndarray]]:
        # columns are numbered, since names that stand twice must be seen and not merged
        numbers = [str(numeric[i]) for i in wanted]
        chosen = ["0", *map(str, texts), *numbers]
        types = {**dict.fromkeys(chosen, pa.string()), **dict.fromkeys(numbers, pa.float32())}
        try:
            stream = csv.open_csv(
                open_bytes(path),
                csv.ReadOptions(
                    column_names=[str(i) for i in range(len(names))],
                    skip_rows=skipped,
                    block_size=max(4 << 20, 64 * longest),
                ),
                csv.ParseOptions(delimiter=separator),
                csv.ConvertOptions(
                    column_types=types, include_columns=chosen, null_values=list(MISSING), strings_can_be_null=False
                ),
            )
            for batch in stream:
                ids = [name.strip() for name in batch.column(0).to_pylist()]
                beside = [[_clean(cell) for cell in batch.column(1 + i).to_pylist()] for i in range(len(texts))]
                yield ids, beside, _numbers(batch.columns[1 + len(texts) :], batch.num_rows)
        except (pa.ArrowException, OSError, EOFError) as error:
            if "Empty CSV file" not in str(error):
                raise _bad(path, _plain(str(error), names)) from error

    hint = next((unit for pattern, unit in _XENA if re.fullmatch(pattern, _bare(path))), None)
    raw = _gathered(path, [names[i] for i in numeric], [names[i] for i in texts], ways, orientation, batches, hint)
    return _of_cbioportal(raw) if {"Hugo_Symbol", "Entrez_Gene_Id"} & set(names[:2]) else raw


def _table_head(path: Path) -> tuple[list[str], int, list[list[str]], int, str]:
    """Names of the columns, lines before the rows, the first rows, the longest line, the separator."""
    try:
        with open_text(path) as stream:
            skipped, line = 0, stream.readline()
            gct = line.startswith("#1.")
            while line.startswith("#"):
                skipped, line = skipped + 1, stream.readline()
            if gct:  # the number of rows and columns
                skipped, line = skipped + 1, stream.readline()
            names = split(line.rstrip("\r\n")) if line.strip() else []
            if len(names) < 2:
                raise _bad(path, f"one column: {names[0][:60]}" if names else "an empty file")
            rows = min(20, max(2, 50_000 // len(names)))
            first = list(itertools.islice(csv_reader(stream, delimiter=separator_of(line)), rows))
    except FAULTS as error:
        utf16 = path.open("rb").read(2) in (b"\xff\xfe", b"\xfe\xff")
        raise _bad(path, f"text that is not UTF-8: {'UTF-16' if utf16 else error}") from error
    if first and len(first[0]) == len(names) + 1:  # R's header is one name short
        names = ["", *names]
    longest = max([len(line), *(sum(map(len, row)) + len(row) for row in first)])
    return names, skipped + 1, [row for row in first if row], longest, separator_of(line)


def _numbers(columns: Sequence[pa.Array], rows: int) -> np.ndarray:
    if not columns:
        return np.empty((rows, 0), np.float32)
    batch = pa.RecordBatch.from_arrays(list(columns), names=[str(i) for i in range(len(columns))])
    return np.asarray(batch.to_tensor(null_to_nan=True).to_numpy())


def _clean(cell: str | None) -> str | None:
    cell = None if cell is None else cell.strip()
    return None if cell is None or cell in MISSING else cell


def _plain(error: str, names: list[str]) -> str:
    """Arrow's message with the column's name in place of its number."""
    found = re.match(r"In CSV column #(\d+):", error)
    return (f"column {names[int(found[1])]}:{error[found.end() :]}" if found else error)[:300]


def _bare(path: Path) -> str:
    return re.sub(r"[.](tsv|txt|csv)$", "", path.name.lower().removesuffix(".gz"))


def _of_cbioportal(raw: _Raw) -> _Raw:
    """A gene without a symbol is named by its Entrez id; the unit is said by the meta file beside, else by the name."""
    beside, rows = dict(raw.beside), raw.rows
    if ENTREZ in beside:
        rows = [name or number or "" for name, number in zip(rows, beside[ENTREZ], strict=True)]
        beside = {SYMBOL: [name or None for name in raw.rows], **beside}
    hint = _by_words(raw.path.name.removesuffix(".gz"))
    for meta in sorted(raw.path.parent.glob("meta_*.txt")):
        text = meta.read_text(encoding="utf-8", errors="replace")
        said = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        if said.get("data_filename") == raw.path.name.removesuffix(".gz"):
            words = " ".join(said.get(key, "") for key in ("profile_name", "profile_description", "stable_id"))
            zscore = said.get("datatype", "").upper() == "Z-SCORE"
            hint = "z-score" if zscore else _by_words(words) or hint
    return replace(raw, rows=rows, beside=beside, hint=hint)


def _by_words(text: str) -> str | None:
    found = next((unit for pattern, unit in _CBIOPORTAL if re.search(pattern, text.lower())), None)
    # a log of a unit that nobody says exactly is no unit of ours
    return found if found == "z-score" or "log" not in text.lower() else None


def _parquet(path: Path, ways: Wanted, orientation: str, column: str | None) -> _Raw:
    """A text column with ids (a written pandas index will do), numbers in the rest."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    text = [
        f.name
        for f in schema
        if pa.types.is_string(f.type) or pa.types.is_large_string(f.type) or pa.types.is_dictionary(f.type)
    ]
    named = next((name for name in text if name in index), text[0] if text else None)
    texts = [f.name for f in schema if f.name != named and (f.name in text or gene_column(f.name))]
    numeric = [f for f in schema if f.name not in (named, *texts)]
    strange = [f.name for f in numeric if not (pa.types.is_floating(f.type) or pa.types.is_integer(f.type))]
    if named is None or strange or not numeric:
        raise _bad(
            path,
            f"text columns: {', '.join(text) or 'none'}"
            + (f"; not numbers: {', '.join(strange[:5])}" if strange else ""),
        )

    def batches(wanted: list[int]) -> Iterator[tuple[list[str], list[list[str | None]], np.ndarray]]:
        names = [numeric[i].name for i in wanted]
        for batch in file.iter_batches(max(1, (32 << 20) // max(1, len(names))), columns=[named, *texts, *names]):
            beside = [batch.column(name).cast(pa.string()).to_pylist() for name in texts]
            floats = [batch.column(name).cast(pa.float32(), safe=False) for name in names]
            yield (
                [str(v).strip() for v in batch.column(named).cast(pa.string()).to_pylist()],
                beside,
                _numbers(floats, batch.num_rows),
            )

    return _gathered(path, [f.name for f in numeric], texts, ways, orientation, batches)


def _hdf5(path: Path, ways: Wanted, orientation: str, column: str | None) -> _Raw:
    """`expression` (cases x genes or genes x cases), `case_id`, `gene_id`; attribute `unit`."""
    with h5py.File(path, "r") as file:
        keys = ("expression", "case_id", "gene_id")
        missing = [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]
        if missing:
            raise _bad(path, f"no {', no '.join(missing)}; found {', '.join(file) or 'an empty file'}")
        cases, genes = _texts(file["case_id"], path), _texts(file["gene_id"], path)
        values, unit = file["expression"][()], file.attrs.get("unit", file["expression"].attrs.get("unit"))
        names = [
            n
            for n in file
            if n not in keys and gene_column(n) and file[n].shape == (len(genes),) and file[n].dtype.kind in "SO"
        ]
        beside: GeneColumns = {str(gene_column(name)): [*_texts(file[name], path)] for name in names}
    if values.dtype.kind not in "fiu":
        raise _bad(path, f"expression of type {values.dtype}")
    unit = (unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit) or None
    if values.shape == (len(cases), len(genes)):
        return _Raw(path, cases, genes, values, said=CASES_BY_GENES, beside=beside, unit=unit)
    if values.shape == (len(genes), len(cases)):
        return _Raw(path, genes, cases, values, said=GENES_BY_CASES, beside=beside, unit=unit)
    raise _bad(path, f"expression {values.shape}, {len(cases)} case ids, {len(genes)} gene ids")


def _texts(dataset: h5py.Dataset, path: Path) -> list[str]:
    if dataset.dtype.kind not in "SO" or dataset.ndim != 1:
        raise _bad(path, f"{dataset.name} of type {dataset.dtype} and shape {dataset.shape}, not a list of texts")
    return [v.strip() for v in dataset.asstr(errors="replace")[()].tolist()]


def _h5ad(path: Path, ways: Wanted, orientation: str, column: str | None) -> _Raw:
    """AnnData: obs are samples, var are genes, X or a layer is dense, CSR or CSC."""
    try:
        import anndata
    except ImportError as error:
        fix = "pip install 'gimp-ray[formats]'"
        raise InputError("reading .h5ad needs the package anndata", file=path, found=str(error), fix=fix) from error
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:  # anndata raises what its parts raise
        raise _bad(path, str(error)[:300] or type(error).__name__) from error
    layers = [name for name in data.layers if name]
    if column is not None and column not in layers:
        raise InputError(
            f"the AnnData file has no layer {column}",
            file=path,
            expected="a layer of the file",
            found=", ".join(layers) or "no layers",
            fix="leave gene_column out to read X, or name a layer",
        )
    matrix = data.X if column is None else data.layers[column]
    ids = "case_id case patient_id patient submitter_id case_submitter_id sample_id sample sample_submitter_id barcode"
    lists = [
        [str(v).strip() for v in data.obs_names],
        *([str(v).strip() for v in data.obs[c]] for c in ids.split() if c in data.obs),
    ]
    samples = next((names for names in lists if len(_known(names, ways))), lists[0])
    kept = _known(samples, ways)
    if matrix is None:
        raise InputError(
            "the AnnData file has no X",
            file=path,
            expected="X",
            found=", ".join(layers) or "neither X nor layers",
            fix="name a layer",
        )
    values = matrix[kept]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.dtype.kind not in "fiu":
        raise _bad(path, f"values of type {values.dtype}")
    beside = {
        str(gene_column(str(c))): [None if pd.isna(v) else str(v) for v in data.var[c]]
        for c in data.var
        if gene_column(str(c))
    }
    unit = data.uns.get("unit") if column is None else parse_unit(column)
    genes = [str(name).strip() for name in data.var_names]
    return _Raw(path, samples, genes, values, 0, kept, CASES_BY_GENES, beside, str(unit) if unit else None)


def _is_h5ad(head: Head) -> bool:
    with contextlib.suppress(OSError, RuntimeError), h5py.File(head.path, "r") as file:
        return "obs" in file and "var" in file
    return head.path.name.lower().endswith(".h5ad")


# does the head look like it -> how it is read; the first that fits is taken
FORMATS: tuple[tuple[Callable[[Head], Any], Callable[..., _Raw], str], ...] = (
    (lambda head: head.magic.startswith(b"\x89HDF") and _is_h5ad(head), _h5ad, r"\.h5ad"),
    (lambda head: head.magic.startswith(b"\x89HDF"), _hdf5, r"\.(h5|hdf5)"),
    (lambda head: head.magic.startswith(b"PAR1"), _parquet, r"\.parquet"),
    (lambda head: len(head.fields) > 1, _text, r"\.(csv|tsv|txt)(\.gz)?"),
)


def is_matrix(head: Head) -> bool:
    return any(fits(head) for fits, _, _ in FORMATS)


def _reader(head: Head) -> Callable[..., _Raw]:
    """The reader of a file by its content; a damaged file is refused by the reader its name asks for."""
    for fits, read, _ in FORMATS:
        if fits(head):
            return read
    for _, read, name in FORMATS:
        if re.search(rf"{name}$", head.path.name.lower()):
            return read
    zipped = head.magic.startswith(b"PK")
    raise InputError(
        "the gene file is of an unknown kind",
        file=head.path,
        expected="GDC STAR or HTSeq files, CSV, TSV, Parquet, HDF5 (.h5, .h5ad)",
        found=head.path.suffix or "no ending",
        fix="unzip it, or save the sheet as CSV" if zipped else "save the matrix as CSV, TSV, Parquet or HDF5",
    )


def no_columns(path: Path, column: str) -> InputError:
    expected = "GDC STAR counts or an .h5ad with layers for gene_column"
    return InputError(
        "the gene file has no columns to choose from",
        file=path,
        expected=expected,
        found=f"gene_column: {column}",
        fix="leave gene_column out",
    )


def _bad(path: Path, found: str) -> InputError:
    text = path.suffix.lower() not in (".h5", ".hdf5", ".h5ad", ".parquet")
    what = "the gene file is not a table of numbers" if text else "the gene file is not a matrix"
    return InputError(
        what,
        file=path,
        expected="ids in the first column (or case_id, gene_id and expression), numbers in the others",
        found=found,
        fix="keep the ids in the first column and numbers in the others; text columns may stand beside genes alone",
    )
