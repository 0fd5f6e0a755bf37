"""Gene matrices as CSV or TSV, plain or gzip: a header line, ids in the first column, numbers in the rest.

The separator is a tab where the header line has one, else a comma. Comment lines before the header are skipped (GCT's
two as well), and a header one name short, as R writes it, is understood. Text columns beside the matrix are kept where
rows are genes (symbol, gene type, Entrez id), and refused where rows are cases. Values are read as float32, in blocks;
only the samples asked for stay in memory. UCSC Xena's matrices are such files; what their names say of the unit is in
`genes_xena.py`. Left out: choosing the id column; it is the first.
"""

from __future__ import annotations

import csv as text_csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from gimp_ray.cohort.readers import genes_xena
from gimp_ray.cohort.readers.genes_blocks import Blocks
from gimp_ray.cohort.readers.genes_columns import gene_column
from gimp_ray.cohort.readers.genes_head import (
    TEXT_FAULTS,
    FileHead,
    is_number,
    open_bytes,
    open_text,
    separator_of,
    split,
    text_fault,
)
from gimp_ray.cohort.readers.matrix import EVERYTHING, RawMatrix, ReadRequest
from gimp_ray.errors import InputError

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "[Not Available]")
# a line must fit a block, and lines of 60,000 genes are about half a megabyte
_BLOCK_BYTES, _BLOCK_LINES = 4 << 20, 64
_PEEKED_ROWS, _PEEKED_CELLS = 20, 50_000


@dataclass(frozen=True)
class TableHead:
    """The shape of a text table: `skipped` lines come before its rows, header included; the longest line seen."""

    separator: str
    names: list[str]
    skipped: int
    first_rows: list[list[str]]
    longest: int


def fits(head: FileHead) -> bool:
    """Whether the file is text with a header of several cells."""
    return head.is_text and len(head.fields()) > 1


def read(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read the samples asked for; InputError where the file is no table of numbers."""
    head = read_table_head(path)
    numeric, texts = _kinds_of_columns(head, path)
    blocks = Blocks(path, [head.names[i] for i in numeric], [head.names[i] for i in texts], request)
    for batch in _batches(path, head, [numeric[i] for i in blocks.columns_to_read], texts):
        ids = [name.strip() for name in batch.column(0).to_pylist()]
        beside = [[_text(cell) for cell in batch.column(1 + i).to_pylist()] for i in range(len(texts))]
        blocks.add(ids, beside, _numbers(batch, first=1 + len(texts)))
    return blocks.matrix(unit_hint=genes_xena.unit_hint(path))


def read_table_head(path: Path) -> TableHead:
    """The header and the first rows of a text table; InputError where it is none."""
    try:
        with open_text(path) as stream:
            skipped, line = 0, stream.readline()
            gct = line.startswith("#1.")
            while line.startswith("#"):
                skipped, line = skipped + 1, stream.readline()
            if gct:  # the number of rows and columns
                skipped, line = skipped + 1, stream.readline()
            separator = separator_of(line)
            names = split(line.rstrip("\r\n"), separator) if line.strip() else []
            if len(names) < 2:
                raise bad_table(path, f"one column: {names[0][:60]}" if names else "an empty file")
            rows = min(_PEEKED_ROWS, max(2, _PEEKED_CELLS // len(names)))
            first = list(itertools.islice(text_csv.reader(stream, delimiter=separator), rows))
    except (*TEXT_FAULTS, text_csv.Error) as error:
        raise bad_table(path, text_fault(path, error)) from error
    if first and len(first[0]) == len(names) + 1:
        names = ["", *names]
    longest = max([len(line), *(sum(map(len, row)) + len(row) for row in first)])
    return TableHead(separator, names, skipped + 1, [row for row in first if row], longest)


def _kinds_of_columns(head: TableHead, path: Path) -> tuple[list[int], list[int]]:
    """Places of the columns of numbers and of the ones of text; a column is text if none of its first cells counts."""
    numeric: list[int] = []
    texts: list[int] = []
    for i in range(1, len(head.names)):
        cells = [row[i].strip() for row in head.first_rows if i < len(row)]
        told = [cell for cell in cells if cell not in MISSING]
        text = gene_column(head.names[i]) is not None or (bool(told) and not any(map(is_number, told)))
        (texts if text else numeric).append(i)
    if not numeric:
        raise bad_table(path, "no column of numbers; the columns are " + ", ".join(head.names[:10]))
    return numeric, texts


def _batches(path: Path, head: TableHead, numeric: Sequence[int], texts: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Blocks of rows: the id, the text columns, the numbers as float32."""
    # columns are numbered, since duplicated names must be seen and not merged
    numbered = [str(i) for i in range(len(head.names))]
    types = {**dict.fromkeys(numbered, pa.float32()), **{numbered[i]: pa.string() for i in (0, *texts)}}
    chosen = [numbered[i] for i in (0, *texts, *numeric)]
    block_size = max(_BLOCK_BYTES, _BLOCK_LINES * head.longest)
    try:
        stream = csv.open_csv(
            open_bytes(path),
            read_options=csv.ReadOptions(column_names=numbered, skip_rows=head.skipped, block_size=block_size),
            parse_options=csv.ParseOptions(delimiter=head.separator),
            convert_options=csv.ConvertOptions(
                column_types={name: types[name] for name in chosen},
                include_columns=chosen,
                null_values=list(MISSING),
                strings_can_be_null=False,
            ),
        )
        yield from stream
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise bad_table(path, _plain(str(error), head.names)) from error
    except (pa.ArrowException, OSError) as error:
        raise bad_table(path, _plain(str(error), head.names)) from error


def _numbers(batch: pa.RecordBatch, first: int) -> np.ndarray:
    """The columns from `first` on as (rows, columns) float32."""
    columns = batch.columns[first:]
    if not columns:
        return np.empty((batch.num_rows, 0), np.float32)
    names = [str(i) for i in range(len(columns))]
    tensor = pa.RecordBatch.from_arrays(columns, names=names).to_tensor(null_to_nan=True)
    return np.asarray(tensor.to_numpy())


def _text(cell: str | None) -> str | None:
    cell = None if cell is None else cell.strip()
    return None if cell is None or cell in MISSING else cell


def _plain(error: str, names: list[str]) -> str:
    """Arrow's message with the column's name in place of its number."""
    head, _, tail = error.partition("In CSV column #")
    number, _, rest = tail.partition(":")
    if head or not number.isdigit() or int(number) >= len(names):
        return error[:300]
    return f"column {names[int(number)]}:{rest}"[:300]


def bad_table(path: Path, found: str) -> InputError:
    """The refusal of a file that is no table of numbers."""
    fix = "keep the ids in the first column and numbers in the others; text columns may stand beside genes alone"
    expected = "a header line, ids in the first column, numbers in the others"
    return InputError("the gene file is not a table of numbers", file=path, expected=expected, found=found, fix=fix)
