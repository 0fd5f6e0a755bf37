"""From sources to what an ingest will write: read the tables, match them, inspect every patch file. Writes nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest import add
from gimp_ray.ingest import genes as gene_join
from gimp_ray.ingest.add import Existing
from gimp_ray.ingest.cases import CaseTable, read_cases
from gimp_ray.ingest.genes import GeneMatrix, read_expression
from gimp_ray.ingest.options import IngestOptions
from gimp_ray.ingest.patches import PatchSource
from gimp_ray.ingest.patches import slides as patch_slides
from gimp_ray.ingest.patches.find import PatchFiles, find_patch_files
from gimp_ray.ingest.patches.write import inspect, inspect_tasks
from gimp_ray.ingest.report import Coverage, IngestPlan
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.ingest.splits import read_splits
from gimp_ray.ingest.vectors import NamedVector, read_vectors
from gimp_ray.ingest.work import Progress, Work
from gimp_ray.store.splits import PATIENT_COLUMN, rows_of
from gimp_ray.store.tables import signature
from gimp_ray.store.units import UNKNOWN, canonical

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


class Sources:
    """The paths the user gave."""

    def __init__(self, patches: Files, genes: Files, cases: Files, splits: Files, sample_sheet: Files) -> None:
        def paths(given: Files) -> tuple[Path, ...]:
            several = () if given is None else (given,) if isinstance(given, str | os.PathLike) else given
            return tuple(Path(path) for path in several)

        self.genes, self.cases = paths(genes), paths(cases)
        self.patches, self.splits, self.sample_sheet = (
            next(iter(paths(given)), None) for given in (patches, splits, sample_sheet)
        )

    def refuse_unreadable(self, error: Exception) -> None:
        """InputError where a source is the file that the system refuses."""
        name = getattr(error, "filename", None)
        given = [self.patches, *self.genes, *self.cases, self.splits, self.sample_sheet]
        if isinstance(error, OSError) and name and any(p and Path(name).is_relative_to(p) for p in given):
            found, fix = error.strerror or str(error), "let this user read it and the folders above it"
            raise InputError("a source cannot be read", file=name, found=found, fix=fix) from error


@dataclass
class Prepared:
    """The sources as read, matched and inspected; `notes` and the roll grow as the ingest goes on.

    Attributes:
        table: the case table, with rows for what the store holds already.
        to_write: the slides to write, sorted.
        files_read: slide -> its patch file, of the slides to write and of those found unchanged.
        vectors: modalities with named features beside the genes.
        splits: rows of splits.parquet from the user's split files; None without any.
        tables_read: file of every other source -> its kind, and its SHA-256 where it is known already.
        is_new: whether there is anything to write.
    """

    table: CaseTable
    roll: Roll
    existing: Existing | None
    has_slides: bool
    to_write: dict[str, PatchSource]
    files_read: dict[str, Path]
    matrix: GeneMatrix | None
    gene_unit: str | None
    vectors: dict[str, NamedVector]
    splits: pa.Table | None
    tables_read: dict[Path, tuple[str, str | None]]
    notes: list[str]
    is_new: bool
    plan: IngestPlan = field(repr=False)

    @property
    def gene_ids(self) -> list[str]:
        return [] if self.matrix is None else self.matrix.gene_ids

    @property
    def dim(self) -> int | None:
        """Embedding width of the slides to write, else of the store."""
        for source in self.to_write.values():
            return source.dim
        return None if self.existing is None else self.existing.store.dim


def prepare(
    sources: Sources, existing: Existing | None, place: str, options: IngestOptions, work: Work, bar: Progress
) -> Prepared:
    """Read, match and inspect everything.

    Raises:
        InputError: contradicting or unusable sources; anything to be left out when strict.
    """
    if sources.patches is None and not sources.genes and not options.vectors:
        fix = "give a folder of patch features, a gene matrix, or both"
        raise InputError("nothing to ingest: neither patches nor genes", fix=fix)
    if existing is not None:
        _same_kind(existing, options)
    table = read_cases(sources.cases, options.of_cases)
    given_cases = {case_id for case_id in table.case_ids if case_id is not None}
    files = None if sources.patches is None else find_patch_files(sources.patches, options.encoder)
    if existing is not None:
        table = add.with_stored_rows(table, existing, () if files is None else files.by_slide)
    has_slides = sources.patches is not None or (existing is not None and existing.store.dim is not None)
    keep = options.incomplete == "keep" or (existing is not None and not existing.store.is_complete)
    roll = Roll(table, with_slides=has_slides, stems=() if files is None else files.by_slide, keep=keep)
    table, splits = roll.table, None
    if sources.splits is not None:
        splits, unknown = read_splits(sources.splits, roll.case_row, roll.slide_to_case(), _patients(table))
        roll.left_out += unknown
    matrix, unit, notes = _genes(sources, roll, existing, options)
    notes = [*table.notes, *notes]
    vectors = read_vectors(options.vectors, options.vector_units, options.samples, roll, existing)
    notes += [note for vector in vectors.values() for note in vector.notes]
    coverage = _coverage(roll, files, matrix, existing)
    if matrix is not None:
        notes += gene_join.join(roll, matrix)
    to_write, unchanged = dict[str, PatchSource](), set[str]()
    if has_slides:
        to_write, unchanged = _patches(files, existing, roll, options.slides, work, bar)
    roll.refuse(options.strict)
    if existing is not None:
        _nothing_lost(existing, roll)
    new_cases = set(roll.labels) - (frozenset() if existing is None else existing.cases)
    known = {} if files is None else files.by_slide
    return Prepared(
        table=table,
        roll=roll,
        existing=existing,
        has_slides=has_slides,
        to_write=to_write,
        files_read={slide_id: known[slide_id] for slide_id in {*to_write, *(unchanged & set(known))}},
        matrix=matrix,
        gene_unit=unit,
        vectors=vectors,
        splits=splits,
        tables_read=_tables_read(sources, matrix)
        | {Path(file): (name, sha) for name, vector in vectors.items() for file, sha in vector.hashes.items()},
        notes=notes,
        is_new=existing is None
        or bool(to_write)
        or bool(new_cases & given_cases)
        or any(vector.is_new for vector in vectors.values())
        or (splits is not None and not set(rows_of(splits)) <= set(rows_of(existing.store.table("splits")))),
        plan=IngestPlan(
            store=place,
            coverage=coverage,
            added=existing is not None,
            slides_to_write=len(to_write),
            patches_to_write=sum(source.n_patches for source in to_write.values()),
            slides_stored=0 if existing is None else existing.store.manifest.num_slides,
            new_cases=len(new_cases),
            cases=len(roll.labels),
            left_out=tuple(roll.left_out),
            notes=tuple(notes),
        ),
    )


def _patches(
    files: PatchFiles | None, existing: Existing | None, roll: Roll, rule: str, work: Work, bar: Progress
) -> tuple[dict[str, PatchSource], set[str]]:
    """The slides to write, and the stored ones whose files are unchanged; the others are left out."""
    to_write, unchanged = dict[str, PatchSource](), set[str]()
    if rule != "largest":
        roll.apply_slide_rule(rule)
    if files is not None:
        changed = set[str]()
        if existing is None:
            patch_slides.join_files(roll, files)
        else:  # nothing needs to be read of a stored slide that has no file here
            stored_files = dict.fromkeys(existing.slides, Path(existing.store.path))
            patch_slides.join_files(roll, replace(files, by_slide={**stored_files, **files.by_slide}))
            here = set(existing.slides) & set(files.by_slide) & set(roll.slides)
            unchanged = {s for s in here if existing.sources.get(s) == signature(files.by_slide[s])}
            changed = here - unchanged
        names = sorted((set(files.by_slide) & set(roll.slides)) - unchanged)
        bar.start("inspecting slides", len(names))
        parts = work.map(inspect, inspect_tasks(files.by_slide, names))
        looked = dict(zip(names, itertools.chain.from_iterable(parts), strict=True))
        if existing is not None:
            unchanged |= _compare({s: looked.pop(s) for s in sorted(changed)}, existing, roll, work, bar)
        for slide_id, source in looked.items():
            if not isinstance(source, PatchSource):
                roll.leave_out_slide(slide_id, source)
        to_write = {s: source for s, source in looked.items() if isinstance(source, PatchSource) and s in roll.slides}
    if rule == "largest":
        sizes = {slide_id: source.n_patches for slide_id, source in to_write.items()}
        if existing is not None:
            slides = existing.store.slides
            sizes |= dict(zip(slides["slide_id"].to_pylist(), slides["n_patches"].to_pylist(), strict=True))
        roll.apply_slide_rule(rule, sizes)
        to_write = {slide_id: source for slide_id, source in to_write.items() if slide_id in roll.slides}
    stored, dim = (None, None) if existing is None else (existing.store.slides, existing.store.dim)
    patch_slides.refuse_mixture(list(to_write.values()), stored, dim)
    return to_write, unchanged


def _same_kind(existing: Existing, options: IngestOptions) -> None:
    manifest = existing.store.manifest
    for name in ("dtype", "compression"):
        if manifest.patches and getattr(options, name) != getattr(manifest.patches, name):
            raise ConfigError(
                f"the store's {name} is another",
                file=existing.store.path,
                expected=f"{name} {getattr(manifest.patches, name)}",
                found=getattr(options, name),
                fix="add with the store's own, or make a new store",
            )


def _patients(table: CaseTable) -> pa.Table | None:
    """Case and patient, where the case table has a column of patients; the first row of a case decides."""
    if PATIENT_COLUMN not in table.extra.column_names:
        return None
    patients = table.extra[PATIENT_COLUMN].to_pylist()
    of_case: dict[str, object] = {}
    for case_id, patient in zip(table.case_ids, patients, strict=True):
        if case_id is not None:
            of_case.setdefault(case_id, patient)
    return pa.table({"case_id": list(of_case), PATIENT_COLUMN: pa.array(of_case.values())})


def _tables_read(sources: Sources, matrix: GeneMatrix | None) -> dict[Path, tuple[str, str | None]]:
    """Every table that was read: its kind, and the hash where the reader made one."""
    read: dict[Path, tuple[str, str | None]] = dict.fromkeys(sources.cases, ("cases", None))
    if sources.splits is not None:
        files = sorted(sources.splits.iterdir()) if sources.splits.is_dir() else [sources.splits]
        read |= {path: ("splits", None) for path in files if path.is_file()}
    hashes = {} if matrix is None else matrix.hashes
    return read | {Path(file): ("genes", sha256) for file, sha256 in hashes.items()}


def _genes(
    sources: Sources, roll: Roll, existing: Existing | None, options: IngestOptions
) -> tuple[GeneMatrix | None, str | None, list[str]]:
    """The expression, the unit, and notes; stored cases have the values that are stored."""
    matrix = None
    if sources.genes:
        matrix = read_expression(sources.genes, list(roll.case_row), options.of_genes, sources.sample_sheet)
    unit, notes = (None, list[str]()) if matrix is None else (matrix.unit or UNKNOWN, [])
    if existing is None:
        return matrix, unit, notes
    stored_unit = existing.store.manifest.gene_unit
    matrix, changed = add.with_stored_genes(matrix, existing)
    if stored_unit is not None and unit == UNKNOWN != stored_unit:
        notes.append(f"the new gene files record no unit; the store's, {stored_unit}, was taken")
    elif None not in (unit, stored_unit) and canonical(str(unit)) != canonical(str(stored_unit)):
        raise InputError(
            "the expression has another unit than the store's",
            file=sources.genes[0] if sources.genes else None,
            expected=f"unit {stored_unit}",
            found=f"unit {unit}",
            fix="give the genes in the store's unit and declare it; units are never converted",
        )
    reason = "its expression changed since it was stored, and the store keeps what it has"
    file = str(sources.genes[0]) if sources.genes else None
    roll.left_out += [LeftOut("gene sample", case_id, reason, case_id, file) for case_id in changed]
    return matrix, stored_unit, notes


def _compare(
    looked: dict[str, PatchSource | InputError], existing: Existing, roll: Roll, work: Work, bar: Progress
) -> set[str]:
    """Hash stored slides whose file's size or dates changed; report changed contents, and return the others."""
    rows, column = existing.slides, existing.store.slides["sha256"]
    stored = {slide_id: column[rows[slide_id]].as_py() for slide_id in looked}
    readable = {s: source for s, source in looked.items() if isinstance(source, PatchSource)}
    bar.start("comparing slides", len(readable))
    dtype = existing.store.manifest.dtype
    tasks = [add.CompareTask(source, dtype, stored[s]) for s, source in readable.items()]
    outcomes: dict[str, bool | InputError] = {s: e for s, e in looked.items() if isinstance(e, InputError)}
    outcomes |= dict(zip(readable, work.map(add.same_bits, tasks), strict=True))
    for slide_id, same in sorted(outcomes.items()):
        if same is True:
            continue
        found = "other contents" if same is False else f"{same.what}: {same.found}"
        roll.left_out.append(
            LeftOut(
                "changed file",
                slide_id,
                "the source changed since it was stored, and the store keeps what it has",
                roll.slides[slide_id],
                expected=f"contents with SHA-256 {stored[slide_id]}",
                found=found,
                fix="make a new store of the new files, or bring the old file back",
            )
        )
    return {slide_id for slide_id, same in outcomes.items() if same is True}


