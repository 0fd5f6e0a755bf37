"""`read_expression`: gene files of other tools in, one matrix of cases and genes out.

The order: look at every path, matrices are read as far as cases are asked for; say whose every sample is and choose one
a case (`gene_samples.py`); read the chosen per-sample files (`gene_files.py`); settle the unit (`gene_units.py`) and
the genes (`gene_rules.py`); fill one float32 matrix. In memory are the samples of the cases asked for, as read, and
that matrix: twice its size at most. Left out: the roll of cases (`gene_join.py`), converting units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gimp_ray.cohort import gene_files, gene_rules, gene_samples
from gimp_ray.cohort.gene_options import GeneOptions
from gimp_ray.cohort.gene_samples import Choice, Sample, barcode_in
from gimp_ray.cohort.gene_units import SaidUnit, check_values, resolve_unit
from gimp_ray.cohort.readers import genes_star
from gimp_ray.cohort.readers.genes import no_columns, read_gene_file, sample_reader
from gimp_ray.cohort.readers.genes_head import read_head
from gimp_ray.cohort.readers.genes_sheet import SampleSheet, read_sample_sheet
from gimp_ray.cohort.readers.matrix import GeneColumns, GeneMatrix, ReadRequest, SampleMatrix, samples_by_genes
from gimp_ray.cohort.roll import LeftOut
from gimp_ray.cohort.sources import sha256_of
from gimp_ray.errors import InputError

__all__ = ["GeneMatrix", "GeneOptions", "read_expression"]

DEFAULT_OPTIONS = GeneOptions()
_MEANS_AT_ONCE = 1024


@dataclass
class _Sources:
    """The opened sources: matrices, then at most one set of per-sample files, the last source."""

    matrices: list[SampleMatrix] = field(default_factory=list)
    files: gene_files.SampleFiles | None = None
    sheet: SampleSheet | None = None
    samples: list[Sample] = field(default_factory=list)
    read: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strangers: list[InputError] = field(default_factory=list)


@dataclass
class _Loaded:
    """One source's chosen samples: `values[row_of[place]]` is the sample at `place`."""

    path: Path
    gene_ids: list[str]
    gene_columns: GeneColumns
    values: np.ndarray
    row_of: dict[int, int]


def read_expression(
    paths: Sequence[Path],
    case_ids: Collection[str],
    options: GeneOptions = DEFAULT_OPTIONS,
    sample_sheet: Path | None = None,
) -> GeneMatrix:
    """Read the expression of the cases of a case table.

    Args:
        paths: matrices (CSV, TSV, Parquet, HDF5, `.h5ad`, Xena, cBioPortal), and folders or files of one sample each
            (GDC STAR counts, HTSeq).
        case_ids: the cases asked for.
        options: see `GeneOptions`.
        sample_sheet: which file or sample is whose: GDC's sample sheet or metadata JSON, or a table of one's own.

    Returns:
        The matrix; cases without genes are in `row_of` no more than cases unknown to it, `without` says why.

    Raises:
        InputError: files that are missing, of an unknown kind or contradict each other, no case found, several samples
            or rows that the options do not choose from, values that contradict their unit.
    """
    if not paths:
        raise InputError("no gene file was given", fix="give a gene matrix, or a folder of per-sample files")
    sources = _open([Path(path) for path in paths], case_ids, options, sample_sheet)
    column = genes_star.column_of(options.column, options.unit)
    # before choosing: the counts and the FPKM of one sample are no two samples
    said = _said(sources, gene_samples.match_samples(sources.samples, case_ids)[0], column)
    resolve_unit(options.unit, said)
    choice = gene_samples.choose_samples(sources.samples, case_ids, options.samples)
    if not choice.samples and not choice.without:
        raise sources.strangers[0] if sources.strangers else _no_case(sources, case_ids)
    loaded, said, hashes = _load(sources, choice, said, column)
    if not choice.samples:
        raise next(iter(choice.without.values()))
    unit = resolve_unit(options.unit, said)[0]
    matrix = _assemble(sources, loaded, choice, options, unit)
    if options.missing == "gene":
        matrix = _only_measured(matrix)
    hashes.update({str(path): sha256_of(path) for path in sources.read})
    if options.gene_list is not None:
        hashes[str(options.gene_list)] = sha256_of(Path(options.gene_list))
    return _with_unit(dataclasses.replace(matrix, hashes=hashes), options, said)


