"""`check_store`: is a store what its manifest says? Every finding is PASS, WARN or FAIL, with the file and the fix.

Shallow: manifest, tables and their hashes, counts, footers of the part files, splits, orphan files, and the stores a
merged one stands on. Deep: every slide's SHA-256, and NaN or Inf anywhere. On a disk or in object storage. Left out:
repairing; a damaged store is copied or ingested again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import places
from gimp_ray.store import check_patches
from gimp_ray.store.manifest import FILE, Manifest, gene_list_sha256, read_manifest
from gimp_ray.store.parts import packed_rows
from gimp_ray.store.schema import TABLES, table_schema
from gimp_ray.store.splits import check_table, is_sorted, unknown_cases
from gimp_ray.store.tables import file_sha256

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
REPAIR = "copy the store again from where it is whole, or ingest the sources again"
_OPTIONAL_FILES = re.compile(r"ingest_report(\.r\d+)?\.json")
_NEEDED = ("cases", "sources")
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    what: str
    file: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.level}  {self.what}",
            f"file: {self.file}" if self.file else "",
            f"fix: {self.fix}" if self.fix else "",
        ]
        return "\n      ".join(part for part in parts if part)


@dataclass(frozen=True)
class CheckReport:
    """The findings on a store; `ok` when none is a FAIL."""

    path: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.level != FAIL for finding in self.findings)

    def __str__(self) -> str:
        counts = {level: sum(f.level == level for f in self.findings) for level in (PASS, WARN, FAIL)}
        end = "the store is sound" if self.ok else "the store is NOT sound"
        lines = [f"Store {self.path}", *(str(finding) for finding in self.findings)]
        return "\n".join([*lines, f"{end}: {counts[PASS]} passed, {counts[WARN]} warnings, {counts[FAIL]} failed"])

    def raise_if_bad(self) -> None:
        """InputError with the first failure."""
        for finding in self.findings:
            if finding.level == FAIL:
                raise InputError(
                    f"the store is not sound: {finding.what}", file=finding.file or self.path, fix=finding.fix
                )


@dataclass(frozen=True)
class _Place:
    """The store that is looked at: its name for messages, and where it is."""

    path: str
    filesystem: pafs.FileSystem
    root: str

    def name(self, file: str) -> str:
        return places.join(self.path, file)


def check_store(path: str | os.PathLike[str], deep: bool = False, manifest: Manifest | None = None) -> CheckReport:
    """Check a store; never raises for what is wrong with it, but reports it.

    Args:
        path: the store, a local path or URI.
        deep: read every patch and value too.
        manifest: what the store is to be; its own manifest by default (ingest checks before it publishes one).
    """
    path = places.absolute(path)
    try:
        filesystem, root = places.resolve(path)
        manifest = manifest or read_manifest(filesystem, root)
    except InputError as error:
        what = error.what + (f": {error.found}" if error.found else "")
        return CheckReport(path, (Finding(FAIL, what, error.file, error.fix or REPAIR),))
    place = _Place(path, filesystem, root)
    findings = [Finding(PASS, f"manifest: layout version {manifest.version}, revision {manifest.revision}")]
    tables = {name: _table(place, name, manifest, findings) for name in TABLES if name not in ("manifest", "patches")}
    _check_cases(place, tables["cases"], manifest, findings)
    _check_genes(place, tables["genes"], tables["expression"], tables["cases"], manifest, findings)
    if deep and tables["expression"] is not None:
        _check_expression(place, manifest, findings)
    _check_splits(place, tables["splits"], tables["cases"], findings)
    if tables["slides"] is not None and manifest.dim is not None:
        _check_slides(place, tables["slides"], tables["cases"], manifest, findings)
        for level, what, file in check_patches.findings(filesystem, root, tables["slides"], manifest, deep):
            findings.append(Finding(level, what, file and place.name(file), None if level == PASS else REPAIR))
    _check_members(place, manifest, findings)
    _check_orphans(place, tables["slides"], manifest, findings)
    return CheckReport(path, tuple(findings))


def _table(place: _Place, name: str, manifest: Manifest, findings: list[Finding]) -> pa.Table | None:
    """A table as stored, with findings on its presence, hash, schema and order; None where there is none."""
    schema = table_schema(name)
    file = manifest.files.get(name)
    if file is None:
        needed = {"slides": manifest.dim is not None, "splits": False}.get(name, manifest.num_genes > 0)
        if needed or name in _NEEDED:
            findings.append(Finding(FAIL, f"the manifest names no {schema.stored_as}", place.name(FILE), REPAIR))
        return None
    path = place.name(file)
    try:
        if file_sha256(place.filesystem, f"{place.root}/{file}") != manifest.tables.get(file):
            findings.append(Finding(FAIL, f"{file} was changed: its hash is not the manifest's", path, REPAIR))
        dataset = pq.ParquetDataset(f"{place.root}/{file}", filesystem=place.filesystem, partitioning=None)
        problems = schema.differences(dataset.schema, num_genes=manifest.num_genes)
        if problems:
            findings.append(Finding(FAIL, f"{file}: {'; '.join(problems)}", path, REPAIR))
            return None
        # the expression of a large cohort does not fit into memory
        table = dataset.read(columns=["case_id"] if name == "expression" else None)
    except FileNotFoundError:
        findings.append(Finding(FAIL, f"{file} is missing", path, REPAIR))
        return None
    except (pa.ArrowException, OSError) as error:
        findings.append(Finding(FAIL, f"{file} cannot be read: {error}", path, REPAIR))
        return None
    disorder = [f"{file}: {problem}" for problem in _order_problems(table, schema.sorted_by)]
    _add(findings, disorder, f"{file}: {table.num_rows:,} rows, schema version {schema.version}", path)
    return table


def _order_problems(table: pa.Table, sorted_by: tuple[str, ...]) -> list[str]:
    if not set(sorted_by) <= set(table.column_names) or not sorted_by or is_sorted(table, sorted_by):
        return []
    return [f"the rows are not sorted by {', '.join(sorted_by)}, or one stands twice"]


def _check_cases(place: _Place, cases: pa.Table | None, manifest: Manifest, findings: list[Finding]) -> None:
    if cases is None:
        return
    labels = set(cases["label"].unique().to_pylist())
    problems = []
    if cases.num_rows != manifest.num_cases:
        problems.append(f"{cases.num_rows} cases, the manifest says {manifest.num_cases}")
    if None in labels or "" in labels:
        problems.append("a case has no label")
    if sorted(label for label in labels if label) != sorted(manifest.classes):
        problems.append(
            f"labels {', '.join(sorted(map(str, labels)))}, the manifest says {', '.join(manifest.classes)}"
        )
    _add(findings, problems, f"cases: {cases.num_rows:,}, every one with a label", place.name("cases.parquet"))
    if len(manifest.classes) < 2:
        what = f"one class only ({', '.join(manifest.classes)}): nothing to tell apart"
        findings.append(Finding(WARN, what, place.name("cases.parquet")))


def _check_genes(
    place: _Place,
    genes: pa.Table | None,
    expression: pa.Table | None,
    cases: pa.Table | None,
    manifest: Manifest,
    findings: list[Finding],
) -> None:
    if genes is None or expression is None:
        return
    ids = genes["gene_id"].to_pylist()
    problems = []
    if len(ids) != manifest.num_genes or genes["position"].to_pylist() != list(range(len(ids))):
        problems.append(f"{len(ids)} genes, the manifest says {manifest.num_genes}, positions 0, 1, ...")
    if gene_list_sha256(ids) != manifest.gene_list_sha256:
        problems.append("the gene list is not the manifest's")
    if expression.num_rows != manifest.num_cases:
        problems.append(f"expression of {expression.num_rows} cases, the manifest says {manifest.num_cases}")
    elif cases is not None and not expression["case_id"].equals(cases["case_id"]):
        problems.append("expression of other cases than those of cases.parquet")
    _add(findings, problems, f"genes: {len(ids):,}, expression of every case", place.name("genes.parquet"))


def _check_expression(place: _Place, manifest: Manifest, findings: list[Finding]) -> None:
    """Are all values finite? Read a row group at a time."""
    file, bad = manifest.files["expression"], []
    path = place.name(file)
    try:
        with place.filesystem.open_input_file(f"{place.root}/{file}") as source:
            rows = max(1, _BLOCK_BYTES // (4 * manifest.num_genes))
            for batch in pq.ParquetFile(source).iter_batches(rows, columns=["case_id", "values"], use_threads=False):
                values = packed_rows(batch["values"]).view("<f4")
                odd = np.flatnonzero(~np.isfinite(values).all(axis=1))
                bad += batch["case_id"].take(pa.array(odd)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        findings.append(Finding(FAIL, f"{file} cannot be read: {error}", path, REPAIR))
        return
    problems = [f"expression holds NaN or Inf in {len(bad)} cases: {', '.join(bad[:10])}"] if bad else []
    _add(findings, problems, "expression: all values finite", path)


def _check_splits(place: _Place, splits: pa.Table | None, cases: pa.Table | None, findings: list[Finding]) -> None:
    path = place.name("splits.parquet")
    if splits is None:
        findings.append(
            Finding(
                WARN, "no split is stored", place.path, "ingest with at least three patients, or with a split table"
            )
        )
        return
    problems = []
    try:
        check_table(splits, path, cases)
    except InputError as error:
        problems.append(f"{error.what}: {error.found}")
    unknown = [] if cases is None else unknown_cases(splits, cases)
    if unknown:
        problems.append(f"cases the store does not have: {', '.join(unknown[:10])}")
    _add(findings, problems, "splits: no patient in two parts of a fold", path)


def _check_slides(
    place: _Place, slides: pa.Table, cases: pa.Table | None, manifest: Manifest, findings: list[Finding]
) -> None:
    n_patches = pc.sum(slides["n_patches"]).as_py() or 0
    problems = []
    if (slides.num_rows, n_patches) != (manifest.num_slides, manifest.num_patches):
        said = f"{manifest.num_slides} slides and {manifest.num_patches} patches"
        problems.append(f"{slides.num_rows} slides and {n_patches} patches, the manifest says {said}")
    if cases is not None:
        of_slides, known = pc.unique(slides["case_id"]), cases["case_id"]
        odd = _without(of_slides, known) + _without(known, of_slides)
        if odd:
            problems.append(f"slides and cases do not belong together: {', '.join(sorted(odd)[:10])}")
    _add(
        findings,
        problems,
        f"slides: {slides.num_rows:,} with {n_patches:,} patches, every case has one",
        place.name("slides.parquet"),
    )


def _without(ids: pa.Array | pa.ChunkedArray, known: pa.Array | pa.ChunkedArray) -> list[str]:
    """The ids that are not among the known."""
    missing: list[str] = ids.filter(pc.invert(pc.is_in(ids, known))).to_pylist()
    return missing


def _check_members(place: _Place, manifest: Manifest, findings: list[Finding]) -> None:
    """A merged store uses the part files of others: they must be what they were."""
    for member, fingerprint in sorted(manifest.members.items()):
        where = places.join(place.path, member)
        try:
            found = read_manifest(*places.resolve(where)).fingerprint
        except InputError as error:
            found = error.what
        if found == fingerprint:
            findings.append(Finding(PASS, f"merged from {where}, which is what it was"))
        else:
            what = f"the store it was merged from, {where}, is not what it was: {found}"
            findings.append(Finding(FAIL, what, where, "bring it back as it was, or merge the stores again"))


def _check_orphans(place: _Place, slides: pa.Table | None, manifest: Manifest, findings: list[Finding]) -> None:
    known = {FILE, *manifest.tables, *manifest.superseded}
    known |= set(slides["file"].unique().to_pylist()) if slides is not None else set()
    found = places.files_below(place.filesystem, place.root)
    orphans = [name for name in found if name not in known and not _OPTIONAL_FILES.fullmatch(name)]
    if orphans:
        what = f"{len(orphans)} files do not belong to the store: {', '.join(orphans[:10])}"
        findings.append(Finding(WARN, what, place.name(orphans[0]), "remove them"))


def _add(findings: list[Finding], problems: list[str], fine: str, path: str) -> None:
    """One PASS, or a FAIL for every problem."""
    findings += [Finding(FAIL, problem, path, REPAIR) for problem in problems] or [Finding(PASS, fine)]
