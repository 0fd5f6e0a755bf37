"""Gene files of other tools in, one matrix of cases and genes out: `read_expression`.

Every path is opened as sources (`genes_read.py`): matrices, read as far as cases are asked for, and per-sample files,
listed. Say whose each sample is and choose one a case (`gene_samples.py`), read the chosen files, settle the unit
(`gene_units.py`) and the genes (`gene_rules.py`), fill one float32 matrix. Left out: converting units.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.ingest import gene_rules, gene_samples
from gimp_ray.ingest import genes_read as formats
from gimp_ray.ingest.gene_options import GeneOptions
from gimp_ray.ingest.gene_samples import Choice, Sample, barcode_in
from gimp_ray.ingest.gene_units import SaidUnit, check_values, resolve_unit
from gimp_ray.ingest.genes_read import Expression, GeneColumns, Head
from gimp_ray.ingest.readers.genes_sheet import SampleSheet, read_sample_sheet
from gimp_ray.ingest.readers.genes_sheet import fits as is_sheet
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.store.tables import sha256_of

__all__ = ["GeneMatrix", "GeneOptions", "join", "read_expression"]

DEFAULT_OPTIONS = GeneOptions()
# what GDC's client leaves beside the data
_BESIDE = ("annotations.txt", ".parcel", ".partial", ".md5")


@dataclass(frozen=True)
class GeneMatrix:
    """Expression by case, ready for a store.

    Attributes:
        path: the first gene file; refusals name it.
        source_ids: sample of every row (several joined by ` + ` where they were averaged).
        gene_ids: G names, each once.
        values: (rows, G) float32.
        unit: `unknown` or None where nobody said it.
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


