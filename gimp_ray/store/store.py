"""`CohortStore`: open a store, list its cases and slides, read windows, bags, vectors and splits.

Everything is asked for by id and checked on the way. Reads go to the row groups they need. A store may be shared by
threads and sent to other processes, which open the files themselves.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.store.dtypes import STORED, decode, value_dtype, width
from gimp_ray.store.manifest import PATCHES, RNA, Manifest, read_manifest
from gimp_ray.store.parts import PartReader
from gimp_ray.store.schema import table_schema, vector_tables
from gimp_ray.store.splits import Split, schemes_of, split_of
from gimp_ray.store.vectors import VectorReader

_SIZES = ["slide_id", "case_id", "n_patches"]
_MANY = 1000
_NAMED = 10


@dataclass(frozen=True)
class _Index:
    """What finds a case, a slide and its patches; loaded once a process.

    A million slides are 130 MB here. The other columns of slides.parquet and the splits, which need five times that,
    are read when they are asked for.
    """

    manifest: Manifest
    cases: pa.Table
    sizes: pa.Table
    gene_ids: list[str]
    case_column: pa.Array
    slide_column: pa.Array
    file: pa.DictionaryArray
    first_row_group: np.ndarray
    n_patches: np.ndarray


class CohortStore:
    """A cohort on disk or in object storage, opened with `CohortStore.open(path)`."""

    def __init__(
        self,
        path: str,
        expected_fingerprint: str | None = None,
        filesystem: pafs.FileSystem | None = None,
        verify: bool = False,
    ) -> None:
        self._path, self._given_filesystem, self._verify = path, filesystem, verify
        self._expected_fingerprint = expected_fingerprint
        self._filesystem, self._root = storage.resolve(path) if filesystem is None else (filesystem, path.rstrip("/"))
        self._parts = PartReader(self._filesystem, self._root)
        self._lock = threading.RLock()
        self._loaded: _Index | None = None
        self._slides: pa.Table | None = None
        self._vectors: dict[str, VectorReader] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], filesystem: Any = None, verify: bool = False) -> CohortStore:
        """Open the store at `path`; the manifest and the small tables are compared with their hashes.

        Args:
            path: a local path, or a URI: `s3://bucket/store`, `gs://...`, or any protocol fsspec knows.
            filesystem: a pyarrow or fsspec file system on which `path` is, where a URI cannot say it.
            verify: compare every row group of patches with its checksum when it is read, which takes a few times as
                long as reading it.

        Raises:
            InputError: there is no store, its layout is of another version, the manifest or a table is damaged, a
                store it was merged from has changed, or `verify` where no checksums are stored.
        """
        if filesystem is not None and not isinstance(filesystem, pafs.FileSystem):
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        place = storage.absolute(path) if filesystem is None else os.fspath(path)
        store = cls(place, filesystem=filesystem, verify=verify)
        _ = store._index
        return store

    def __repr__(self) -> str:
        return f"CohortStore({self._path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # files are opened again, when first used, where the pickle arrives
        return (CohortStore, (self._path, self.fingerprint, self._given_filesystem, self._verify))

    @property
    def path(self) -> str:
        """Where the store is."""
        return self._path

    @property
    def manifest(self) -> Manifest:
        """What the store says about itself."""
        return self._index.manifest

    @property
    def cases(self) -> pa.Table:
        """One row a case, sorted by case_id (`storage_schemas/cases.json`)."""
        return self._index.cases

    @property
    def slides(self) -> pa.Table:
        """One row a slide, sorted by slide_id (`storage_schemas/slides.json`); no rows in a gene-only store."""
        index = self._index
        if self._slides is None:
            with self._lock:
                if self._slides is None:
                    self._slides = self._table("slides", index.manifest).combine_chunks()
        return self._slides

    @property
    def slide_sizes(self) -> pa.Table:
        """slide_id, case_id and n_patches of every slide, sorted by slide_id: what a plan is made from."""
        return self._index.sizes

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted; empty where no case has one."""
        return self.manifest.classes

    @property
    def dim(self) -> int | None:
        """Embedding width D; None in a store without patches."""
        return self.manifest.dim

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Type windows and bags come in: float16, or float32 where the store keeps float32 or bfloat16."""
        return value_dtype(self.manifest.dtype)

    @property
    def gene_ids(self) -> list[str]:
        """The genes in the order of the expression values; empty in a store without genes."""
        return list(self._index.gene_ids)

    @property
    def num_genes(self) -> int:
        """Number of genes G; 0 in a store without genes."""
        return self.manifest.num_genes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the store holds; equal content has an equal fingerprint."""
        return self.manifest.fingerprint

    @property
    def split_schemes(self) -> dict[str, tuple[int, ...]]:
        """The stored split schemes and their folds."""
        return schemes_of(self.table("splits", ["scheme", "fold"]))

    def read_window(self, slide_id: str, start: int, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of patches `start` to `start + length - 1` of a slide, in stored order, without wrap-around.

        Args:
            slide_id: a slide of the store.
            start: first patch, from 0.
            length: number of patches, at least 1.
            out: a (length, D) array of `value_dtype` to fill and return, such as a view of pinned memory.

        Returns:
            (length, D) of `value_dtype`.

        Raises:
            InputError: unknown slide, a window that reaches beyond the slide, a misfit `out`, a damaged file.
        """
        row = self._slide_row(slide_id)
        self._check_window(row, slide_id, start, length)
        dim, dtype = self.dim or 0, self.manifest.dtype
        if out is None:
            out = np.empty((length, dim), dtype=self.value_dtype)
        elif out.shape != (length, dim) or out.dtype != self.value_dtype:
            expected, found = f"({length}, {dim}) {self.value_dtype}", f"{out.shape} {out.dtype}"
            raise InputError("`out` does not fit the window", expected=expected, found=found)
        if dtype != "bfloat16" and out.flags.c_contiguous:
            self._fill(row, start, out.view(np.uint8).reshape(length, -1), "embedding")
            return out
        packed = np.empty((length, width(dim, dtype)), dtype=np.uint8)
        self._fill(row, start, packed, "embedding")
        decode(packed.view(STORED[dtype]), dtype, out)
        return out

    def read_bag(self, slide_id: str) -> np.ndarray:
        """All embeddings of a slide: (N, D) of `value_dtype` in stored order."""
        return self.read_window(slide_id, 0, int(self._index.n_patches[self._slide_row(slide_id)]))

    def read_coords(self, slide_id: str, start: int = 0, length: int | None = None) -> np.ndarray:
        """Coordinates of a window, or of all patches from `start`: (n, 2) int32, x and y; -1 where they are unknown.

        The unit is the slide's `coord_unit`, pixels of level 0 as a rule.
        """
        row = self._slide_row(slide_id)
        length = int(self._index.n_patches[row]) - start if length is None else length
        self._check_window(row, slide_id, start, length)
        coords = np.empty((length, 2), dtype=np.int32)
        for axis, column in enumerate(("x", "y")):
            packed = np.empty((length, 4), dtype=np.uint8)
            self._fill(row, start, packed, column)
            coords[:, axis] = packed.view("<i4")[:, 0]
        return coords

    def read_genes(self, case_ids: Sequence[str]) -> np.ndarray:
        """`read_vector("rna", case_ids)`: (n, G) float32 in the manifest's gene_unit."""
        return self.read_vector(RNA, case_ids)

    def read_vector(self, modality: str, case_ids: Sequence[str]) -> np.ndarray:
        """Values of a modality with named features, such as `rna`, `cnv` or `protein`.

        Args:
            modality: its name in the manifest.
            case_ids: the cases, in any order; they may repeat.

        Returns:
            (n, features) float32 in the order of `case_ids` and `features(modality)`.

        Raises:
            InputError: a modality or a case that the store does not have, or cases that lack the modality.
        """
        vector = self.manifest.vectors.get(modality)
        if vector is None:
            what = "gene expression" if modality == RNA else f"modality {modality} with named features"
            fix = "ingest the cohort with a gene matrix" if modality == RNA else f"ingest with --vector {modality}=FILE"
            found = ", ".join(self.manifest.modalities)
            raise InputError(f"the store has no {what}", file=self._path, found=found, fix=fix)
        rows = np.asarray(self._case_rows(case_ids), dtype=np.int64)
        has = self.cases_with(modality)
        if vector.num_cases < len(has):
            missing = sorted({case_ids[i] for i in np.flatnonzero(~has[rows]).tolist()})
            if missing:
                raise InputError(
                    f"cases have no values of {modality}",
                    file=self._path,
                    case=", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else ""),
                    expected=f"cases with {modality}: {vector.num_cases:,} of {len(has):,}",
                    found=f"{len(missing):,} cases without",
                    fix="use the cases that `CohortStore.complete_cases` lists, or ingest the missing values",
                )
            rows = (np.cumsum(has) - 1)[rows]
        with self._lock:
            if modality not in self._vectors:
                file = self.manifest.files[vector_tables(modality)[1]]
                self._vectors[modality] = VectorReader(self._filesystem, f"{self._root}/{file}")
        return self._vectors[modality].read(case_ids, rows.tolist(), vector.num_features)

    def features(self, modality: str) -> list[str]:
        """The features of a vector modality in the order of its values: genes of `rna`."""
        return self.gene_ids if modality == RNA else self.table(f"{modality}.features")["feature_id"].to_pylist()

    def cases_with(self, modality: str) -> np.ndarray:
        """(cases,) bool: which rows of `cases` have a modality; `label` counts as one."""
        index = self._index
        if modality == "label":
            return np.asarray(pc.is_valid(index.cases["label"]))
        if modality == PATCHES:
            return np.asarray(pc.is_in(index.case_column, index.sizes["case_id"].combine_chunks()))
        if modality not in index.manifest.vectors:
            return np.zeros(index.cases.num_rows, dtype=bool)
        if f"has_{modality}" not in index.cases.column_names:
            return np.ones(index.cases.num_rows, dtype=bool)
        return np.asarray(index.cases[f"has_{modality}"])

    @property
    def has_columns(self) -> set[str]:
        """The columns of `cases` that say which of them have a vector modality."""
        return {f"has_{name}" for name in self.manifest.vectors} & set(self.cases.column_names)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("label", *(name for name in (PATCHES, RNA) if name in self.manifest.modalities))

    @property
    def is_complete(self) -> bool:
        """Whether every case has a label, patches and expression, as far as the store holds these."""
        return all(self.cases_with(kind).all() for kind in self._kinds)

    def complete_cases(self, *modalities: str) -> list[str]:
        """The cases that have all of `modalities` (`patches`, `rna`, ...; `label` counts as one), sorted."""
        rows = np.logical_and.reduce([self.cases_with(name) for name in modalities])
        complete: list[str] = self._index.case_column.filter(pa.array(rows)).to_pylist()
        return complete

    def split(self, scheme: str, fold: int, complete: bool = True) -> Split:
        """The case ids of a fold, checked: known cases, and no patient in two parts.

        Args:
            scheme, fold: of splits.parquet.
            complete: only the cases that have a label, patches and expression, as far as the store holds these.

        Raises:
            InputError: unknown scheme or fold, a patient in two parts (named), a case the store does not have.
        """
        index = self._index
        table = self._table("splits", index.manifest, where=[("scheme", "==", scheme), ("fold", "==", fold)])
        if not table.num_rows:
            table = self._table("splits", index.manifest)  # the refusal says what there is
        split = split_of(table, scheme, fold, index.cases, file=f"{self._path}/splits.parquet")
        if not complete or self.is_complete:
            return split
        kept = set(self.complete_cases(*self._kinds))
        parts = ([case for case in part if case in kept] for part in (split.train, split.val, split.test))
        return Split(scheme, fold, *map(tuple, parts))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A small table of the store as it is stored, such as `splits` or `sources`, or some columns of it.

        Read anew at every call; without rows where the store has no such table.
        """
        return self._table(name, self.manifest, columns)

    def schema(self, name: str) -> pa.Schema:
        """The columns of a small table, read from its footer; the schema's own where the store has no such table."""
        dataset = self._dataset(name, self.manifest)
        return table_schema(name).arrow(num_genes=1) if dataset is None else dataset.schema

    @property
    def _index(self) -> _Index:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._load()
        return self._loaded

    def _load(self) -> _Index:
        manifest = read_manifest(self._filesystem, self._root)
        if self._expected_fingerprint not in (None, manifest.fingerprint):
            raise InputError(
                "the store was replaced while it was in use",
                file=self._path,
                expected=f"fingerprint {self._expected_fingerprint}",
                found=f"fingerprint {manifest.fingerprint}",
                fix="start the run again",
            )
        patches = manifest.patches
        if self._verify and patches is not None and patches.checksums is None:
            raise InputError(
                "the store has no checksums to verify",
                file=self._path,
                expected="part files with a checksum for every row group",
                found="a store of before layout 3, or merged from one",
                fix="open it without verify and run `gimp check STORE --deep`, or ingest the sources again",
            )
        if patches is not None:
            self._parts = PartReader(self._filesystem, self._root, patches.dim, patches.dtype, verify=self._verify)
        # the values of vectors may be many; their pages have checksums of their own
        large = {vector_tables(name)[1] for name in manifest.vectors}
        with ThreadPoolExecutor(8, thread_name_prefix="open") as pool:
            members = pool.map(self._check_member, manifest.members.items())
            names = [name for name in manifest.files if name not in large]
            files = dict(zip(names, pool.map(lambda name: self._hashed(name, manifest), names), strict=True))
            list(members)
        cases, genes = (
            self._table(name, manifest, source=files.get(name)).combine_chunks() for name in ("cases", "genes")
        )
        columns = [*_SIZES, "file", "first_row_group"]
        slides = self._table("slides", manifest, columns, source=files.get("slides")).combine_chunks()
        stated = (manifest.num_cases, manifest.num_slides, manifest.num_genes)
        if (cases.num_rows, slides.num_rows, genes.num_rows) != stated:
            found = f"{cases.num_rows}, {slides.num_rows} and {genes.num_rows}"
            raise self._damaged("manifest.json", "{} cases, {} slides and {} genes".format(*stated), found)
        if "splits" in files:
            self._dataset("splits", manifest, source=files["splits"])
        index = _Index(
            manifest=manifest,
            cases=cases,
            sizes=slides.select(_SIZES),
            gene_ids=genes["gene_id"].to_pylist(),
            case_column=_single(cases["case_id"]),
            slide_column=_single(slides["slide_id"]),
            file=_single(slides["file"]).dictionary_encode(),
            first_row_group=slides["first_row_group"].to_numpy(),
            n_patches=slides["n_patches"].to_numpy(),
        )
        # what decoding took and gave back: as much again as is kept, in every process that opens the store
        del slides, files
        pa.default_memory_pool().release_unused()
        return index

    def _check_member(self, member: tuple[str, str]) -> None:
        """Refuse a store merged from others when one of them is not what it was."""
        name, fingerprint = member
        here = (self._filesystem, storage.join(self._root, name))
        try:
            found = (
                f"fingerprint {read_manifest(*(storage.resolve(name) if storage.is_uri(name) else here)).fingerprint}"
            )
        except InputError as error:
            found = error.what
        if found != f"fingerprint {fingerprint}":
            raise InputError(
                "a store that this one was merged from has changed",
                file=storage.join(self._path, name),
                expected=f"fingerprint {fingerprint}",
                found=found,
                fix="bring it back as it was, or merge the stores again",
            )

    def _hashed(self, name: str, manifest: Manifest) -> pa.Buffer:
        """The bytes of a table, which have the hash that the manifest states."""
        file = manifest.files[name]
        path = f"{self._root}/{file}"
        try:
            local = storage.is_local(self._filesystem)
            data = pa.memory_map(path).read_buffer() if local else self._filesystem.open_input_file(path).read_buffer()
        except OSError as error:
            raise self._unreadable(file, error) from error
        found, expected = hashlib.sha256(data).hexdigest(), str(manifest.tables.get(file))
        if found != expected:
            raise self._damaged(file, f"SHA-256 {expected}, as the manifest states", f"SHA-256 {found}")
        return data

    def _table(
        self,
        name: str,
        manifest: Manifest,
        columns: Sequence[str] | None = None,
        where: list[tuple[str, str, object]] | None = None,
        source: pa.Buffer | None = None,
    ) -> pa.Table:
        """A small table, or some of its columns or rows; without rows where the store has no such table."""
        try:
            dataset = self._dataset(name, manifest, where, source)
            if dataset is not None:
                return dataset.read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(manifest.files[name], error) from error
        empty = table_schema(name).arrow(num_genes=max(manifest.num_genes, 1)).empty_table()
        return empty if columns is None else empty.select(list(columns))

    def _dataset(
        self,
        name: str,
        manifest: Manifest,
        where: list[tuple[str, str, object]] | None = None,
        source: pa.Buffer | None = None,
    ) -> pq.ParquetDataset | None:
        """A table's file, or its bytes, found to be Parquet and of its schema; None where there is no such table."""
        file = manifest.files.get(name)
        if file is None:
            return None
        try:
            if source is not None:
                dataset = pq.ParquetDataset(pa.BufferReader(source), partitioning=None)
            else:
                path = f"{self._root}/{file}"
                dataset = pq.ParquetDataset(path, filesystem=self._filesystem, partitioning=None, filters=where)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(file, error) from error
        vector = manifest.vectors.get(RNA if name == "expression" else name.partition(".")[0])
        problems = table_schema(name).differences(dataset.schema, num_genes=vector.num_features if vector else 0)
        if problems:
            raise self._damaged(file, f"the columns of storage_schemas/{name}.json", "; ".join(problems))
        return dataset

    def _fill(self, row: int, start: int, out: np.ndarray, column: str) -> None:
        """Fill `out` (n, bytes) with the stored bytes of the slide's patches from `start` on."""
        index = self._index
        name, first = index.file[row].as_py(), int(index.first_row_group[row])
        found = self._parts.read(name, first, start, out, column)
        if found != len(out):
            wanted = f"{len(out)} patches from {start} on, from row group {first}"
            raise self._damaged(name, wanted, f"{len(out) - found} patches fewer")

    def _slide_row(self, slide_id: str) -> int:
        row = _find(self._index.slide_column, slide_id)
        if row is None:
            fix = "`CohortStore.slides` lists them; ingest_report.json says what was left out and why"
            raise InputError("the store has no such slide", file=self._path, case=slide_id, fix=fix)
        return row

    def _case_row(self, case_id: str) -> int:
        row = _find(self._index.case_column, case_id)
        if row is None:
            fix = "`CohortStore.cases` lists them; ingest_report.json says what was left out and why"
            raise InputError("the store has no such case", file=self._path, case=case_id, fix=fix)
        return row

    def _case_rows(self, case_ids: Sequence[str]) -> Sequence[int]:
        if len(case_ids) >= _MANY:  # from here on a hash table of all cases is quicker
            rows = pc.index_in(pa.array([str(case_id) for case_id in case_ids]), self._index.case_column)
            if not rows.null_count:
                found: Sequence[int] = rows.to_numpy()
                return found
        return [self._case_row(case_id) for case_id in case_ids]

    def _check_window(self, row: int, slide_id: str, start: int, length: int) -> None:
        n_patches = int(self._index.n_patches[row])
        if start < 0 or length < 1 or start + length > n_patches:
            raise InputError(
                "the window is not within the slide",
                file=self._path,
                case=slide_id,
                expected=f"start >= 0, length >= 1, start + length <= {n_patches}",
                found=f"start {start}, length {length}",
            )

    def _unreadable(self, name: str, error: Exception) -> InputError:
        fix = storage.advice(self._filesystem, error)
        return self._damaged(name, "a readable Parquet table", str(error), fix)

    def _damaged(self, name: str, expected: str, found: str, fix: str | None = None) -> InputError:
        fix = fix or "`gimp check STORE` lists what is damaged; copy the store again or ingest the sources again"
        return InputError("the store is damaged", file=f"{self._path}/{name}", expected=expected, found=found, fix=fix)


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _find(column: pa.Array, value: str) -> int | None:
    """Row of `value` in a sorted string column (a dict of 10^6 ids would cost every worker 100 MB)."""
    row = bisect.bisect_left(range(len(column)), value, key=lambda i: column[i].as_py())
    return row if row < len(column) and column[row].as_py() == value else None
