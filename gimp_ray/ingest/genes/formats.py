"""Gene matrices of every format as the file has them: text (CSV, TSV, GCT, Xena, cBioPortal), Parquet, HDF5, AnnData.

Of a matrix only the samples asked for are kept in memory, as float32.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from csv import reader as csv_reader
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes.files import (
    CASES_BY_GENES,
    ENTREZ,
    GENES_BY_CASES,
    MISSING,
    SYMBOL,
    GeneColumns,
    Head,
    Wanted,
    gene_column,
    unusable,
)
from gimp_ray.io.text import TEXT_FAULTS, is_number, open_bytes, open_text, separator_of, split
from gimp_ray.store.units import parse_unit

# columns of a case table; lower case, which no human gene symbol is
_CASE_COLUMNS = """label class subtype age sex gender is_female site stage grade survival_months survival censorship
event status os os_time dss dfi pfi oncotree oncotree_code slide slide_id train fold split batch"""
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


@dataclass
class RawMatrix:
    """A matrix as its file has it; `kept` are the rows (axis 0) or columns (axis 1) that `values` holds."""

    path: Path
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    axis: int | None = None
    kept: np.ndarray | None = None
    recorded_axis: str | None = None
    beside: GeneColumns = field(default_factory=dict)
    unit: str | None = None
    hint: str | None = None


def known_places(names: Sequence[str], ways: Wanted) -> np.ndarray:
    return np.flatnonzero([any(way(name) for way in ways) for name in names])


def _gathered(
    path: Path,
    names: list[str],
    texts: list[str],
    ways: Wanted,
    orientation: str,
    batches: Callable[[list[int]], Iterator[tuple[list[str], list[list[str | None]], np.ndarray]]],
    hint: str | None = None,
) -> RawMatrix:
    """A matrix from blocks of rows: columns that are samples are read alone; where none is, rows are kept that are."""
    columns = known_places(names, ways) if orientation != CASES_BY_GENES else np.zeros(0, np.int64)
    of_rows = not len(columns)
    ids: list[str] = []
    beside: list[list[str | None]] = [[] for _ in texts]
    blocks, kept = [], []
    for block_ids, block_texts, block in batches(list(range(len(names))) if of_rows else columns.tolist()):
        if of_rows:
            found = known_places(block_ids, ways)
            kept.append(found + len(ids))
            block = block[found] if len(found) < len(block_ids) else block  # noqa: PLW2901
        blocks.append(block)
        ids += block_ids
        for mine, new in zip(beside, block_texts, strict=True):
            mine.extend(new)
    rows = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    strange = [name or "(unnamed)" for name in texts] + [name for name in names if name in _CASE_COLUMNS.split()]
    if of_rows and strange and (orientation == CASES_BY_GENES or len(rows)):
        more = f" and {len(strange) - 20} more" if len(strange) > 20 else ""
        raise InputError(
            "the gene file has columns that are no genes",
            file=path,
            expected="the case id in one column, one gene in each other",
            found=", ".join(strange[:20]) + more,
            fix="remove these columns from the gene file; they belong in the case table",
        )
    values = _stacked(blocks, by_row=of_rows)
    own: GeneColumns = {}
    for name, column in zip(texts, beside, strict=True):
        key = gene_column(name) or re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_") or "unnamed"
        while key in own:
            key += "_2"
        own[key] = column
    return RawMatrix(path, ids, names, values, 0 if of_rows else 1, rows if of_rows else columns, None, own, None, hint)


def _stacked(blocks: list[np.ndarray], by_row: bool) -> np.ndarray:
    """One (rows, columns) float32 array of blocks of rows, in memory by row or by column; the blocks are used up."""
    shape = (sum(map(len, blocks)), blocks[0].shape[1]) if blocks else (0, 0)
    values = np.empty(shape, np.float32, order="C" if by_row else "F")
    blocks.reverse()
    at = 0
    while blocks:  # each block is freed as it is copied, so that the matrix is in memory once
        block = blocks.pop()
        values[at : at + len(block)] = block
        at += len(block)
    pa.default_memory_pool().release_unused()
    return values


def read_text(path: Path, ways: Wanted, orientation: str, column: str | None) -> RawMatrix:
    """CSV, TSV, GCT, Xena, cBioPortal: a header line, ids in the first column, numbers in the rest."""
    names, skipped, first, longest, separator = _table_head(path)
    cells = [[row[i].strip() for row in first if i < len(row)] for i in range(len(names))]
    filled = [[cell for cell in of if cell not in MISSING] for of in cells]
    texts = [
        i for i in range(1, len(names)) if gene_column(names[i]) or (filled[i] and not any(map(is_number, filled[i])))
    ]
    numeric = [i for i in range(1, len(names)) if i not in set(texts)]
    if not numeric:
        raise unusable(path, "no column of numbers; the columns are " + ", ".join(names[:10]))

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
                raise unusable(path, _plain(str(error), names)) from error

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
                raise unusable(path, f"one column: {names[0][:60]}" if names else "an empty file")
            rows = min(20, max(2, 50_000 // len(names)))
            first = list(itertools.islice(csv_reader(stream, delimiter=separator_of(line)), rows))
    except TEXT_FAULTS as error:
        utf16 = path.open("rb").read(2) in (b"\xff\xfe", b"\xfe\xff")
        raise unusable(
            path, f"text that is not UTF-8: {'UTF-16 text; save it as UTF-8' if utf16 else error}"
        ) from error
    if first and len(first[0]) == len(names) + 1:  # R's header is one name short
        names = ["", *names]
    longest = max([len(line), *(sum(map(len, row)) + len(row) for row in first)])
    return names, skipped + 1, [row for row in first if row], longest, separator_of(line)


def _numbers(columns: Sequence[pa.Array], rows: int) -> np.ndarray:
    if not columns:
        return np.empty((rows, 0), np.float32)
    batch = pa.RecordBatch.from_arrays(list(columns), names=[str(i) for i in range(len(columns))])
    return np.asarray(batch.to_tensor(null_to_nan=True, row_major=False).to_numpy())


def _clean(cell: str | None) -> str | None:
    cell = None if cell is None else cell.strip()
    return None if cell is None or cell in MISSING else cell


def _plain(error: str, names: list[str]) -> str:
    """Arrow's message with the column's name in place of its number."""
    found = re.match(r"In CSV column #(\d+):", error)
    return (f"column {names[int(found[1])]}:{error[found.end() :]}" if found else error)[:300]


def _bare(path: Path) -> str:
    return re.sub(r"[.](tsv|txt|csv)$", "", path.name.lower().removesuffix(".gz"))


def _of_cbioportal(raw: RawMatrix) -> RawMatrix:
    """A gene without a symbol is named by its Entrez id; the unit is that of the meta file beside, else of the name."""
    beside, rows = dict(raw.beside), raw.rows
    if ENTREZ in beside:
        rows = [name or number or "" for name, number in zip(rows, beside[ENTREZ], strict=True)]
        beside = {SYMBOL: [name or None for name in raw.rows], **beside}
    hint = _by_words(raw.path.name.removesuffix(".gz"))
    for meta in sorted(raw.path.parent.glob("meta_*.txt")):
        text = meta.read_text(encoding="utf-8", errors="replace")
        meta_of = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        if meta_of.get("data_filename") == raw.path.name.removesuffix(".gz"):
            words = " ".join(meta_of.get(key, "") for key in ("profile_name", "profile_description", "stable_id"))
            zscore = meta_of.get("datatype", "").upper() == "Z-SCORE"
            hint = "z-score" if zscore else _by_words(words) or hint
    return replace(raw, rows=rows, beside=beside, hint=hint)


def _by_words(text: str) -> str | None:
    found = next((unit for pattern, unit in _CBIOPORTAL if re.search(pattern, text.lower())), None)
    # a logarithm without its base and offset is no known unit
    return found if found == "z-score" or "log" not in text.lower() else None


def read_parquet(path: Path, ways: Wanted, orientation: str, column: str | None) -> RawMatrix:
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
        raise unusable(
            path,
            f"text columns: {', '.join(text) or 'none'}"
            + (f"; not numbers: {', '.join(strange[:5])}" if strange else ""),
            "Parquet",
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


def read_hdf5(path: Path, ways: Wanted, orientation: str, column: str | None) -> RawMatrix:
    """`expression` (cases x genes or genes x cases), `case_id`, `gene_id`; attribute `unit`."""
    with h5py.File(path, "r") as file:
        keys = ("expression", "case_id", "gene_id")
        missing = [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]
        if missing:
            raise unusable(path, f"no {', no '.join(missing)}; found {', '.join(file) or 'an empty file'}", "HDF5")
        cases, genes = _texts(file["case_id"], path), _texts(file["gene_id"], path)
        values, unit = file["expression"][()], file.attrs.get("unit", file["expression"].attrs.get("unit"))
        names = [
            n
            for n in file
            if n not in keys and gene_column(n) and file[n].shape == (len(genes),) and file[n].dtype.kind in "SO"
        ]
        beside: GeneColumns = {str(gene_column(name)): [*_texts(file[name], path)] for name in names}
    if values.dtype.kind not in "fiu":
        raise unusable(path, f"expression of type {values.dtype}", "HDF5")
    unit = (unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit) or None
    if values.shape == (len(cases), len(genes)):
        return RawMatrix(path, cases, genes, values, recorded_axis=CASES_BY_GENES, beside=beside, unit=unit)
    if values.shape == (len(genes), len(cases)):
        return RawMatrix(path, genes, cases, values, recorded_axis=GENES_BY_CASES, beside=beside, unit=unit)
    raise unusable(path, f"expression {values.shape}, {len(cases)} case ids, {len(genes)} gene ids", "HDF5")


def _texts(dataset: h5py.Dataset, path: Path) -> list[str]:
    if dataset.dtype.kind not in "SO" or dataset.ndim != 1:
        raise unusable(
            path, f"{dataset.name} of type {dataset.dtype} and shape {dataset.shape}, not a list of texts", "HDF5"
        )
    return [v.strip() for v in dataset.asstr(errors="replace")[()].tolist()]


def read_h5ad(path: Path, ways: Wanted, orientation: str, column: str | None) -> RawMatrix:
    """AnnData: obs are samples, var are genes, X or a layer is dense, CSR or CSC."""
    try:
        import anndata
    except ImportError as error:
        fix = "pip install 'gimp-ray[formats]'"
        raise InputError("reading .h5ad needs the package anndata", file=path, found=str(error), fix=fix) from error
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:  # anndata raises what its parts raise
        raise unusable(path, str(error)[:300] or type(error).__name__, "AnnData") from error
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
    samples = next((names for names in lists if len(known_places(names, ways))), lists[0])
    kept = known_places(samples, ways)
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
        raise InputError(
            "the AnnData file holds no numbers",
            file=path,
            expected="numbers",
            found=f"type {values.dtype}",
            fix="name a layer of numbers",
        )
    beside = {
        str(gene_column(str(c))): [None if pd.isna(v) else str(v) for v in data.var[c]]
        for c in data.var
        if gene_column(str(c))
    }
    unit = data.uns.get("unit") if column is None else parse_unit(column)
    genes = [str(name).strip() for name in data.var_names]
    return RawMatrix(path, samples, genes, values, 0, kept, CASES_BY_GENES, beside, str(unit) if unit else None)


def is_h5ad(head: Head) -> bool:
    with contextlib.suppress(OSError, RuntimeError), h5py.File(head.path, "r") as file:
        return "obs" in file and "var" in file
    return head.path.name.lower().endswith(".h5ad")