@dataclass
class _Sources:
    """What the paths hold. Source number i is matrix i; the last number is that of all per-sample files together."""

    cases: Collection[str]
    matrices: list[Expression] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)
    sheet: SampleSheet | None = None
    samples: list[Sample] = field(default_factory=list)
    md5: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # file name -> (GDC's id, MD5)
    read: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strangers: list[InputError] = field(default_factory=list)

    def leave_out(self, kind: str, path: Path, reason: str) -> None:
        self.left_out.append(LeftOut(kind, path.name, reason, file=str(path), counts=False))


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
        sample_sheet: which file or sample is whose.

    Raises:
        InputError: files that are missing, of an unknown kind or contradict each other, no case found, several samples
            or rows that the options do not choose from, values that contradict their unit.
    """
    if not paths:
        raise InputError("no gene file was given", fix="give a gene matrix, or a folder of per-sample files")
    sources = _open([Path(path) for path in paths], case_ids, options, sample_sheet)
    column = formats.star_column(options.column, options.unit)
    # before choosing: the counts and the FPKM of one sample are no two samples
    owned = gene_samples.match_samples(sources.samples, case_ids)[0]
    resolve_unit(options.unit, _said(sources, [s for own in owned.values() for s in own], column))
    choice = gene_samples.choose_samples(sources.samples, case_ids, options.samples)
    if not choice.samples and not choice.without:
        raise sources.strangers[0] if sources.strangers else _no_case(sources)
    said = _said(sources, [s for own in owned.values() for s in own], column)
    tables, said, hashes = _load(sources, choice, said, column)
    if not choice.samples:
        raise next(iter(choice.without.values()))
    matrix = _assemble(sources, tables, choice, options, resolve_unit(options.unit, said)[0])
    if options.missing == "gene":
        matrix = _only_measured(matrix)
    lists = [Path(options.gene_list)] if options.gene_list is not None else []
    hashes |= {str(path): sha256_of(path) for path in (*sources.read, *lists)}
    unit, certain, notes = resolve_unit(options.unit, said)
    names = {row: case for case, row in reversed(matrix.row_of.items())}
    cases = [names.get(row, "") for row in range(len(matrix.source_ids))]
    notes += check_values(matrix.values, unit, certain, cases, matrix.gene_ids, matrix.sources)
    return replace(matrix, hashes=hashes, unit=unit, notes=(*matrix.notes, *notes))


def join(roll: Roll, matrix: GeneMatrix) -> list[str]:
    """Leave out cases without (finite) expression; account for samples and files not used. Returns notes."""
    for case_id in sorted(roll.labels):
        if case_id not in matrix.row_of:
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


# -- opening


def _open(paths: list[Path], case_ids: Collection[str], options: GeneOptions, sheet: Path | None) -> _Sources:
    sources = _Sources(case_ids)
    single = [
        path for path in paths if path.is_dir() or (path.is_file() and formats.is_sample(formats.read_head(path)))
    ]
    sheets = _find_files(single, sources)
    if sheet is None and sheets:
        if len(sheets) > 1:
            raise InputError(
                "several sample sheets lie with the gene files",
                file=sheets[0].parent,
                expected="one sample sheet, or none and barcodes in the names",
                found=", ".join(str(path) for path in sheets[:5]),
                fix="name the one that holds as sample_sheet",
            )
        sheet = sheets[0]
        sources.notes.append(f"samples are matched by the sample sheet {sheet.name} that lies with the gene files")
    if sheet is not None:
        sources.sheet = read_sample_sheet(Path(sheet))
        sources.read.append(Path(sheet))
    column = None if any(kind == "star" for _, kind in sources.files) else options.column
    if column is not None and len(single) == len(paths):
        raise formats.no_columns(paths[0], column)
    for path in (path for path in paths if path not in single):
        _open_matrix(path, options, column, sources)
        sources.read.append(path)
    if single:
        _whose(single[0], sources)
    return sources


def _find_files(paths: list[Path], sources: _Sources) -> list[Path]:
    """List the per-sample files of folders and single files; the sample sheets among them are returned."""
    sheets: list[Path] = []
    matrices: list[Path] = []
    for path in paths:
        before = len(sources.files)
        for file in _walk(path) if path.is_dir() else [path]:
            _sort_in(file, sources, sheets, matrices)
        if path.is_dir() and len(sources.files) == before:
            listed = ", ".join(str(matrix) for matrix in matrices[:5])
            gdc = "give the folder GDC's files were downloaded to"
            raise InputError(
                "the folder holds no per-sample gene files",
                file=path,
                expected="GDC STAR counts (*.augmented_star_gene_counts.tsv) or HTSeq files, also in their own folders",
                found=f"matrices: {listed}" if listed else f"{len(sources.left_out)} other files",
                fix="give the matrix file itself, not its folder" if listed else gdc,
            )
    plain = {path.name.removesuffix(".gz") for path, _ in sources.files}
    endings = {name.partition(".")[2] for name in plain}
    for name, entries in sources.md5.items():
        bare = name.removesuffix(".gz")
        if bare not in plain and bare.partition(".")[2] in endings:
            reason = "the manifest lists it, but it is not there"
            sources.left_out += [LeftOut("gene file", name, reason, file=str(paths[0]), counts=False)] * len(entries)
    return sheets


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and the folders in it, sorted, without what GDC's client leaves beside."""

    def refuse(error: OSError) -> None:
        what, expected = "a folder of gene files cannot be read", "a folder that may be listed"
        raise InputError(what, file=error.filename, expected=expected, found=str(error)) from error

    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        new = Path(place).resolve() not in seen  # else a link back
        seen.add(Path(place).resolve())
        folders[:] = sorted(name for name in folders if new and name != "logs" and not name.startswith("."))
        if new:
            yield from (Path(place) / n for n in sorted(names) if not n.startswith(".") and not n.endswith(_BESIDE))


def _sort_in(path: Path, sources: _Sources, sheets: list[Path], matrices: list[Path]) -> None:
    """Put a file where its content says it belongs; one without content, where its name does."""
    try:
        head = formats.read_head(path)
    except InputError as error:
        head, reason = Head(path, b""), error.what
    else:
        reason = "it is no gene file that is known"
    kind = formats.is_sample(head)
    if kind is None and not head.lines:  # damaged or empty: so that its case can be told
        kind = "star" if "star_gene_counts" in path.name else "htseq" if formats.htseq_hint(path.name) else None
    if kind is not None:
        sources.files.append((path, kind))
    elif {"id", "filename", "md5"} <= {name.lower() for name in head.fields}:
        sources.read.append(path)
        for row in pd.read_csv(path, sep="\t", comment="#", dtype=str).fillna("").to_dict("records"):
            name = row["filename"].replace("\\", "/").rpartition("/")[2]
            sources.md5.setdefault(name, []).append((row["id"], row["md5"].lower()))
    elif is_sheet(head):
        sheets.append(path)
    else:
        if formats.is_matrix(head):
            matrices.append(path)
            reason = "it is a matrix or table beside per-sample gene files"
        sources.leave_out("gene file", path, reason)


