"""Per-sample gene files: a folder as GDC lays it out (`UUID/file`, `logs/`, annotations, a manifest) or single files.

`find_sample_files` lists them by their content, `samples_of` says whose they are, `load_samples` reads the chosen ones
into one matrix. A file that is damaged, or not what the manifest's MD5 says, leaves its case without genes. Files of
different gene lists are refused. Left out: downloading.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from gimp_ray.cohort.gene_samples import Sample, barcode_in
from gimp_ray.cohort.gene_units import SaidUnit
from gimp_ray.cohort.readers import genes_htseq, genes_manifest, genes_sheet, genes_star
from gimp_ray.cohort.readers.genes import is_matrix, sample_reader
from gimp_ray.cohort.readers.genes_head import read_head
from gimp_ray.cohort.readers.genes_samples import SampleValues, damaged
from gimp_ray.cohort.readers.genes_sheet import SampleSheet
from gimp_ray.cohort.readers.matrix import GeneColumns
from gimp_ray.cohort.roll import LeftOut
from gimp_ray.errors import InputError

# what GDC's client leaves beside the data
_BESIDE_NAMES = ("annotations.txt",)
_BESIDE_ENDINGS = (".parcel", ".partial", ".md5")
_BESIDE_FOLDERS = ("logs",)
_THREADS = 8


@dataclass
class SampleFiles:
    """The per-sample files of some paths, and what lies beside them.

    Args:
        root: the folder or file they were found by.
        files: each with the reader of its format.
        manifest: GDC manifests' entries by file name.
        sheets: sample sheets found beside.
        matrices: files that are matrices of several samples.
        left_out: files that are none of these, and files of the manifest that are not there.
        read: files read on the way, for their hashes.
    """

    root: Path
    files: list[tuple[Path, ModuleType]] = field(default_factory=list)
    manifest: dict[str, list[genes_manifest.ManifestEntry]] = field(default_factory=dict)
    sheets: list[Path] = field(default_factory=list)
    matrices: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    read: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedSamples:
    """Chosen samples as read: `values` (n, G) float32; a damaged one has its error in `damaged` and NaN values."""

    gene_ids: list[str]
    gene_columns: GeneColumns
    values: np.ndarray
    said: list[SaidUnit]
    damaged: dict[int, InputError]
    hashes: dict[str, str]


def find_sample_files(paths: Sequence[Path]) -> SampleFiles:
    """The per-sample files of folders and single files.

    Raises:
        InputError: a folder without such files.
    """
    found = SampleFiles(paths[0])
    for path in paths:
        before = len(found.files)
        for file in _walk(path) if path.is_dir() else [path]:
            _sort_in(file, found)
        if path.is_dir() and len(found.files) == before:
            raise _no_samples(path, found)
    _note_missing(found)
    return found


def samples_of(found: SampleFiles, sheet: SampleSheet | None, source: int, case_ids: Collection[str]) -> list[Sample]:
    """Whose the files are: by the sample sheet, else by a barcode or a case's id in the name of the file or its folder.

    Files of nobody are left out. Raises:
        InputError: no file is anybody's.
    """
    cases = set(case_ids)
    samples = []
    nobody: list[LeftOut] = []
    for place, (path, _) in enumerate(found.files):
        row = None if sheet is None else sheet.row_of(path)
        if row is not None and row.trouble is None:
            samples.append(Sample(row.sample or path.name, source, place, path, row.case, row.kind, row.ffpe))
            continue
        owner = None if row is not None else _owner_by_name(path, cases)
        if owner is not None:
            samples.append(Sample(owner if barcode_in(owner) else path.name, source, place, path, owner))
            continue
        reason = "neither its name nor its folder says its case" if sheet is None else "it is not in the sample sheet"
        reason = reason if row is None or row.trouble is None else row.trouble
        nobody.append(LeftOut("gene sample", path.name, reason, file=str(path), counts=False))
    if not samples:
        raise _nobody_s(found, sheet, nobody)
    found.left_out += nobody
    return samples


def said_units(found: SampleFiles, places: Sequence[int], sheet: SampleSheet | None, column: str) -> list[SaidUnit]:
    """What is known of the files' unit before they are read: by column, name or sample sheet; each unit once."""
    return _each_once(_said(found, place, sheet, column) for place in places)