def _nothing_lost(existing: Existing, roll: Roll) -> None:
    """Refuse sources by which a stored case or slide would have to go."""
    reasons = {(item.kind, item.id): item.reason for item in roll.left_out}
    for kind, stored, kept in (
        ("case", sorted(existing.cases), roll.labels),
        ("slide", list(existing.slides), roll.slides),
    ):
        lost = [name for name in stored if name not in kept]
        if lost:
            raise InputError(
                f"a {kind} of the store would be lost: {reasons.get((kind, lost[0]), 'its case was left out')}",
                file=existing.store.path,
                case=lost[0],
                found=f"{len(lost)} such {kind}s",
                fix="correct the sources, or make a new store without them; adding takes nothing away",
            )


def _coverage(roll: Roll, files: PatchFiles | None, matrix: GeneMatrix | None, existing: Existing | None) -> Coverage:
    have_files = set() if files is None else set(files.by_slide)
    have_files |= set() if existing is None else set(existing.slides)
    having = {}
    if files is not None or have_files:
        having["patches"] = {roll.case_of(slide_id) for slide_id in roll.slide_row if slide_id in have_files}
    if matrix is not None:
        having["genes"] = {case_id for case_id in roll.case_row if case_id in matrix.row_of}
    return Coverage(frozenset(roll.case_row), len(roll.slide_row), having)