def _open_matrix(path: Path, options: GeneOptions, column: str | None, sources: _Sources) -> None:
    """Read one matrix and list its samples."""
    ways = _ways(sources)
    matrix = formats.read_matrix(path, ways, options.orientation, column)
    ids = matrix if isinstance(matrix, list) else matrix.samples
    if not any(way(name) for name in ids for way in ways):
        sources.strangers.append(_no_case(sources, path, ids[:6]))
        sources.notes.append(f"{path.name} holds none of the cases")
    if isinstance(matrix, list):
        return
    number, by_sample = len(sources.matrices), {} if sources.sheet is None else sources.sheet.by_sample
    seen = {sample.name: sample for sample in sources.samples}
    for place, name in enumerate(matrix.samples):
        if name in seen:
            raise InputError(
                "a sample stands in two gene matrices",
                file=path,
                case=name,
                expected="every sample in one file",
                found=f"{seen[name].path} and {path}",
                fix="give one of the files, or remove the sample from one",
            )
        row = by_sample.get(name)
        said = (None, None, False) if row is None else (row.case, row.kind, row.ffpe)
        sources.samples.append(Sample(name, number, place, path, *said))
    sources.matrices.append(matrix)


def _ways(sources: _Sources) -> tuple[Callable[[str], bool], ...]:
    """How an id is known as a sample of a case: exactly, by the sample sheet, by the patient of its barcode."""
    cases = set(sources.cases)
    patients = {barcode.patient for barcode in map(barcode_in, cases) if barcode is not None}
    rows = {} if sources.sheet is None else sources.sheet.by_sample

    def by_patient(name: str) -> bool:
        barcode = barcode_in(name)
        return barcode is not None and barcode.patient in patients

    def by_sheet(name: str) -> bool:
        row = rows.get(name)
        return row is not None and row.case is not None and (row.case in cases or by_patient(row.case))

    return (cases.__contains__, by_sheet, by_patient)


def _whose(root: Path, sources: _Sources) -> None:
    """Find each file's sample: by the sample sheet, else by a barcode or case id in its file or folder name."""
    cases, sheet, number = set(sources.cases), sources.sheet, len(sources.matrices)
    found, nobody = len(sources.samples), []
    for place, (path, _) in enumerate(sources.files):
        row = None if sheet is None else sheet.row_of(path)
        if row is not None and row.trouble is None:
            name = row.sample or path.name
            sources.samples.append(Sample(name, number, place, path, row.case, row.kind, row.ffpe))
            continue
        owner = None if row is not None else _owner_by_name(path, cases)
        if owner is not None:
            name = owner if barcode_in(owner) else path.name
            sources.samples.append(Sample(name, number, place, path, owner))
            continue
        reason = "neither its name nor its folder says its case" if sheet is None else "it is not in the sample sheet"
        nobody.append((path, reason if row is None or row.trouble is None else row.trouble))
    if len(sources.samples) == found and sheet is not None:
        raise InputError(
            "no gene file is in the sample sheet",
            file=sheet.path,
            expected="the names of the gene files in column File Name",
            found=f"rows for {len(sheet.by_file)} files; gene files such as {nobody[0][0].name}: {nobody[0][1]}",
            fix="give the sample sheet of this download",
        )
    if len(sources.samples) == found:
        raise InputError(
            "nothing says whose the gene files are",
            file=root,
            expected="a sample sheet, or a barcode or case id in the name of each file or its folder",
            found=f"files such as {nobody[0][0].name}",
            fix="give the sample sheet (in the GDC portal's cart: Sample Sheet) as sample_sheet",
        )
    for path, reason in nobody:
        sources.leave_out("gene sample", path, reason)


def _owner_by_name(path: Path, cases: Collection[str]) -> str | None:
    for name in (path.name, path.parent.name):
        stem = name.partition(".")[0]
        if stem in cases or barcode_in(stem) is not None:
            return stem
        if barcode_in(name) is not None:
            return name
    return None


# -- reading what was chosen


def _said(sources: _Sources, samples: Sequence[Sample], column: str) -> list[SaidUnit]:
    """What the sources that hold these samples say of their unit, each unit once."""
    numbers = {sample.source for sample in samples}
    said = [SaidUnit(m.path, m.unit, m.hint) for i, m in enumerate(sources.matrices) if i in numbers]
    places = sorted({sample.place for sample in samples if sample.source == len(sources.matrices)})
    of_files = [_said_of(sources, place, column) for place in places]
    return said + list({(one.content, one.hint): one for one in reversed(of_files)}.values())[::-1]


def _said_of(sources: _Sources, place: int, column: str) -> SaidUnit:
    path, kind = sources.files[place]
    if kind == "star":
        return SaidUnit(path, content=formats.STAR_UNITS.get(column))
    row = None if sources.sheet is None else sources.sheet.row_of(path)
    return SaidUnit(path, hint=formats.htseq_hint(path.name) or (row.unit if row is not None else None))


