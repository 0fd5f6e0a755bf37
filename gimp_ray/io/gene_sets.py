"""Gene sets: GMT as MSigDB has it (set, description, genes...), or CSV and TSV, and which genes of a list they hold.

A CSV is long (columns `gene_set` and `gene`, one gene a row) or wide (one set a column, the sets' names in the header).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.io.text import TEXT_FAULTS, is_number, open_text, require_file, separator_of

GeneSets = dict[str, tuple[str, ...]]

_SET_COLUMNS = ("gene_set", "geneset", "set", "gs_name", "pathway", "term", "group", "signature")
_GENE_COLUMNS = ("gene", "genes", "gene_id", "gene_symbol", "gene_name", "symbol", "hugo_symbol", "ensembl_gene")
_MISSING = ("", "NA", "NaN", "nan", "null")
_GMT_LINE = re.compile(r"[^\t]+\t(https?://\S+|na|NA)\t[^\t]")
_VERSION = re.compile(r"(ENS[A-Z]*\d{11})\.\d+(_PAR_Y)?")


@dataclass(frozen=True)
class GeneSetMatch:
    """Gene sets found in a list of genes.

    Args:
        sets: set -> places of its genes in the list, ascending, each once; (n,) int64, empty where none is there.
        unmatched: set -> its genes that are not in the list.
        coverage: set -> share of its genes that are in the list, 0 to 1.
    """

    sets: dict[str, NDArray[np.int64]]
    unmatched: dict[str, tuple[str, ...]]
    coverage: dict[str, float]


def read_gene_sets(path: Path) -> GeneSets:
    """The sets of a file in its order, each with its genes in order.

    Raises:
        InputError: no such file, neither GMT nor CSV, a set or a gene of a set twice, a set without genes.
    """
    require_file(path, "file of gene sets")
    try:
        with open_text(path) as stream:
            lines = [line.rstrip("\r\n") for line in stream if line.strip() and not line.startswith("#")]
    except TEXT_FAULTS as error:
        raise _no_sets(path, str(error)) from error
    if not lines:
        raise _no_sets(path, "an empty file")
    is_gmt = path.name.lower().removesuffix(".gz").endswith(".gmt") or all(map(_GMT_LINE.match, lines))
    sets = _gmt(lines, path) if is_gmt else _table(lines, path)
    for name, genes in sets:
        if not genes:
            raise _bad_set(path, f"the gene set {name} has no genes", "at least one gene a set", "none")
        twice = _twice(genes)
        if twice:
            raise _bad_set(path, f"the gene set {name} has a gene twice", "every gene of a set once", ", ".join(twice))
    twice = _twice([name for name, _ in sets])
    if twice:
        raise _bad_set(path, "a gene set stands twice", "every set once", ", ".join(twice[:10]))
    return {name: tuple(genes) for name, genes in sets}


def read_gene_list(path: Path) -> list[str]:
    """The genes of a text file (one a line), a CSV or TSV with a gene column, or of all sets of a GMT, each once.

    Raises:
        InputError: no such file, no genes, or a gene twice in a plain list.
    """
    require_file(path, "gene list")
    if path.name.lower().removesuffix(".gz").endswith(".gmt"):
        return list(dict.fromkeys(gene for genes in read_gene_sets(path).values() for gene in genes))
    try:
        with open_text(path) as stream:
            lines = [line.strip() for line in stream if line.strip() and not line.startswith("#")]
    except TEXT_FAULTS as error:
        raise _no_list(path, str(error)) from error
    genes = _listed(lines, path)
    if not genes:
        raise _no_list(path, "no genes")
    twice = _twice(genes)
    if twice:
        what = "the gene list has a gene twice"
        raise InputError(what, file=path, expected="every gene once", found=", ".join(twice[:10]), fix="remove one")
    return genes


def match_gene_sets(
    sets: Mapping[str, Sequence[str]], gene_ids: Sequence[str], symbols: Sequence[str | None] | None = None
) -> GeneSetMatch:
    """Find the genes of sets in a list of genes: by id, else by id without version, else by symbol.

    Args:
        sets: set -> genes.
        gene_ids: the list, such as a store's; G ids.
        symbols: symbol of every gene of the list, where known; a symbol of several genes matches them all.
    """
    places = _GeneIndex(gene_ids, symbols)
    found: dict[str, NDArray[np.int64]] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    coverage: dict[str, float] = {}
    for name, genes in sets.items():
        matched = [places.of(gene) for gene in genes]
        found[name] = np.unique(np.array([place for hits in matched for place in hits], dtype=np.int64))
        unmatched[name] = tuple(gene for gene, hits in zip(genes, matched, strict=True) if not hits)
        coverage[name] = 1 - len(unmatched[name]) / len(genes) if genes else 0.0
    return GeneSetMatch(found, unmatched, coverage)


def match_genes(
    genes: Sequence[str], gene_ids: Sequence[str], symbols: Sequence[str | None] | None = None
) -> tuple[list[int], list[str]]:
    """Places of genes in a list of genes, in the order asked and each once, and the genes that are not there."""
    places = _GeneIndex(gene_ids, symbols)
    matched = [places.of(gene) for gene in genes]
    found = list(dict.fromkeys(place for hits in matched for place in hits))
    return found, [gene for gene, hits in zip(genes, matched, strict=True) if not hits]


def without_version(gene_id: str) -> str:
    """An Ensembl id without its version (`ENSG00000141510.16` -> `ENSG00000141510`); other names as they are."""
    match = _VERSION.fullmatch(gene_id)
    return gene_id if match is None else match[1] + (match[2] or "")


class _GeneIndex:
    """Where a gene stands in a list, by the three ways of naming it."""

    def __init__(self, gene_ids: Sequence[str], symbols: Sequence[str | None] | None) -> None:
        self._by_id: dict[str, list[int]] = {}
        self._by_plain: dict[str, list[int]] = {}
        self._by_symbol: dict[str, list[int]] = {}
        for place, gene_id in enumerate(gene_ids):
            self._by_id.setdefault(gene_id, []).append(place)
            self._by_plain.setdefault(without_version(gene_id), []).append(place)
        for place, symbol in enumerate(symbols or ()):
            if symbol:
                self._by_symbol.setdefault(symbol, []).append(place)

    def of(self, gene: str) -> list[int]:
        return self._by_id.get(gene) or self._by_plain.get(without_version(gene)) or self._by_symbol.get(gene) or []


def _gmt(lines: Sequence[str], path: Path) -> list[tuple[str, list[str]]]:
    sets = []
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) < 3 or not cells[0]:
            if len(cells) == 2:
                raise _bad_set(path, f"the gene set {cells[0]} has no genes", "at least one gene a set", "none")
            raise _no_sets(path, f"line {number}: {line[:80]}")
        sets.append((cells[0], [gene for gene in cells[2:] if gene]))
    return sets


def _table(lines: Sequence[str], path: Path) -> list[tuple[str, list[str]]]:
    try:
        header, *rows = list(csv.reader(lines, delimiter=separator_of(lines[0])))
    except csv.Error as error:
        raise _no_sets(path, str(error)) from error
    header = [name.strip() for name in header]
    plain = [re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_") for name in header]
    set_column = next((plain.index(name) for name in _SET_COLUMNS if name in plain), None)
    gene_column = next((plain.index(name) for name in _GENE_COLUMNS if name in plain), None)
    if set_column is not None and gene_column is not None:
        return _long(rows, set_column, gene_column, path)
    return _wide(header, rows, path)


def _long(rows: Sequence[Sequence[str]], set_column: int, gene_column: int, path: Path) -> list[tuple[str, list[str]]]:
    sets: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        cells = [row[i].strip() if i < len(row) else "" for i in (set_column, gene_column)]
        if any(cell in _MISSING for cell in cells):
            raise _no_sets(path, f"line {number} lacks a set or a gene: {', '.join(row)[:80]}")
        sets.setdefault(cells[0], []).append(cells[1])
    if not sets:
        raise _no_sets(path, "a header alone")
    return list(sets.items())


def _wide(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> list[tuple[str, list[str]]]:
    sets = []
    for i, name in enumerate(header):
        genes = [row[i].strip() for row in rows if i < len(row) and row[i].strip() not in _MISSING]
        if i == 0 and (not name or name.startswith("Unnamed")) and all(map(is_number, genes)):
            continue  # the row numbers that pandas writes
        if not name:
            raise _no_sets(path, f"column {i + 1} has no name")
        numbers = [gene for gene in genes if not gene.isdigit() and is_number(gene)]
        if numbers:
            raise _no_sets(path, f"numbers in column {name}: {numbers[0]}")
        sets.append((name, genes))
    return sets


def _listed(lines: Sequence[str], path: Path) -> list[str]:
    """The genes of the lines of a list; the gene column of a table."""
    if not lines:
        return []
    separator = separator_of(lines[0])
    rows = list(csv.reader(lines, delimiter=separator))
    plain = [re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_") for name in rows[0]]
    column = next((plain.index(name) for name in _GENE_COLUMNS if name in plain), None)
    if column is None and len(plain) > 1:
        raise _no_list(path, f"columns {', '.join(rows[0][:10])}")
    body = rows if column is None else rows[1:]
    return [row[column or 0].strip() for row in body if len(row) > (column or 0) and row[column or 0].strip()]


def _twice(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def _bad_set(path: Path, what: str, expected: str, found: str) -> InputError:
    return InputError(what, file=path, expected=expected, found=found, fix="correct the file of gene sets")


def _no_sets(path: Path, found: str) -> InputError:
    return InputError(
        "this is no file of gene sets",
        file=path,
        expected="GMT (set, description, genes, by tabs), or CSV: columns gene_set and gene, or one column a set",
        found=found,
        fix="give a .gmt file of MSigDB, or a CSV of one of these shapes",
    )


def _no_list(path: Path, found: str) -> InputError:
    expected = "one gene a line, a CSV with a column gene, or GMT"
    fix = "give a file with the genes to keep, or leave the gene list out"
    return InputError("this is no gene list", file=path, expected=expected, found=found, fix=fix)
