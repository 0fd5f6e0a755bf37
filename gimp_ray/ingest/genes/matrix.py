"""One float32 matrix of cases and genes from gene files: `read_expression`.

Open the sources, choose a sample a case (`samples.py`), read the chosen files, settle the unit (`options.py`) and the
genes (`names.py`), fill the matrix.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes import names as gene_names
from gimp_ray.ingest.genes.files import STAR_UNITS, GeneColumns, damaged, htseq_hint, read_sample, star_column
from gimp_ray.ingest.genes.options import GeneOptions, RecordedUnit, check_values, resolve_unit
from gimp_ray.ingest.genes.read import Expression
from gimp_ray.ingest.genes.samples import KIND, Choice, Sample, choose_samples, match_samples
from gimp_ray.ingest.genes.sources import GeneSources, no_case, open_sources
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.store.tables import sha256_of

DEFAULT_OPTIONS = GeneOptions()
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class GeneMatrix:
    """Expression by case, ready for a store.

    Attributes:
        path: the first gene file; refusals name it.
        source_ids: sample of every row (several joined by ` + ` where they were averaged).
        gene_ids: G names, each once.
        values: (rows, G) float32.
        unit: `unknown` or None where it is not declared or recorded.
        row_of: case -> row; two cases of one patient may share one.
        matched_by_patient: some case was matched by the patient of a barcode, not by its exact id.
        gene_columns: symbol, gene_type, entrez, source_id, ...
        sources: file of every row.
        without: why a case has no genes, where there is more to say than that no sample is its own.
        left_out, notes: for the report.
        hashes: file -> SHA-256 of every file read.
    """

    path: Path
    source_ids: list[str]
    gene_ids: list[str]
    values: np.ndarray
    unit: str | None
    row_of: dict[str, int]
    matched_by_patient: bool
    gene_columns: GeneColumns = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    without: dict[str, InputError] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)

    def file_of(self, case_id: str) -> Path:
        return self.sources[self.row_of[case_id]] if self.sources else self.path

    def expression(self, case_id: str) -> np.ndarray:
        """(G,) float32."""
        return np.ascontiguousarray(self.values[self.row_of[case_id]], dtype=np.float32)


def read_expression(
    paths: Sequence[Path],
    case_ids: Collection[str],
    options: GeneOptions = DEFAULT_OPTIONS,
    sample_sheet: Path | None = None,
) -> GeneMatrix:
    """Read the expression of the cases of a case table.

    Args:
        paths: matrices, and folders or files of one sample each (GDC STAR counts, HTSeq).
        case_ids: the cases asked for.
        options: see `GeneOptions`.
        sample_sheet: the case of each file or sample.

    Raises:
        InputError: files that are missing, of an unknown kind or contradict each other, no case found, several samples
            or rows that the options do not choose from, values that contradict their unit.
    """
    if not paths:
        raise InputError("no gene file was given", fix="give a gene matrix, or a folder of per-sample files")
    sources = open_sources([Path(path) for path in paths], case_ids, options, sample_sheet)
    column = star_column(options.column, options.unit)
    # before choosing: the counts and the FPKM of one sample are no two samples
    owned = match_samples(sources.samples, case_ids)[0]
    resolve_unit(options.unit, _units(sources, [s for own in owned.values() for s in own], column))
    choice = choose_samples(sources.samples, case_ids, options.samples)
    if not choice.samples and not choice.without:
        raise sources.unmatched[0] if sources.unmatched else no_case(sources)
    recorded = _units(sources, [s for own in owned.values() for s in own], column)
    tables, recorded, hashes = _load(sources, choice, recorded, column)
    if not choice.samples:
        raise next(iter(choice.without.values()))
    matrix = _assemble(sources, tables, choice, options, resolve_unit(options.unit, recorded)[0])
    if options.missing == "gene":
        matrix = _only_measured(matrix)
    lists = [Path(options.gene_list)] if options.gene_list is not None else []
    hashes |= {str(path): sha256_of(path) for path in (*sources.read, *lists)}
    unit, certain, notes = resolve_unit(options.unit, recorded)
    names = {row: case for case, row in reversed(matrix.row_of.items())}
    cases = [names.get(row, "") for row in range(len(matrix.source_ids))]
    notes += check_values(matrix.values, unit, certain, cases, matrix.gene_ids, matrix.sources)
    return replace(matrix, hashes=hashes, unit=unit, notes=(*matrix.notes, *notes))


def join(roll: Roll, matrix: GeneMatrix) -> list[str]:
    """Leave out cases without (finite) expression; account for samples and files not used. Returns notes."""
    for case_id in sorted(roll.labels):
        if case_id not in matrix.row_of:
            if roll.keep:
                continue
            roll.leave_out_case(matrix.without.get(case_id) or _no_genes(matrix, case_id))
            continue
        values = matrix.expression(case_id)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            roll.leave_out_case(
                InputError(
                    "the case's expression holds NaN or Inf",
                    file=matrix.file_of(case_id),
                    case=case_id,
                    expected="finite values",
                    found=f"{values[bad[0]]} for gene {matrix.gene_ids[bad[0]]}; {len(bad):,} such values",
                    fix="complete the values, or drop the genes that some case lacks with gene_missing: gene",
                )
            )
    roll.left_out += matrix.left_out
    by_patient = "genes were matched by TCGA patient (first 12 characters), where no case id matched exactly"
    return [*matrix.notes, *([by_patient] if matrix.matched_by_patient else [])]


def _units(sources: GeneSources, samples: Sequence[Sample], column: str) -> list[RecordedUnit]:
    """What the sources that hold these samples say of their unit, each unit once."""
    numbers = {sample.source for sample in samples}
    recorded = [RecordedUnit(m.path, m.unit, m.hint) for i, m in enumerate(sources.matrices) if i in numbers]
    places = sorted({sample.place for sample in samples if sample.source == len(sources.matrices)})
    of_files = [_unit_of(sources, place, column) for place in places]
    return recorded + list({(one.content, one.hint): one for one in reversed(of_files)}.values())[::-1]


def _unit_of(sources: GeneSources, place: int, column: str) -> RecordedUnit:
    path, kind = sources.files[place]
    if kind == "star":
        return RecordedUnit(path, content=STAR_UNITS.get(column))
    row = None if sources.sheet is None else sources.sheet.row_of(path)
    return RecordedUnit(path, hint=htseq_hint(path.name) or (row.unit if row is not None else None))


def _load(
    sources: GeneSources, choice: Choice, recorded: list[RecordedUnit], column: str
) -> tuple[dict[int, Expression], list[RecordedUnit], dict[str, str]]:
    """The sources of the chosen samples; cases whose file is damaged lose their samples."""
    chosen = [sample for own in choice.samples.values() for sample in own]
    tables = {i: m for i, m in enumerate(sources.matrices) if any(s.source == i for s in chosen)}
    number = len(sources.matrices)
    places = list(dict.fromkeys(sample.place for sample in chosen if sample.source == number))
    if not places:
        return tables, recorded, {}
    hashes: dict[str, str] = {}
    recorded = [one for one in recorded if one.path in {m.path for m in sources.matrices}]
    first: tuple[Path, list[str], GeneColumns] | None = None
    values: list[np.ndarray] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda place: _read_file(sources, place, column), places)
        for place, result in zip(places, read, strict=True):
            if isinstance(result, InputError):
                _lose(choice, place, number, result)
                continue
            path = sources.files[place][0]
            (ids, row, beside, unit), hashes[str(path)] = result
            first = first or (path, ids, beside)
            values.append(row if ids == first[1] else _aligned(path, ids, row, *first[:2]))
            recorded.append(_unit_of(sources, place, column) if unit is None else RecordedUnit(path, content=unit))
    if first is None:
        raise next(iter(choice.without.values()))
    kept = [place for place in places if str(sources.files[place][0]) in hashes]
    names = [path.name for path, _ in sources.files]
    tables[number] = Expression(first[0], names, first[1], np.stack(values), np.array(kept), first[2])
    return tables, list({(one.content, one.hint): one for one in reversed(recorded)}.values())[::-1], hashes


def _read_file(
    sources: GeneSources, place: int, column: str
) -> tuple[tuple[list[str], np.ndarray, GeneColumns, str | None], str] | InputError:
    path, kind = sources.files[place]
    try:
        data = path.read_bytes()
        entries = sources.md5.get(path.name, [])
        expected = {md5 for file_id, md5 in entries if len(entries) == 1 or file_id == path.parent.name} - {""}
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if expected and digest not in expected:
            return InputError(
                "the sample's gene file is not the one of the manifest",
                file=path,
                expected=f"MD5 {', '.join(sorted(expected))}",
                found=f"MD5 {digest}",
                fix="download the file again",
            )
        ids, values, beside, unit = read_sample(path, kind, data, column)
    except OSError as error:
        return damaged(path, str(error))
    except InputError as error:
        if "no column" in error.what and kind == "star":
            raise
        return error
    return (ids.to_pylist(), values, beside, unit), hashlib.sha256(data).hexdigest()


def _aligned(path: Path, ids: list[str], values: np.ndarray, first: Path, reference: list[str]) -> np.ndarray:
    """The sample's values in the order of the first sample's genes."""
    places = pd.Index(ids)
    if not places.is_unique or len(ids) != len(reference) or set(ids) != set(reference):
        more, fewer = [i for i in ids if i not in set(reference)], [i for i in reference if i not in set(ids)]
        parts = [
            f"{len(names):,} {word}: {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")
            for names, word in ((more, "more"), (fewer, "missing"))
            if names
        ]
        raise InputError(
            "the gene files have different genes",
            file=path,
            expected=f"the {len(reference):,} genes of {first.name}",
            found=f"{len(ids):,} genes; {'; '.join(parts) or 'a gene twice'}",
            fix="ingest files of one gene model (GENCODE release) alone",
        )
    return values[places.get_indexer(reference)]


def _lose(choice: Choice, place: int, source: int, error: InputError) -> None:
    """Take a damaged file's sample from its cases."""
    for case_id, own in list(choice.samples.items()):
        hit = next((s for s in own if s.source == source and s.place == place), None)
        if hit is not None:
            del choice.samples[case_id]
            parts = {name: getattr(error, name) for name in ("file", "expected", "found", "fix")}
            choice.without[case_id] = InputError(error.what, case=case_id, **parts)
            path = str(hit.path)
            choice.left_out.append(LeftOut(KIND, hit.name, error.what, case_id, path, counts=False))