def _load(
    sources: _Sources, choice: Choice, said: list[SaidUnit], column: str
) -> tuple[dict[int, Expression], list[SaidUnit], dict[str, str]]:
    """The sources of the chosen samples; cases whose file is damaged lose their samples."""
    chosen = [sample for own in choice.samples.values() for sample in own]
    tables = {i: m for i, m in enumerate(sources.matrices) if any(s.source == i for s in chosen)}
    number = len(sources.matrices)
    places = list(dict.fromkeys(sample.place for sample in chosen if sample.source == number))
    if not places:
        return tables, said, {}
    hashes: dict[str, str] = {}
    said = [one for one in said if one.path in {m.path for m in sources.matrices}]
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
            said.append(_said_of(sources, place, column) if unit is None else SaidUnit(path, content=unit))
    if first is None:
        raise next(iter(choice.without.values()))
    kept = [place for place in places if str(sources.files[place][0]) in hashes]
    names = [path.name for path, _ in sources.files]
    tables[number] = Expression(first[0], names, first[1], np.stack(values), np.array(kept), first[2])
    return tables, list({(one.content, one.hint): one for one in reversed(said)}.values())[::-1], hashes


def _read_file(
    sources: _Sources, place: int, column: str
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
        ids, values, beside, unit = formats.read_sample(path, kind, data, column)
    except OSError as error:
        return formats.damaged(path, str(error))
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
            said = {name: getattr(error, name) for name in ("file", "expected", "found", "fix")}
            choice.without[case_id] = InputError(error.what, case=case_id, **said)
            path = str(hit.path)
            choice.left_out.append(LeftOut(gene_samples.KIND, hit.name, error.what, case_id, path, counts=False))


# -- one matrix


def _assemble(
    sources: _Sources, tables: dict[int, Expression], choice: Choice, options: GeneOptions, unit: str
) -> GeneMatrix:
    chosen = [sample for own in choice.samples.values() for sample in own]
    row_of = {i: {int(place): row for row, place in enumerate(table.kept)} for i, table in tables.items()}
    rows = {i: sorted({row_of[i][s.place] for s in chosen if s.source == i}) for i in tables}
    alike = all(table.genes == next(iter(tables.values())).genes for table in tables.values())
    plans = []
    for i, table in tables.items():
        # of rows of one name, the same one is chosen in every source
        means = _means([(tables[j].values, rows[j]) for j in (tables if alike else (i,))])
        plans.append(gene_rules.plan_genes(table.path, table.genes, table.beside, options, unit, means))
    if not alike and any(plan.rows_chosen for plan in plans):
        raise InputError(
            "rows of one gene cannot be chosen alike in several gene files",
            file=plans[1].path,
            expected="gene files with the same rows in the same order",
            found=f"different rows, and gene_duplicates: {options.duplicates}",
            fix="say gene_duplicates: mean or sum, which take all rows",
        )
    plans = gene_rules.agree(plans, options.genes)
    groups = list(dict.fromkeys(choice.samples.values()))
    values = np.zeros((len(groups), len(plans[0].gene_ids)), np.float32)
    for (i, table), plan in zip(tables.items(), plans, strict=True):
        for row, group in enumerate(groups):
            of = [row_of[i][sample.place] for sample in group if sample.source == i]
            if of:
                values[row] += gene_rules.values_of(plan, table.values[of]).sum(axis=0) / len(group)
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


def _means(parts: Sequence[tuple[np.ndarray, Sequence[int]]]) -> gene_rules.Means:
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


def _no_case(sources: _Sources, path: Path | None = None, ids: Sequence[str] = ()) -> InputError:
    path = path or (sources.samples[0].path if sources.samples else Path())
    ids = ids or [sample.owner or sample.name for sample in sources.samples[:6]]
    return InputError(
        "no case of the case table is in the gene matrix",
        file=path,
        expected="case ids such as " + ", ".join(sorted(sources.cases)[:3]),
        found="ids such as " + ", ".join(ids),
        fix="use the case table's ids in the gene file (TCGA barcodes match by their first 12 characters), or give a "
        "sample sheet",
    )


def _no_genes(matrix: GeneMatrix, case_id: str) -> InputError:
    expected, fix = "the case's id in the gene matrix", "add the case to the gene file, or remove its rows"
    found = f"{len(matrix.row_of):,} other cases" if matrix.row_of else "no case"
    return InputError("the case has no genes", file=matrix.path, case=case_id, expected=expected, found=found, fix=fix)