def load_samples(found: SampleFiles, places: Sequence[int], sheet: SampleSheet | None, column: str) -> LoadedSamples:
    """Read the files at `places` into one matrix, aligned by gene.

    Raises:
        InputError: files of different genes, no file that is whole, or a column that the files do not have.
    """
    hashes: dict[str, str] = {}
    damages: dict[int, InputError] = {}
    said: list[SaidUnit] = []
    first: SampleValues | None = None
    first_path = found.root
    values = np.empty((0, 0), np.float32)
    for row, result in enumerate(_read_all(found, places, column)):
        path = found.files[places[row]][0]
        if isinstance(result, InputError):
            damages[row] = result
            continue
        sample, digest = result
        hashes[str(path)] = digest
        if first is None:
            first, first_path = sample, path
            values = np.full((len(places), len(sample.values)), np.nan, np.float32)
        values[row] = _aligned(sample, path, first, first_path)
        before = _said(found, places[row], sheet, column)
        said.append(before if sample.unit is None else SaidUnit(path, content=sample.unit))
    if first is None:
        raise next(iter(damages.values()))
    columns: GeneColumns = {name: column.to_pylist() for name, column in first.gene_columns.items()}
    return LoadedSamples(first.gene_ids.to_pylist(), columns, values, _each_once(said), damages, hashes)


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and the folders in it, sorted, without what GDC's client leaves beside."""

    def refuse(error: OSError) -> None:
        what = "a folder of gene files cannot be read"
        raise InputError(what, file=error.filename, expected="a folder that may be listed", found=str(error)) from error

    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = Path(place).resolve()
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in _BESIDE_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name not in _BESIDE_NAMES and not name.endswith(_BESIDE_ENDINGS):
                yield Path(place) / name


def _sort_in(path: Path, found: SampleFiles) -> None:
    """Put a file where its content says it belongs; one without content, where its name does."""
    try:
        head = read_head(path)
    except InputError as error:
        reader, reason = _reader_by_name(path), error.what
    else:
        reader = sample_reader(head) or (None if head.lines else _reader_by_name(path))
        reason = "it is no gene file that is known"
        if reader is None and genes_manifest.fits(head):
            for entry in genes_manifest.read_manifest(path):
                found.manifest.setdefault(entry.name, []).append(entry)
            found.read.append(path)
            return
        if reader is None and genes_sheet.fits(head):
            found.sheets.append(path)
            return
        if reader is None and is_matrix(head):
            found.matrices.append(path)
            reason = "it is a matrix or table beside per-sample gene files"
    if reader is not None:
        found.files.append((path, reader))
    else:
        found.left_out.append(LeftOut("gene file", path.name, reason, file=str(path), counts=False))


def _reader_by_name(path: Path) -> ModuleType | None:
    """The reader of a damaged or empty file, so that its case can be told."""
    if "star_gene_counts" in path.name:
        return genes_star
    return genes_htseq if genes_htseq.unit_hint(path.name) is not None else None


def _said(found: SampleFiles, place: int, sheet: SampleSheet | None, column: str) -> SaidUnit:
    path, reader = found.files[place]
    if reader is genes_star:
        return SaidUnit(path, content=genes_star.UNITS.get(column))
    row = None if sheet is None else sheet.row_of(path)
    return SaidUnit(path, hint=genes_htseq.unit_hint(path.name) or (row.unit if row is not None else None))


def _each_once(said: Iterable[SaidUnit]) -> list[SaidUnit]:
    first: dict[tuple[str | None, str | None], SaidUnit] = {}
    for unit in said:
        first.setdefault((unit.content, unit.hint), unit)
    return list(first.values())


def _note_missing(found: SampleFiles) -> None:
    """Account for gene files that a manifest lists and that are not there."""
    names = {path.name for path, _ in found.files}
    names |= {f"{name}.gz" for name in names} | {name.removesuffix(".gz") for name in names}
    endings = {path.name.partition(".")[2].removesuffix(".gz") for path, _ in found.files}
    for entries in found.manifest.values():
        for entry in entries:
            ending = entry.name.partition(".")[2].removesuffix(".gz")
            if entry.name not in names and ending in endings:
                reason = "the manifest lists it, but it is not there"
                left_out = LeftOut("gene file", entry.name, reason, file=str(found.root), counts=False)
                found.left_out.append(left_out)


