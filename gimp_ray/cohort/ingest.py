"""`ingest_cohort`: files of other tools in, a store out, whole or not at all.

The order: read the tables and match them; look at every patch file; refuse what contradicts itself; write into a
hidden folder beside the store; verify; manifest last; rename. Whatever fails on the way, Ctrl-C included, leaves no
store and no folder. Left out: adding to an existing store, writing to object storage.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gimp_ray.cohort import gene_join, patch_ingest, tables
from gimp_ray.cohort.check import check_store
from gimp_ray.cohort.discover import PatchFiles, find_patch_files
from gimp_ray.cohort.manifest import FILE, FORMAT, Manifest, gene_list_sha256, store_fingerprint
from gimp_ray.cohort.readers.case_table import CaseTable, read_case_table
from gimp_ray.cohort.readers.matrix import ORIENTATIONS, GeneMatrix
from gimp_ray.cohort.readers.split_table import read_split_table
from gimp_ray.cohort.report import IngestReport, kept_of
from gimp_ray.cohort.roll import LeftOut, Roll
from gimp_ray.cohort.schema import LAYOUT_VERSION, ROW_GROUP_ROWS, TABLES, table_schema
from gimp_ray.cohort.splits import KFOLD, SplitRow, check_rows, kfold_rows, schemes_of, splits_table
from gimp_ray.cohort.staging import refuse_existing, staged_folder
from gimp_ray.errors import ConfigError, InputError

COMPRESSIONS = ("none", "zstd")
REPORT_FILE = "ingest_report.json"


@dataclass(frozen=True)
class IngestOptions:
    """Choices of an ingest.

    Args:
        strict: refuse where something would be left out.
        workers: processes; 0 for one a CPU.
        compression: of the part files, `none` (local disks) or `zstd` (where the network is the limit).
        gene_orientation: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases` say it.
        gene_unit: unit of the expression values, such as `log2(FPKM+1)`; `unknown` takes what the file says.
        folds: folds of the scheme `kfold`.
        split_seed: seed of that scheme.
        progress: show a progress bar on stderr.
    """

    strict: bool = False
    workers: int = 0
    compression: str = "none"
    gene_orientation: str = "auto"
    gene_unit: str = gene_join.UNKNOWN_UNIT
    folds: int = 5
    split_seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, known in (("compression", COMPRESSIONS), ("gene_orientation", ORIENTATIONS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} has an unknown value", expected=", ".join(known), found=repr(value))
        if self.workers < 0 or self.folds < 3:
            found = f"workers {self.workers}, folds {self.folds}"
            raise ConfigError("an ingest option is out of range", expected="workers >= 0, folds >= 3", found=found)


@dataclass
class _Sources:
    """The sources as read and matched; `notes` grows as the ingest goes on."""

    table: CaseTable
    roll: Roll
    files: PatchFiles | None
    matrix: GeneMatrix | None
    gene_unit: str | None
    split_rows: list[SplitRow]
    notes: list[str]

    @property
    def gene_ids(self) -> list[str]:
        return [] if self.matrix is None else self.matrix.gene_ids


def ingest_cohort(
    *,
    patches: Path | None,
    genes: Path | None,
    cases: Path,
    out: Path,
    splits: Path | None = None,
    options: IngestOptions = IngestOptions(),
) -> IngestReport:
    """Make the store `out` from patch features, a gene matrix and a case table.

    Args:
        patches: folder of patch features (CLAM, TRIDENT, STAMP `.h5`, CLAM `.pt`); None for genes alone.
        genes: gene matrix (CSV, TSV, Parquet, HDF5); None for patches alone.
        cases: case table (CSV): case_id, label, slide_id with patches, further columns.
        out: the store to make; must not exist.
        splits: split table (CSV) to import beside the k-fold scheme: case_id, part, optionally fold, scheme.
        options: see `IngestOptions`.

    Returns:
        What was kept and what was left out; also written to `out/ingest_report.json`.

    Raises:
        InputError: contradicting or unusable sources, anything to be left out when strict, `out` exists,
            or the store cannot be written. No store is left behind.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a symlink
    refuse_existing(out)
    sources = _read_sources(_path(patches), _path(genes), Path(cases), _path(splits), options)
    try:
        with staged_folder(out) as folder:
            report = _write_store(sources, folder, out, options)
    except (OSError, pa.ArrowException) as error:
        fix = "check free space and permissions there; nothing was left behind"
        raise InputError("the store cannot be written", file=out, found=str(error), fix=fix) from error
    return report


def _path(path: Path | None) -> Path | None:
    return None if path is None else Path(path)


def _read_sources(
    patches: Path | None, genes: Path | None, cases: Path, splits: Path | None, options: IngestOptions
) -> _Sources:
    """Read the tables, list the patch files, and match them; leave out what has no counterpart."""
    if patches is None and genes is None:
        fix = "give a folder of patch features, a gene matrix, or both"
        raise InputError("nothing to ingest: neither patches nor genes", fix=fix)
    table = read_case_table(cases)
    roll = Roll(table, with_slides=patches is not None)
    split_rows = [] if splits is None else _read_splits(splits, roll)
    files = None if patches is None else find_patch_files(patches)
    matrix, unit, notes = None, None, []
    if genes is not None:
        matrix = gene_join.read_matrix(genes, list(roll.case_row), options.gene_orientation)
        notes += gene_join.join(roll, matrix)
        unit, unit_notes = gene_join.unit_of(matrix, sorted(roll.labels), options.gene_unit)
        notes += unit_notes
    if files is not None:
        patch_ingest.join_files(roll, files)
    roll.refuse(options.strict)
    return _Sources(table, roll, files, matrix, unit, split_rows, notes)


def _read_splits(path: Path, roll: Roll) -> list[SplitRow]:
    rows = read_split_table(path)
    for case_id in sorted({row.case_id for row in rows} - set(roll.case_row)):
        reason = "the split table names a case that is not in the case table"
        roll.left_out.append(LeftOut("split entry", case_id, reason, case_id, str(path)))
    return rows


def _write_store(sources: _Sources, folder: Path, out: Path, options: IngestOptions) -> IngestReport:
    """Write the whole store into `folder` and verify it; the report speaks of `out`."""
    roll, extra = sources.roll, sources.table.extra
    writer = tables.TableWriter(folder)
    constant, varying = tables.constant_by_case(extra, sources.table.case_ids)
    stored = None
    if sources.files is not None:
        stored = patch_ingest.store_patches(
            roll,
            sources.files,
            folder,
            compression=options.compression,
            workers=options.workers,
            strict=options.strict,
            progress=options.progress,
        )
        sources.notes += stored.notes
        rows = [roll.slide_row[slide_id] for slide_id in stored.slides["slide_id"].to_pylist()]
        writer.write("slides", tables.with_extra(stored.slides, extra.select(varying), rows))
    elif varying:
        sources.notes.append(f"not stored, for they differ within a case and there are no slides: {', '.join(varying)}")
    writer.write("cases", tables.cases_table(roll.labels, extra.select(constant), roll.case_row))
    if sources.matrix is not None:
        writer.write("genes", tables.genes_table(sources.gene_ids))
        writer.write_expression(sorted(roll.labels), len(sources.gene_ids), sources.matrix.expression)
    splits = splits_table(_split_rows(sources, options))
    if splits.num_rows:
        writer.write("splits", splits)
    manifest = _manifest(sources, stored, writer, options)
    report = _report(sources, stored, manifest, splits, out, options)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, default=str)
    (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")
    check_store(folder).raise_if_bad()
    return report


def _split_rows(sources: _Sources, options: IngestOptions) -> list[SplitRow]:
    """The imported rows of the cases kept, and the scheme `kfold` unless the user brought one of that name."""
    rows = [row for row in sources.split_rows if row.case_id in sources.roll.labels]
    check_rows(rows, sources.table.path)
    if not any(row.scheme == KFOLD for row in rows):
        made, notes = kfold_rows(sources.roll.labels, options.folds, options.split_seed)
        rows += made
        sources.notes += notes
    return rows


def _manifest(
    sources: _Sources, stored: patch_ingest.StoredPatches | None, writer: tables.TableWriter, options: IngestOptions
) -> Manifest:
    genes, labels = sources.gene_ids, sources.roll.labels
    dim, encoder = (None, None) if stored is None else (stored.dim, stored.encoder)
    known = [] if stored is None else stored.slides["has_coords"].to_pylist()
    return Manifest(
        format=FORMAT,
        version=LAYOUT_VERSION,
        created_by=_program(),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        dim=dim,
        dtype="float16",
        row_group_rows=ROW_GROUP_ROWS,
        compression=options.compression,
        patch_order="source",
        encoder=encoder,
        coordinates=None if stored is None else "all" if all(known) else "some" if any(known) else "none",
        num_cases=len(labels),
        num_slides=len(known),
        num_patches=0 if stored is None else sum(stored.slides["n_patches"].to_pylist()),
        num_genes=len(genes),
        gene_unit=sources.gene_unit,
        gene_list_sha256=gene_list_sha256(genes) if genes else None,
        classes=tuple(sorted(set(labels.values()))),
        tables=writer.files,
        schema_versions={name: table_schema(name).version for name in TABLES},
        fingerprint=store_fingerprint(
            writer.contents, dim=dim, dtype="float16", encoder=encoder, gene_unit=sources.gene_unit
        ),
    )


def _report(
    sources: _Sources,
    stored: patch_ingest.StoredPatches | None,
    manifest: Manifest,
    splits: pa.Table,
    out: Path,
    options: IngestOptions,
) -> IngestReport:
    roll = sources.roll
    counts = Counter(roll.labels.values())
    files = {} if sources.files is None else sources.files.by_slide
    return IngestReport(
        store=str(out),
        manifest=manifest,
        class_counts={label: counts[label] for label in sorted(counts)},
        split_schemes=schemes_of(splits),
        left_out=tuple(roll.left_out),
        notes=tuple(sources.notes),
        options=dataclasses.asdict(options),
        kept=kept_of(roll, files, sources.matrix),
    )


def _program() -> str:
    try:
        return f"gimp-ray {importlib.metadata.version('gimp-ray')}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "gimp-ray"