def _assemble(
    sources: GeneSources, tables: dict[int, Expression], choice: Choice, options: GeneOptions, unit: str
) -> GeneMatrix:
    chosen = [sample for own in choice.samples.values() for sample in own]
    row_of = {i: {int(place): row for row, place in enumerate(table.kept)} for i, table in tables.items()}
    rows = {i: sorted({row_of[i][s.place] for s in chosen if s.source == i}) for i in tables}
    alike = all(table.genes == next(iter(tables.values())).genes for table in tables.values())
    plans = []
    for i, table in tables.items():
        # of rows of one name, the same one is chosen in every source
        means = _means([(tables[j].values, rows[j]) for j in (tables if alike else (i,))])
        plans.append(gene_names.plan_genes(table.path, table.genes, table.beside, options, unit, means))
    if not alike and any(plan.rows_chosen for plan in plans):
        raise InputError(
            "rows of one gene cannot be chosen alike in several gene files",
            file=plans[1].path,
            expected="gene files with the same rows in the same order",
            found=f"different rows, and gene_duplicates: {options.duplicates}",
            fix="say gene_duplicates: mean or sum, which take all rows",
        )
    plans = gene_names.agree(plans, options.genes)
    groups = list(dict.fromkeys(choice.samples.values()))
    values = np.zeros((len(groups), len(plans[0].gene_ids)), np.float32)
    for (i, table), plan in zip(tables.items(), plans, strict=True):
        whole = {r: row_of[i][g[0].place] for r, g in enumerate(groups) if len(g) == 1 and g[0].source == i}
        places = np.fromiter(whole, np.int64, len(whole))
        for at in range(0, len(whole), _ROWS_AT_ONCE):
            rows_here = places[at : at + _ROWS_AT_ONCE]
            values[rows_here] = gene_names.values_of(plan, table.values[[whole[row] for row in rows_here.tolist()]])
        for row, group in enumerate(groups):
            of = [row_of[i][sample.place] for sample in group if sample.source == i]
            if of and len(group) > 1:
                values[row] += gene_names.values_of(plan, table.values[of]).sum(axis=0) / len(group)
    number = {group: row for row, group in enumerate(groups)}
    notes = [*sources.notes, *choice.notes, *(note for plan in plans for note in plan.notes)]
    return GeneMatrix(
        path=plans[0].path,
        source_ids=[" + ".join(sample.name for sample in group) for group in groups],
        gene_ids=plans[0].gene_ids,
        values=values,
        unit=None,
        row_of={case_id: number[group] for case_id, group in choice.samples.items()},
        matched_by_patient=choice.matched_by_patient,
        gene_columns=plans[0].gene_columns,
        sources=[group[0].path for group in groups],
        without=choice.without,
        left_out=(*choice.left_out, *sources.left_out),
        notes=tuple(dict.fromkeys(notes)),
    )