def _with_unit(matrix: GeneMatrix, options: GeneOptions, said: Sequence[SaidUnit]) -> GeneMatrix:
    """The matrix with its unit, of which its values were asked."""
    unit, certain, notes = resolve_unit(options.unit, said)
    notes += check_values(matrix.values, unit, certain, _cases_of_rows(matrix), matrix.gene_ids, matrix.sources)
    return dataclasses.replace(matrix, unit=unit, notes=(*matrix.notes, *notes))


def _open(
    paths: Sequence[Path], case_ids: Collection[str], options: GeneOptions, sample_sheet: Path | None
) -> _Sources:
    """Read the matrices as far as cases are asked for, and list the per-sample files."""
    sources = _Sources()
    single = [path for path in paths if path.is_dir() or _is_sample(path)]
    files = gene_files.find_sample_files(single) if single else None
    sheet_path = sample_sheet
    if sheet_path is None and files is not None and files.sheets:
        if len(files.sheets) > 1:
            raise _several_sheets(files.sheets)
        sheet_path = files.sheets[0]
        sources.notes.append(f"samples are matched by the sample sheet {sheet_path.name} that lies with the gene files")
    if sheet_path is not None:
        sources.sheet = read_sample_sheet(Path(sheet_path))
        sources.read.append(Path(sheet_path))
    has_star = files is not None and any(reader is genes_star for _, reader in files.files)
    column = None if has_star else options.column
    if column is not None and len(single) == len(paths):
        raise no_columns(paths[0], column)
    for path in paths:
        if path not in single:
            matrix = _open_matrix(path, case_ids, options, column, sources)
            if matrix is not None:
                sources.matrices.append(matrix)
            sources.read.append(path)
    if files is not None:
        sources.files = files
        sources.read += files.read
        sources.samples += gene_files.samples_of(files, sources.sheet, len(sources.matrices), case_ids)
    _refuse_twice(sources.samples, sources.matrices)
    return sources


def _is_sample(path: Path) -> bool:
    return path.is_file() and sample_reader(read_head(path)) is not None


def _open_matrix(
    path: Path, case_ids: Collection[str], options: GeneOptions, column: str | None, sources: _Sources
) -> SampleMatrix | None:
    """Read one matrix and list its samples; None where it holds none of the cases."""
    ways = _ways(case_ids, sources.sheet)
    request = ReadRequest(lambda name: any(way(name) for way in ways), options.orientation, column)
    raw = read_gene_file(path, request)
    matrix = samples_by_genes(raw, options.orientation, ways)
    if matrix is None or not any(map(request.wanted, matrix.sample_ids)):
        ids = raw.row_ids[:3] + raw.column_ids[:3] if matrix is None else matrix.sample_ids[:6]
        sources.strangers.append(_no_case_in(path, case_ids, ids))
        sources.notes.append(f"{path.name} holds none of the cases")
        if matrix is None:
            return None
    by_sample = {} if sources.sheet is None else sources.sheet.by_sample
    for place, name in enumerate(matrix.sample_ids):
        row = by_sample.get(name)
        owner, kind, ffpe = (None, None, False) if row is None else (row.case, row.kind, row.ffpe)
        sources.samples.append(Sample(name, len(sources.matrices), place, path, owner, kind, ffpe))
    return matrix


def _ways(case_ids: Collection[str], sheet: SampleSheet | None) -> tuple[Callable[[str], bool], ...]:
    """How an id is known as a sample of a case: exactly, by the sample sheet, by the patient of its barcode."""
    cases = set(case_ids)
    patients = {barcode.patient for barcode in map(barcode_in, cases) if barcode is not None}
    rows = {} if sheet is None else sheet.by_sample

    def by_patient(name: str) -> bool:
        barcode = barcode_in(name)
        return barcode is not None and barcode.patient in patients

    def by_sheet(name: str) -> bool:
        row = rows.get(name)
        return row is not None and row.case is not None and (row.case in cases or by_patient(row.case))

    return (cases.__contains__, by_sheet, by_patient) if rows else (cases.__contains__, by_patient)


def _said(sources: _Sources, owned: dict[str, list[Sample]], column: str) -> list[SaidUnit]:
    """What the sources that hold samples of cases say of their unit, before per-sample files are read."""
    used = sorted({(sample.source, sample.place) for own in owned.values() for sample in own})
    numbers = {source for source, _ in used}
    said = [SaidUnit(m.path, m.unit, m.unit_hint) for i, m in enumerate(sources.matrices) if i in numbers]
    if sources.files is not None:
        places = [place for source, place in used if source == len(sources.matrices)]
        said += gene_files.said_units(sources.files, places, sources.sheet, column)
    return said


