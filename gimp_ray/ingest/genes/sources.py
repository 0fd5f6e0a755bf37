"""Which gene files there are, and which case each sample belongs to: by the sample sheet, else by names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes.files import Head, htseq_hint, is_sample, read_head
from gimp_ray.ingest.genes.options import GeneOptions
from gimp_ray.ingest.genes.read import Expression, is_matrix, no_columns, read_matrix
from gimp_ray.ingest.genes.samples import Sample, barcode_in
from gimp_ray.ingest.genes.sheet import SampleSheet, read_sample_sheet
from gimp_ray.ingest.genes.sheet import fits as is_sheet
from gimp_ray.ingest.roll import LeftOut
from gimp_ray.io.text import TEXT_FAULTS

# what GDC's client leaves beside the data
_BESIDE = ("annotations.txt", ".parcel", ".partial", ".md5")


@dataclass
class GeneSources:
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
    unmatched: list[InputError] = field(default_factory=list)

    def leave_out(self, kind: str, path: Path, reason: str) -> None:
        self.left_out.append(LeftOut(kind, path.name, reason, file=str(path), counts=False))


def open_sources(paths: list[Path], case_ids: Collection[str], options: GeneOptions, sheet: Path | None) -> GeneSources:
    sources = GeneSources(case_ids)
    single = [path for path in paths if path.is_dir() or (path.is_file() and is_sample(read_head(path)))]
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
        raise no_columns(paths[0], column)
    for path in (path for path in paths if path not in single):
        _open_matrix(path, options, column, sources)
        sources.read.append(path)
    if single:
        _find_owners(single[0], sources)
    return sources


def _find_files(paths: list[Path], sources: GeneSources) -> list[Path]:
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


def _sort_in(path: Path, sources: GeneSources, sheets: list[Path], matrices: list[Path]) -> None:
    """Put a file where its content says it belongs; one without content, where its name does."""
    try:
        head = read_head(path)
    except InputError as error:
        head, reason = Head(path, b""), error.what
    else:
        reason = "it is no gene file that is known"
    kind = is_sample(head)
    if kind is None and not head.lines:  # damaged or empty: so that its case is known
        kind = "star" if "star_gene_counts" in path.name else "htseq" if htseq_hint(path.name) else None
    if kind is not None:
        sources.files.append((path, kind))
    elif {"id", "filename", "md5"} <= {name.lower() for name in head.fields}:
        sources.read.append(path)
        try:
            rows = pd.read_csv(path, sep="\t", comment="#", dtype=str).fillna("").rename(columns=str.lower)
        except (*TEXT_FAULTS, ValueError) as error:
            raise InputError(
                "the manifest cannot be read",
                file=path,
                expected="columns id, filename, md5",
                found=str(error),
                fix="download the manifest again, or move it away: files are then not compared with their MD5",
            ) from error
        for row in rows.to_dict("records"):
            name = row["filename"].replace("\\", "/").rpartition("/")[2]
            sources.md5.setdefault(name, []).append((row["id"], row["md5"].lower()))
    elif is_sheet(head):
        sheets.append(path)
    else:
        if is_matrix(head):
            matrices.append(path)
            reason = "it is a matrix or table beside per-sample gene files"
        sources.leave_out("gene file", path, reason)


def _open_matrix(path: Path, options: GeneOptions, column: str | None, sources: GeneSources) -> None:
    """Read one matrix and list its samples."""
    ways = _ways(sources)
    matrix = read_matrix(path, ways, options.orientation, column)
    ids = matrix if isinstance(matrix, list) else matrix.samples
    if not any(way(name) for name in ids for way in ways):
        sources.unmatched.append(no_case(sources, path, ids[:6]))
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
        owner = (None, None, False) if row is None else (row.case, row.kind, row.ffpe)
        sources.samples.append(Sample(name, number, place, path, *owner))
    sources.matrices.append(matrix)


def _ways(sources: GeneSources) -> tuple[Callable[[str], bool], ...]:
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


def _find_owners(root: Path, sources: GeneSources) -> None:
    """Find each file's sample: by the sample sheet, else by a barcode or case id in its file or folder name."""
    cases, sheet, number = set(sources.cases), sources.sheet, len(sources.matrices)
    found, no_owner = len(sources.samples), []
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
        no_owner.append((path, reason if row is None or row.trouble is None else row.trouble))
    if len(sources.samples) == found and sheet is not None:
        raise InputError(
            "no gene file is in the sample sheet",
            file=sheet.path,
            expected="the names of the gene files in column File Name",
            found=f"rows for {len(sheet.by_file)} files; gene files such as {no_owner[0][0].name}: {no_owner[0][1]}",
            fix="give the sample sheet of this download",
        )
    if len(sources.samples) == found:
        raise InputError(
            "nothing says which cases the gene files belong to",
            file=root,
            expected="a sample sheet, or a barcode or case id in the name of each file or its folder",
            found=f"files such as {no_owner[0][0].name}",
            fix="give the sample sheet (in the GDC portal's cart: Sample Sheet) as sample_sheet",
        )
    for path, reason in no_owner:
        sources.leave_out("gene sample", path, reason)


def _owner_by_name(path: Path, cases: Collection[str]) -> str | None:
    for name in (path.name, path.parent.name):
        stem = name.partition(".")[0]
        if stem in cases or barcode_in(stem) is not None:
            return stem
        if barcode_in(name) is not None:
            return name
    return None


def no_case(sources: GeneSources, path: Path | None = None, ids: Sequence[str] = ()) -> InputError:
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
