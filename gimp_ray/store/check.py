"""`check_store`: is a store what its manifest says? Every finding is PASS, WARN or FAIL, with the file and the fix.

Always: manifest, tables with their hashes and contents (the fingerprint is computed again), counts, footers of the
part files, splits, orphan files, and the stores a merged one uses. Deep: every slide's SHA-256, and NaN or Inf.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.store.dtypes import not_finite, width
from gimp_ray.store.manifest import (
    FILE,
    RNA,
    Bag,
    Manifest,
    content_sha256,
    gene_list_sha256,
    read_manifest,
    store_fingerprint,
)
from gimp_ray.store.part_writer import SlideHash
from gimp_ray.store.parts import PartReader, packed_rows, row_groups
from gimp_ray.store.schema import ROW_GROUP_ROWS, table_schema, vector_tables
from gimp_ray.store.splits import check_table, is_sorted, unknown_cases
from gimp_ray.store.tables import ValuesHash, file_sha256

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
REPAIR = "copy the store again from where it is whole, or ingest the sources again"
_OPTIONAL_FILES = re.compile(r"ingest_report(\.r\d+)?\.json")
_BLOCK_BYTES = 16 << 20
_THREADS = 8


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


def check_store(path: str | os.PathLike[str], deep: bool = False, manifest: Manifest | None = None) -> CheckReport:
    """Check a store; never raises for what is wrong with it, but reports it.

    Args:
        path: the store, a local path or URI.
        deep: read every patch too.
        manifest: what the store is to be; its own manifest by default (ingest checks before it publishes one).
    """
    path, findings = storage.absolute(path), list[Finding]()
    try:
        filesystem, root = storage.resolve(path)
        if manifest is None:
            manifest = read_manifest(filesystem, root, verify=False)
            try:
                read_manifest(filesystem, root)
            except InputError as error:
                findings.append(Finding(FAIL, f"{error.what}: {error.found}", error.file, REPAIR))
    except InputError as error:
        what = error.what + (f": {error.found}" if error.found else "")
        return CheckReport(path, (Finding(FAIL, what, error.file, error.fix or REPAIR),))
    check = _Check(path, filesystem, root, manifest, findings)
    check.all(deep)
    return CheckReport(path, tuple(findings))


class _Check:
    """The checks of one store, which add to `findings`."""

    def __init__(
        self, path: str, filesystem: pafs.FileSystem, root: str, manifest: Manifest, findings: list[Finding]
    ) -> None:
        self._path, self._filesystem, self._root = path, filesystem, root
        self._manifest, self._findings = manifest, findings
        self._contents: dict[str, str] = {}

    def all(self, deep: bool) -> None:
        manifest, bag = self._manifest, self._manifest.patches
        self._findings.append(
            Finding(PASS, f"manifest: layout version {manifest.version}, revision {manifest.revision}")
        )
        for name in ("cases", "sources", *(["slides"] if bag else [])):
            if name not in manifest.files:
                self._fail([f"the manifest names no {name}.parquet"], FILE)
        values = {vector_tables(name)[1] for name in manifest.vectors}
        tables = {name: self._table(name) for name in manifest.files if name not in values}
        cases, slides = tables.get("cases"), tables.get("slides")
        if cases is not None:
            self._cases(cases)
        for name in manifest.vectors:
            self._vector(name, tables.get(vector_tables(name)[0]), cases)
        self._splits(tables.get("splits"), cases)
        if bag is not None and slides is not None:
            self._slides(slides, cases, bag)
            self._parts(slides, bag, deep)
        self._fingerprint()
        self._members()
        self._orphans(slides)

    def _fail(self, problems: list[str], file: str, fine: str | None = None) -> None:
        """A FAIL for every problem; one PASS, if there is something to say, where there is none."""
        name = storage.join(self._path, file)
        self._findings += [Finding(FAIL, problem, name, REPAIR) for problem in problems]
        if fine and not problems:
            self._findings.append(Finding(PASS, fine))

    def _hash(self, name: str) -> bool:
        """Whether a table's file is there and can be read; a FAIL where it has another hash than the manifest's."""
        file = self._manifest.files[name]
        try:
            if file_sha256(self._filesystem, f"{self._root}/{file}") != self._manifest.tables.get(file):
                self._fail([f"{file} was changed: its hash is not the manifest's"], file)
        except FileNotFoundError:
            self._fail([f"{file} is missing"], file)
            return False
        except OSError as error:
            self._fail([f"{file} cannot be read: {error}"], file)
            return False
        return True

    def _table(self, name: str) -> pa.Table | None:
        """A table as stored, with findings on its presence, hash, schema and order; None where it cannot be used."""
        file, schema = self._manifest.files[name], table_schema(name)
        if not self._hash(name):
            return None
        try:
            dataset = pq.ParquetDataset(f"{self._root}/{file}", filesystem=self._filesystem, partitioning=None)
            problems = schema.differences(dataset.schema)
            if problems:
                self._fail([f"{file}: {'; '.join(problems)}"], file)
                return None
            table = dataset.read()
        except (pa.ArrowException, OSError) as error:
            self._fail([f"{file} cannot be read: {error}"], file)
            return None
        self._contents[name] = content_sha256(table)
        disorder = [] if is_sorted(table, schema.sorted_by) else [f"{file}: {_disorder(schema.sorted_by)}"]
        self._fail(disorder, file, f"{file}: {table.num_rows:,} rows, schema version {schema.version}")
        return table

    def _cases(self, cases: pa.Table) -> None:
        manifest, labels = self._manifest, set(cases["label"].unique().to_pylist())
        problems = []
        if cases.num_rows != manifest.num_cases:
            problems.append(f"{cases.num_rows} cases, the manifest says {manifest.num_cases}")
        if "" in labels:
            problems.append("a case has no label, but an empty text")
        found = sorted(label for label in labels if label)
        if found != sorted(manifest.classes):
            problems.append(f"labels {', '.join(found)}, the manifest says {', '.join(manifest.classes)}")
        without = cases["label"].null_count
        known = "every one with a label" if not without else f"{without:,} of them without a label"
        self._fail(problems, "cases.parquet", f"cases: {cases.num_rows:,}, {known}")
        if len(manifest.classes) < 2:
            what = f"one class only ({', '.join(manifest.classes)}): nothing to tell apart"
            self._findings.append(Finding(WARN, what, storage.join(self._path, "cases.parquet")))

    def _vector(self, modality: str, features: pa.Table | None, cases: pa.Table | None) -> None:
        """The features and the values of a vector modality; the values are read in blocks, once."""
        vector, (of_features, of_values) = self._manifest.vectors[modality], vector_tables(modality)
        if not {of_features, of_values} <= set(self._manifest.files):
            self._fail([f"the manifest names no tables of {modality}"], FILE)
            return
        file, what = self._manifest.files[of_values], "expression" if modality == RNA else modality
        if features is None or not self._hash(of_values):
            return
        ids, problems = features.column(0).to_pylist(), []
        noun = "genes" if modality == RNA else "features"
        if len(ids) != vector.num_features or features["position"].to_pylist() != list(range(len(ids))):
            problems.append(f"{len(ids)} {noun}, the manifest says {vector.num_features}, positions 0, 1, ...")
        if gene_list_sha256(ids) != vector.feature_list_sha256:
            problems.append(f"the {'gene' if modality == RNA else 'feature'} list is not the manifest's")
        case_ids, odd, digest = list[str](), list[str](), ValuesHash()
        rows = max(1, _BLOCK_BYTES // (4 * vector.num_features))
        try:
            with self._filesystem.open_input_file(f"{self._root}/{file}") as source:
                table = pq.ParquetFile(source, page_checksum_verification=True)
                differences = table_schema(of_values).differences(table.schema_arrow, num_genes=vector.num_features)
                if differences:
                    self._fail([f"{file}: {'; '.join(differences)}"], file)
                    return
                for batch in table.iter_batches(rows, use_threads=False):
                    some, values = batch["case_id"].to_pylist(), packed_rows(batch["values"]).view("<f4")
                    digest.update(some, values)
                    case_ids += some
                    odd += [some[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1))]
        except (pa.ArrowException, OSError) as error:
            self._fail([f"{file} cannot be read: {error}"], file)
            return
        self._contents[of_values] = digest.hexdigest()
        if len(case_ids) != vector.num_cases:
            problems.append(f"{what} of {len(case_ids)} cases, the manifest says {vector.num_cases}")
        elif cases is not None and case_ids != _with(cases, modality):
            problems.append(f"{what} of other cases than those of cases.parquet")
        if odd:
            problems.append(f"{what} holds NaN or Inf in {len(odd)} cases: {', '.join(odd[:10])}")
        every = "every case" if vector.num_cases == self._manifest.num_cases else f"{vector.num_cases:,} cases"
        where = self._manifest.files[of_features]
        self._fail(problems, where, f"{noun}: {len(ids):,}, finite {what} of {every}")

    def _splits(self, splits: pa.Table | None, cases: pa.Table | None) -> None:
        if splits is None:
            if "splits" not in self._manifest.files:
                fix = "ingest with at least three patients, or with a split table"
                self._findings.append(Finding(WARN, "no split is stored", self._path, fix))
            return
        problems, path = [], storage.join(self._path, "splits.parquet")
        try:
            check_table(splits, path, cases)
        except InputError as error:
            problems.append(f"{error.what}: {error.found}")
        unknown = [] if cases is None else unknown_cases(splits, cases)
        if unknown:
            problems.append(f"cases the store does not have: {', '.join(unknown[:10])}")
        self._fail(problems, "splits.parquet", "splits: no patient in two parts of a fold")

    def _slides(self, slides: pa.Table, cases: pa.Table | None, bag: Bag) -> None:
        found = (slides.num_rows, pc.sum(slides["n_patches"]).as_py() or 0)
        problems = []
        if found != (bag.num_slides, bag.num_patches):
            stated = f"{bag.num_slides} slides and {bag.num_patches} patches"
            problems.append(f"{found[0]} slides and {found[1]} patches, the manifest says {stated}")
        of_slides = pc.unique(slides["case_id"])
        if cases is not None:
            odd = of_slides.filter(pc.invert(pc.is_in(of_slides, cases["case_id"]))).to_pylist()
            if odd:
                problems.append(f"slides and cases do not belong together: {', '.join(sorted(odd)[:10])}")
        if len(of_slides) != bag.num_cases:
            problems.append(f"slides of {len(of_slides)} cases, the manifest says {bag.num_cases}")
        every = bag.num_cases == self._manifest.num_cases
        known = "every case has one" if every else f"{bag.num_cases:,} of {self._manifest.num_cases:,} cases have one"
        self._fail(problems, "slides.parquet", f"slides: {found[0]:,} with {found[1]:,} patches, {known}")

    def _parts(self, slides: pa.Table, bag: Bag, deep: bool) -> None:
        """The part files: footers and row groups; `deep`: every slide's hash and values."""
        reader = PartReader(self._filesystem, self._root)
        by_file: dict[str, list[tuple[int, int, str, str]]] = {}
        columns = (slides[name].to_pylist() for name in ("file", "first_row_group", "n_patches", "slide_id", "sha256"))
        for file, *rest in zip(*columns, strict=True):
            by_file.setdefault(file, []).append((*rest,))  # type: ignore[arg-type]
        failed, names = False, sorted(by_file)
        with ThreadPoolExecutor(_THREADS) as pool:  # most of it is waiting for the storage, or hashing
            found = pool.map(lambda name: list(_part_problems(reader, name, sorted(by_file[name]), bag, deep)), names)
            for name, problems in zip(names, found, strict=True):
                failed = failed or bool(problems)
                self._fail(problems, name)
        if not failed:
            depth = "every slide's hash and values" if deep else "every slide's row groups"
            self._findings.append(Finding(PASS, f"part files: {len(by_file):,}, {depth} as the tables say"))

    def _fingerprint(self) -> None:
        manifest = self._manifest
        if set(manifest.files) - {"sources"} - set(self._contents):
            return  # what is missing has been reported
        found = store_fingerprint(self._contents, manifest.modalities, manifest.version)
        problems = []
        if found != manifest.fingerprint:
            what = "a label, split or value, or a dtype, encoder or unit in the manifest, is another"
            problems.append(f"the fingerprint is not that of the contents ({found[:16]}): {what}")
        self._fail(problems, FILE, "fingerprint: computed again from the contents, and the same")

    def _members(self) -> None:
        """A merged store uses the part files of others: they must be what they were."""
        for member, fingerprint in sorted(self._manifest.members.items()):
            where = storage.join(self._path, member)
            try:
                found = read_manifest(*storage.resolve(where)).fingerprint
            except InputError as error:
                found = error.what
            if found == fingerprint:
                self._findings.append(Finding(PASS, f"merged from {where}, which is what it was"))
            else:
                what = f"the store it was merged from, {where}, is not what it was: {found}"
                fix = "bring it back as it was, or merge the stores again"
                self._findings.append(Finding(FAIL, what, where, fix))

    def _orphans(self, slides: pa.Table | None) -> None:
        known = {FILE, *self._manifest.tables, *self._manifest.superseded}
        known |= set(slides["file"].unique().to_pylist()) if slides is not None else set()
        found = storage.files_below(self._filesystem, self._root)
        orphans = [name for name in found if name not in known and not _OPTIONAL_FILES.fullmatch(name)]
        if orphans:
            what = f"{len(orphans)} files do not belong to the store: {', '.join(orphans[:10])}"
            self._findings.append(Finding(WARN, what, storage.join(self._path, orphans[0]), "remove them"))