def _load(
    sources: _Sources, choice: Choice, said: list[SaidUnit], column: str
) -> tuple[list[_Loaded | None], list[SaidUnit], dict[str, str]]:
    """The chosen samples of every source (None: none chosen); cases whose file is damaged lose their samples."""
    loaded: list[_Loaded | None] = []
    chosen = [sample for own in choice.samples.values() for sample in own]
    for number, matrix in enumerate(sources.matrices):
        places = dict.fromkeys(sample.place for sample in chosen if sample.source == number)
        rows = {place: matrix.row_of[matrix.sample_ids[place]] for place in places}
        source = _Loaded(matrix.path, matrix.gene_ids, matrix.gene_columns, matrix.values, rows)
        loaded.append(source if rows else None)
    of_files = [sample for sample in chosen if sample.source == len(sources.matrices)]
    if sources.files is None or not of_files:
        return loaded, said, {}
    places_read = list(dict.fromkeys(sample.place for sample in of_files))
    result = gene_files.load_samples(sources.files, places_read, sources.sheet, column)
    rows = {place: row for row, place in enumerate(places_read)}
    loaded.append(_Loaded(sources.files.root, result.gene_ids, result.gene_columns, result.values, rows))
    for row, error in result.damaged.items():
        _lose(choice, places_read[row], len(sources.matrices), error)
    said = [one for one in said if one.path in {m.path for m in sources.matrices}] + result.said
    return loaded, said, result.hashes


def _lose(choice: Choice, place: int, source: int, error: InputError) -> None:
    """Take a damaged file's sample from its cases."""
    for case_id, own in list(choice.samples.items()):
        hit = next((s for s in own if s.source == source and s.place == place), None)
        if hit is not None:
            del choice.samples[case_id]
            choice.without[case_id] = InputError(
                error.what, file=error.file, case=case_id, expected=error.expected, found=error.found, fix=error.fix
            )
            name, path = hit.name, str(hit.path)
            choice.left_out.append(LeftOut(gene_samples.KIND, name, error.what, case_id, path, counts=False))


