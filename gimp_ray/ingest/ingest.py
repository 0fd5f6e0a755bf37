"""`ingest_cohort`: files of other tools in, a store out, whole or not at all; `plan_ingest` says what it would do.

The order: read the tables and match them; inspect every patch file; refuse contradictions; write to a hidden folder;
verify; manifest last. Whatever fails on the way, Ctrl-C included, leaves no store, or the store as it was. Where `out`
is a store, new slides and cases are added to it and nothing else is written again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.add import Existing, open_existing, stored_folds
from gimp_ray.ingest.options import IngestOptions
from gimp_ray.ingest.patches import slides as patch_slides
from gimp_ray.ingest.patches.write import part_tasks, write_part
from gimp_ray.ingest.prepare import Files, Prepared, Sources, prepare
from gimp_ray.ingest.report import IngestPlan, IngestReport, kept_of
from gimp_ray.ingest.work import Progress, Work, WorkPool
from gimp_ray.io import storage
from gimp_ray.store import publishing, tables
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import CHECKSUMS, FILE, Bag, Manifest, Vector
from gimp_ray.store.schemes import make_scheme
from gimp_ray.store.splits import check_table, join_splits, keep_cases, schemes_of
from gimp_ray.store.tables import sources_table

__all__ = ["IngestOptions", "ingest_cohort", "plan_ingest"]

REPORT_FILE = "ingest_report.json"
MakeWork = Callable[[int, Callable[[int], None]], Work]


def plan_ingest(
    *,
    patches: Path | None,
    genes: Files,
    cases: Files,
    out: str | os.PathLike[str],
    splits: Path | None = None,
    sample_sheet: Path | None = None,
    options: IngestOptions | None = None,
) -> IngestPlan:
    """What `ingest_cohort` would do with these arguments: everything is inspected, nothing is written.

    Raises:
        InputError: as `ingest_cohort`, apart from what only reading all of a patch file can show.
    """
    options, place = options or IngestOptions(), storage.absolute(out)
    sources = Sources(patches, genes, cases, splits, sample_sheet)
    before = _before(place, after_a_kill=True)
    try:
        with Progress(options.progress) as bar, WorkPool(options.workers, bar.advance) as work:
            return prepare(sources, before, place, options, work, bar).plan
    except OSError as error:
        sources.refuse_unreadable(error)
        raise


def ingest_cohort(
    *,
    patches: Path | None,
    genes: Files,
    cases: Files,
    out: str | os.PathLike[str],
    splits: Path | None = None,
    sample_sheet: Path | None = None,
    options: IngestOptions | None = None,
    on_plan: Callable[[IngestPlan], None] | None = None,
    make_work: MakeWork = WorkPool,
) -> IngestReport:
    """Make the store `out` from patch features, gene files and case tables, or add to it what is new in them.

    Args:
        patches: folder of patch features (CLAM, TRIDENT, STAMP, TANGLE, npy, npz, Parquet, zarr); None for genes alone.
        genes: gene files or folders of them, one or several (`genes.read_expression`); None for patches alone.
        cases: case table, or several that are joined by case (`ingest/cases/`).
        out: the store to make or to add to, a local path or a URI such as `s3://bucket/store`.
        splits: split table, or folder of CLAM's split files, to import beside the schemes that are made.
        sample_sheet: which gene file or sample is whose: GDC's sample sheet, or a table of one's own.
        options: see `IngestOptions`.
        on_plan: called with the plan before anything is written.
        make_work: what spreads the work: processes here (`WorkPool`), or a cluster (`RayWork`).

    Returns:
        What was kept and what was left out; also written to `out/ingest_report.json`.

    Raises:
        InputError: contradicting or unusable sources, anything to be left out when strict, something else at `out`,
            another ingest at work there, or the store cannot be written. What was at `out` is as it was.
    """
    options, place = options or IngestOptions(), storage.absolute(out)
    sources = Sources(patches, genes, cases, splits, sample_sheet)
    try:
        with publishing.lock(place) as after_a_kill:
            before = _before(place, after_a_kill)
            with Progress(options.progress) as bar, make_work(options.workers, bar.advance) as work:
                prepared = prepare(sources, before, place, options, work, bar)
                if on_plan is not None:
                    on_plan(prepared.plan)
                return _publish(prepared, place, options, work, bar)
    except (OSError, pa.ArrowException) as error:
        sources.refuse_unreadable(error)
        fix = storage.advice(storage.resolve(place)[0], error) or "check free space and permissions there"
        fix += "; nothing of this ingest was left behind"
        raise InputError("the store cannot be written", file=place, found=str(error), fix=fix) from error


def _before(place: str, after_a_kill: bool) -> Existing | None:
    if publishing.exists(place):
        return open_existing(place)
    publishing.refuse_other(place, after_a_kill)
    return None


def _publish(prepared: Prepared, place: str, options: IngestOptions, work: Work, bar: Progress) -> IngestReport:
    """Write what is new, check it and publish the manifest."""
    before = prepared.existing
    if before is not None and not prepared.is_new:
        prepared.notes.append("nothing is new: the store is as it was")
        return _report(prepared, before.store.manifest, before.store.table("splits"), place, options)
    if before is None:
        publication = publishing.new_store(place)
    else:
        in_use = set(before.store.slides["file"].unique().to_pylist())
        publication = publishing.addition(place, before.store.manifest, in_use)
    with publication as folder:
        report, manifest = _write(prepared, folder, place, options, work, bar)
        filesystem, root = storage.resolve(folder)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, default=str) + "\n"
        name = REPORT_FILE if manifest.revision == 1 else f"ingest_report.r{manifest.revision}.json"
        storage.write_bytes(filesystem, f"{root}/{name}", text.encode())
        check_store(folder, manifest=manifest).raise_if_bad()
        storage.write_bytes(filesystem, f"{root}/{FILE}", manifest.to_json().encode())
    return report


def _write(
    prepared: Prepared, folder: str, place: str, options: IngestOptions, work: Work, bar: Progress
) -> tuple[IngestReport, Manifest]:
    """Write part files and tables into `folder`; the report speaks of `place`."""
    roll, extra, before = prepared.roll, prepared.table.extra, prepared.existing
    revision = 1 if before is None else before.store.manifest.revision + 1
    writer = tables.TableWriter(folder, revision)
    constant, varying = tables.constant_by_case(extra, prepared.table.case_ids)
    slides = None
    if prepared.has_slides:
        names = "patches/part-{:05d}.parquet" if revision == 1 else f"patches/part-r{revision}-{{:05d}}.parquet"
        wanted = [source for slide_id, source in sorted(prepared.to_write.items()) if slide_id in roll.slides]
        bar.start("writing patches", sum(source.n_patches for source in wanted))
        written = work.map(write_part, part_tasks(wanted, folder, names, options.compression, options.dtype))
        for slide_id, error in sorted((pair for part in written for pair in part.faults.items()), key=lambda p: p[0]):
            roll.leave_out_slide(slide_id, error)
        roll.refuse(options.strict)
        stored = None if before is None else before.store.slides
        slides = patch_slides.slides_table(prepared.to_write, written, roll.slides, stored)
        rows = [roll.slide_row[slide_id] for slide_id in slides["slide_id"].to_pylist()]
        prepared.notes += patch_slides.notes(list(prepared.to_write.values()))
        writer.write("slides", tables.with_extra(slides, extra.select(varying), rows))
    elif varying:
        prepared.notes.append(
            f"not stored, for they differ within a case and there are no slides: {', '.join(varying)}"
        )
    cases = tables.cases_table(roll.labels, extra.select(constant), roll.case_row)
    having = {name: vector.cases for name, vector in prepared.vectors.items()}
    if prepared.matrix is not None:
        having["rna"] = frozenset(prepared.matrix.row_of)
    cases = tables.with_modalities(cases, having)
    writer.write("cases", cases)
    stored_cases = {name: [case_id for case_id in sorted(roll.labels) if case_id in having[name]] for name in having}
    vectors: dict[str, Vector] = {}
    if prepared.matrix is not None:
        genes = tables.features_table("rna", prepared.gene_ids, prepared.matrix.gene_columns)
        values = prepared.matrix.expression
        vectors["rna"] = writer.write_vector("rna", genes, stored_cases["rna"], values, prepared.gene_unit)
    for name, vector in prepared.vectors.items():
        vectors[name] = writer.write_vector(name, vector.features, stored_cases[name], vector.values, vector.unit)
    prepared.notes += _lacking(cases, slides, stored_cases)
    splits = _splits(prepared, cases, options)
    if splits.num_rows:
        writer.write("splits", splits)
    kept_files = {slide_id: path for slide_id, path in prepared.files_read.items() if slide_id in roll.slides}
    kept_rows = () if before is None else before.store.table("sources").to_pylist()
    writer.write("sources", sources_table(kept_files, prepared.tables_read, kept_rows))
    manifest = _manifest(prepared, cases, slides, vectors, writer, options)
    return _report(prepared, manifest, splits, place, options), manifest


def _lacking(cases: pa.Table, slides: pa.Table | None, stored: dict[str, list[str]]) -> list[str]:
    """Notes on the stored cases that lack a label or a modality."""
    n = cases.num_rows
    counts = {"label": n - cases["label"].null_count, **{name: len(ids) for name, ids in stored.items()}}
    if slides is not None:
        counts["slide"] = len(slides["case_id"].unique())
    return [f"{n - count:,} of {n:,} stored cases have no {name}" for name, count in counts.items() if count < n]


def _splits(prepared: Prepared, cases: pa.Table, options: IngestOptions) -> pa.Table:
    """splits.parquet: what the user brought, what is stored, and the schemes asked for that neither has."""
    labels = {case_id: label or "no label" for case_id, label in prepared.roll.labels.items()}
    brought = [] if prepared.splits is None else [keep_cases(prepared.splits, labels)]
    found, notes = list(brought), list[str]()
    if prepared.existing is not None:
        names = {name for table in brought for name in schemes_of(table)}
        stored, notes = stored_folds(names, prepared.existing, cases, options.split_seed)
        found.append(stored)
    known = {name for table in found for name in schemes_of(table)}
    columns = {
        name: dict(zip(cases["case_id"].to_pylist(), cases[name].to_pylist(), strict=True))
        for name in cases.column_names[2:]
    }
    for scheme in dict.fromkeys(options.split_schemes):
        if scheme not in known:
            made, more = make_scheme(
                scheme, labels, columns, folds=options.folds, repeats=options.repeats, seed=options.split_seed,
                shares=options.split_shares,
            )  # fmt: skip
            found.append(made)
            notes += more
    prepared.notes += notes
    whole = join_splits(found)
    check_table(whole, prepared.table.path, cases)
    return whole


def _manifest(
    prepared: Prepared,
    cases: pa.Table,
    slides: pa.Table | None,
    vectors: dict[str, Vector],
    writer: tables.TableWriter,
    options: IngestOptions,
) -> Manifest:
    before, modalities = prepared.existing, dict[str, Bag | Vector]()
    if slides is not None and prepared.dim is not None:
        stored = None if before is None else before.store.manifest.patches
        checksums = CHECKSUMS if stored is None else stored.checksums
        modalities["patches"] = tables.bag_of(
            slides, dim=prepared.dim, dtype=options.dtype, compression=options.compression, checksums=checksums
        )
    superseded = () if before is None else before.store.manifest.tables
    return writer.manifest(cases, modalities | vectors, superseded)


def _report(
    prepared: Prepared, manifest: Manifest, splits: pa.Table, place: str, options: IngestOptions
) -> IngestReport:
    roll = prepared.roll
    counts = Counter(label for label in roll.labels.values() if label)
    return IngestReport(
        store=place,
        manifest=manifest,
        coverage=prepared.plan.coverage,
        added=prepared.plan.added,
        class_counts={label: counts[label] for label in sorted(counts)},
        split_schemes=schemes_of(splits),
        left_out=tuple(roll.left_out),
        notes=tuple(prepared.notes),
        options=options.model_dump(),
        kept=kept_of(roll, prepared.files_read, prepared.matrix),
    )