def _means(parts: Sequence[tuple[np.ndarray, Sequence[int]]]) -> gene_names.Means:
    """The mean of some genes over the chosen samples of the sources."""

    def means(places: NDArray[np.int64]) -> NDArray[np.float64]:
        total = sum(values[np.ix_(np.asarray(rows), places)].sum(axis=0, dtype=np.float64) for values, rows in parts)
        return np.asarray(total / max(1, sum(len(rows) for _, rows in parts)))

    return means


def _only_measured(matrix: GeneMatrix) -> GeneMatrix:
    """The matrix without the genes that are missing in some row."""
    kept = np.isfinite(matrix.values).all(axis=0)
    if kept.all():
        return matrix
    gone = [gene for gene, is_kept in zip(matrix.gene_ids, kept, strict=True) if not is_kept]
    if not kept.any():
        raise InputError(
            "no gene has a value in every case",
            file=matrix.path,
            expected="genes that are measured in every case",
            found=f"{len(gone):,} genes, each missing in some case",
            fix="say gene_missing: case, or ingest the cases of each platform alone",
        )
    shown = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
    note = f"{len(gone):,} genes are missing in some case and were left out: {shown}"
    return replace(
        matrix,
        gene_ids=[gene for gene, is_kept in zip(matrix.gene_ids, kept, strict=True) if is_kept],
        gene_columns={n: [v for v, k in zip(vs, kept, strict=True) if k] for n, vs in matrix.gene_columns.items()},
        values=matrix.values[:, kept],
        notes=(*matrix.notes, note),
    )


def _no_genes(matrix: GeneMatrix, case_id: str) -> InputError:
    expected, fix = "the case's id in the gene matrix", "add the case to the gene file, or remove its rows"
    found = f"{len(matrix.row_of):,} other cases" if matrix.row_of else "no case"
    return InputError("the case has no genes", file=matrix.path, case=case_id, expected=expected, found=found, fix=fix)