def _owner_by_name(path: Path, cases: Collection[str]) -> str | None:
    """The case or barcode in the name of a file or of the folder it is in."""
    for name in (path.name, path.parent.name):
        stem = name.partition(".")[0]
        if stem in cases:
            return stem
        if barcode_in(name) is not None:
            return stem if barcode_in(stem) is not None else name
    return None


def _read_all(
    found: SampleFiles, places: Sequence[int], column: str
) -> Iterator[tuple[SampleValues, str] | InputError]:
    """The files in order, or why one cannot be used; a few are read ahead."""

    def read(place: int) -> tuple[SampleValues, str] | InputError:
        path, reader = found.files[place]
        try:
            return _read_one(path, reader, column, found)
        except InputError as error:
            if error.what.startswith("the gene file has no column"):
                raise
            return error

    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # in batches, so that parsed files do not pile up in memory
        for start in range(0, len(places), 4 * threads):
            yield from pool.map(read, places[start : start + 4 * threads])


def _read_one(path: Path, reader: ModuleType, column: str, found: SampleFiles) -> tuple[SampleValues, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise damaged(path, str(error)) from error
    _check_md5(path, data, found)
    return reader.read(path, data, column), hashlib.sha256(data).hexdigest()


def _check_md5(path: Path, data: bytes, found: SampleFiles) -> None:
    entries = found.manifest.get(path.name, [])
    expected = {e.md5 for e in entries if len(entries) == 1 or e.file_id == path.parent.name} - {""}
    if not expected:
        return
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest not in expected:
        raise InputError(
            "the sample's gene file is not the one of the manifest",
            file=path,
            expected=f"MD5 {', '.join(sorted(expected))}",
            found=f"MD5 {digest}",
            fix="download the file again",
        )


def _aligned(sample: SampleValues, path: Path, first: SampleValues, first_path: Path) -> np.ndarray:
    """The sample's values in the order of the first sample's genes."""
    if sample.gene_ids.equals(first.gene_ids):
        return sample.values
    ids, reference = sample.gene_ids.to_pylist(), first.gene_ids.to_pylist()
    place = {name: i for i, name in enumerate(ids)}
    if len(place) != len(ids) or len(ids) != len(reference) or set(place) != set(reference):
        known = set(reference)
        more = [name for name in ids if name not in known]
        fewer = [name for name in reference if name not in place]
        raise InputError(
            "the gene files have different genes",
            file=path,
            expected=f"the {len(reference):,} genes of {first_path.name}",
            found=f"{len(ids):,} genes; {_differences(more, fewer)}",
            fix="ingest files of one gene model (GENCODE release) alone",
        )
    return sample.values[np.fromiter((place[name] for name in reference), np.int64, len(reference))]


def _differences(more: Sequence[str], fewer: Sequence[str]) -> str:
    parts = []
    for names, word in ((more, "more"), (fewer, "missing")):
        if names:
            parts.append(f"{len(names):,} {word}: {', '.join(names[:3])}" + (", ..." if len(names) > 3 else ""))
    return "; ".join(parts) or "a gene twice"


def _no_samples(folder: Path, found: SampleFiles) -> InputError:
    listed = [str(path) for path in found.matrices[:5]]
    fix = "give the matrix file itself, not its folder" if listed else "give the folder GDC's files were downloaded to"
    return InputError(
        "the folder holds no per-sample gene files",
        file=folder,
        expected="GDC STAR counts (*.augmented_star_gene_counts.tsv) or HTSeq files, also in folders of their own",
        found=f"matrices: {', '.join(listed)}" if listed else f"{len(found.left_out)} other files",
        fix=fix,
    )


def _nobody_s(found: SampleFiles, sheet: SampleSheet | None, nobody: Sequence[LeftOut]) -> InputError:
    if sheet is not None:
        return InputError(
            "no gene file is in the sample sheet",
            file=sheet.path,
            expected="the names of the gene files in column File Name",
            found=f"rows for {len(sheet.by_file)} files; gene files such as {nobody[0].id}: {nobody[0].reason}",
            fix="give the sample sheet of this download",
        )
    return InputError(
        "nothing says whose the gene files are",
        file=found.root,
        expected="a sample sheet, or a barcode or case id in the name of each file or its folder",
        found=f"files such as {nobody[0].id}",
        fix="give the sample sheet (in the GDC portal's cart: Sample Sheet) as sample_sheet",
    )