def _assemble(
    sources: _Sources, loaded: Sequence[_Loaded | None], choice: Choice, options: GeneOptions, unit: str
) -> GeneMatrix:
    """The store's genes and rows."""
    chosen = [sample for own in choice.samples.values() for sample in own]
    used = {i: source for i, source in enumerate(loaded) if any(s.source == i for s in chosen) and source is not None}
    rows = {i: sorted({source.row_of[s.place] for s in chosen if s.source == i}) for i, source in used.items()}
    plans = _plans(used, rows, options, unit)
    first = next(iter(plans.values()))
    groups = list(dict.fromkeys(choice.samples.values()))
    values = np.zeros((len(groups), len(first.gene_ids)), dtype=np.float32)
    for i, plan in plans.items():
        _fill(values, groups, i, used[i], plan)
    row_of_group = {group: row for row, group in enumerate(groups)}
    notes = [*sources.notes, *choice.notes, *(note for plan in plans.values() for note in plan.notes)]
    return GeneMatrix(
        path=first.path,
        source_ids=[" + ".join(sample.name for sample in group) for group in groups],
        gene_ids=first.gene_ids,
        values=values,
        unit=None,
        row_of={case_id: row_of_group[group] for case_id, group in choice.samples.items()},
        matched_by_patient=choice.matched_by_patient,
        gene_columns=first.gene_columns,
        sources=[group[0].path for group in groups],
        without=choice.without,
        left_out=(*choice.left_out, *(() if sources.files is None else sources.files.left_out)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _plans(
    used: dict[int, _Loaded], rows: dict[int, list[int]], options: GeneOptions, unit: str
) -> dict[int, gene_rules.GenePlan]:
    """The genes of every source, the same in all of them."""
    gene_ids = [source.gene_ids for source in used.values()]
    alike = all(ids == gene_ids[0] for ids in gene_ids)
    plans = []
    for i, source in used.items():
        # of rows of one name, the same one is chosen in every source
        means = _means([(used[j].values, rows[j]) for j in (used if alike else (i,))])
        plans.append(gene_rules.plan_genes(source.path, source.gene_ids, source.gene_columns, options, unit, means))
    if not alike and any(plan.rows_chosen for plan in plans):
        raise _unlike_rows(plans[1].path, options)
    return dict(zip(used, gene_rules.agree(plans, options.genes), strict=True))


def _only_measured(matrix: GeneMatrix) -> GeneMatrix:
    """The matrix without the genes that are missing in some row; its values are moved together in place."""
    kept = np.ones(len(matrix.gene_ids), dtype=bool)
    for row in matrix.values:
        kept &= np.isfinite(row)
    places = np.flatnonzero(kept)
    if len(places) == len(kept):
        return matrix
    gone = [matrix.gene_ids[i] for i in np.flatnonzero(~kept)]
    if not len(places):
        raise InputError(
            "no gene has a value in every case",
            file=matrix.path,
            expected="genes that are measured in every case",
            found=f"{len(gone):,} genes, each missing in some case",
            fix="say gene_missing: case, or ingest the cases of each platform alone",
        )
    for row in matrix.values:
        row[: len(places)] = row[places]
    shown = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
    return dataclasses.replace(
        matrix,
        gene_ids=[matrix.gene_ids[i] for i in places],
        gene_columns={name: [values[i] for i in places] for name, values in matrix.gene_columns.items()},
        values=matrix.values[:, : len(places)],
        notes=(*matrix.notes, f"{len(gone):,} genes are missing in some case and were left out: {shown}"),
    )


def _fill(
    values: np.ndarray, groups: Sequence[tuple[Sample, ...]], number: int, source: _Loaded, plan: gene_rules.GenePlan
) -> None:
    """Write a source's part of every row; rows of several samples become their mean."""
    single = [(row, source.row_of[g[0].place]) for row, g in enumerate(groups) if len(g) == 1 and g[0].source == number]
    if single:
        gene_rules.fill(values, [to for to, _ in single], plan, source.values, [of for _, of in single])
    part = np.empty((1, values.shape[1]), dtype=np.float32)
    for row, group in enumerate(groups):
        for sample in group if len(group) > 1 else ():
            if sample.source == number:
                gene_rules.fill(part, [0], plan, source.values, [source.row_of[sample.place]])
                values[row] += part[0] / len(group)


def _means(parts: Sequence[tuple[np.ndarray, Sequence[int]]]) -> gene_rules.Means:
    """The mean of some genes over the chosen samples of the sources."""

    def means(places: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(len(places))
        for values, rows in parts:
            for start in range(0, len(rows), _MEANS_AT_ONCE):
                block = values[np.ix_(np.asarray(rows[start : start + _MEANS_AT_ONCE]), places)]
                total += block.sum(axis=0, dtype=np.float64)
        return total / max(1, sum(len(rows) for _, rows in parts))

    return means


def _cases_of_rows(matrix: GeneMatrix) -> list[str]:
    """The case of every row, the first of two that share it."""
    names = [""] * len(matrix.source_ids)
    for case_id, row in matrix.row_of.items():
        names[row] = names[row] or case_id
    return names


def _refuse_twice(samples: Sequence[Sample], matrices: Sequence[SampleMatrix]) -> None:
    """A sample that stands in two matrices; which values hold, nobody knows."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.source >= len(matrices):
            continue
        known = first.setdefault(sample.name, sample)
        if known is not sample:
            raise InputError(
                "a sample stands in two gene matrices",
                file=sample.path,
                case=sample.name,
                expected="every sample in one file",
                found=f"{known.path} and {sample.path}",
                fix="give one of the files, or remove the sample from one",
            )


def _several_sheets(sheets: Sequence[Path]) -> InputError:
    return InputError(
        "several sample sheets lie with the gene files",
        file=sheets[0].parent,
        expected="one sample sheet, or none and barcodes in the names",
        found=", ".join(str(path) for path in sheets[:5]),
        fix="name the one that holds as sample_sheet",
    )


def _unlike_rows(path: Path, options: GeneOptions) -> InputError:
    return InputError(
        "rows of one gene cannot be chosen alike in several gene files",
        file=path,
        expected="gene files with the same rows in the same order",
        found=f"different rows, and gene_duplicates: {options.duplicates}",
        fix="say gene_duplicates: mean or sum, which take all rows",
    )


def _no_case(sources: _Sources, case_ids: Collection[str]) -> InputError:
    path = sources.samples[0].path if sources.samples else Path()
    return _no_case_in(path, case_ids, [sample.owner or sample.name for sample in sources.samples[:6]])


def _no_case_in(path: Path, case_ids: Collection[str], ids: Sequence[str]) -> InputError:
    return InputError(
        "no case of the case table is in the gene matrix",
        file=path,
        expected="case ids such as " + ", ".join(sorted(case_ids)[:3]),
        found="ids such as " + ", ".join(ids),
        fix="use the case table's ids in the gene file (TCGA barcodes match by their first 12 characters), or give a "
        "sample sheet",
    )