def _disorder(keys: tuple[str, ...]) -> str:
    return f"the rows are not sorted by {', '.join(keys)}, or one stands twice"


def _with(cases: pa.Table, modality: str) -> list[str]:
    """The cases that have a vector modality."""
    ids, has = cases["case_id"], f"has_{modality}"
    found: list[str] = (ids.filter(cases[has]) if has in cases.column_names else ids).to_pylist()
    return found


def _part_problems(
    reader: PartReader, name: str, slides: list[tuple[int, int, str, str]], bag: Bag, deep: bool
) -> Iterator[str]:
    """What is wrong with a part file; `slides`: first row group, patches, id and SHA-256, in stored order."""
    try:
        file = reader.open(name)
    except InputError as error:
        yield f"{name} cannot be read: {error.found}"
        return
    problems = table_schema("patches").differences(file.schema_arrow, width=width(bag.dim, bag.dtype))
    stated = (file.schema_arrow.metadata or {}).get(b"gimp.dtype", b"no number format").decode()
    if problems or stated != bag.dtype:
        yield f"{name}: {'; '.join(problems) or f'embeddings are {stated}, the manifest says {bag.dtype}'}"
        return
    footer, next_group = file.metadata, 0
    for first, n_patches, slide_id, sha256 in slides:
        groups = range(first, first + row_groups(n_patches))
        if first != next_group or groups.stop > footer.num_row_groups:
            found = f"row groups {groups.start} to {groups.stop - 1}"
            yield f"{name}: slide {slide_id} has {found}, expected from {next_group} on, of {footer.num_row_groups}"
            return
        next_group = groups.stop
        rows = [footer.row_group(i).num_rows for i in groups]
        if sum(rows) != n_patches or any(r != ROW_GROUP_ROWS for r in rows[:-1]):
            yield f"{name}: slide {slide_id} has row groups of {sum(rows)} patches, slides.parquet says {n_patches}"
        elif deep:
            try:
                digest, bad = SlideHash(), False
                for embeddings, coords in reader.chunks(name, first, n_patches, bag.dim, bag.dtype):
                    digest.update(embeddings, coords)
                    bad = bad or bool(not_finite(embeddings, bag.dtype).any())
                if digest.hexdigest() != sha256:
                    yield f"{name}: slide {slide_id} is not what was ingested: its hash differs"
                if bad:
                    yield f"{name}: slide {slide_id} holds NaN or Inf"
            except InputError as error:
                yield f"{name}: slide {slide_id} cannot be read: {error.found}"
    if next_group != footer.num_row_groups:
        yield f"{name}: {footer.num_row_groups - next_group} row groups belong to no slide"
