"""`merge_stores`: several stores become one, without copying a patch.

The merged store has tables of its own, and slides.parquet points at the members' part files: by relative names on one
disk or in one bucket, so that all of them can be moved together, else by URI. Every case gets a column `cohort`, so
that leave-one-cohort-out splits are possible. A member that was merged itself is replaced by the stores it uses.
Splits are made anew: a fold of one cohort says nothing about the others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.io import storage
from gimp_ray.store import merge_fit, publishing, tables
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import CHECKSUMS, FILE, RNA, Bag, Manifest, Vector
from gimp_ray.store.merge_fit import GENE_RULES, MergedFeatures
from gimp_ray.store.merge_places import below, canonical, inside, name_from, short_names
from gimp_ray.store.schema import table_schema
from gimp_ray.store.schemes import KFOLD, check_scheme, make_scheme
from gimp_ray.store.splits import PATIENT_COLUMN, join_splits, schemes_of
from gimp_ray.store.store import CohortStore

REPORT_FILE = "ingest_report.json"


@dataclass(frozen=True)
class MergedMember:
    """A store that was merged.

    Attributes:
        place: where it is.
        fingerprint: of what it holds.
        cohorts: cases of each value of the cohort column.
        cases, slides, patches, genes: what it holds.
        genes_left_out: its genes that the merged store lacks.
        genes_filled: genes of the merged store that it lacks; stored as 0 for its cases.
        members: of a merged store, the stores whose part files it uses itself.
    """

    place: str
    fingerprint: str
    cohorts: dict[str, int]
    cases: int
    slides: int
    patches: int
    genes: int
    genes_left_out: int
    genes_filled: int
    members: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.cases:,} cases"]
        parts += [f"{self.slides:,} slides, {self.patches:,} patches"] if self.slides else []
        parts += [f"{self.genes:,} genes"] if self.genes else []
        parts += [f"{self.genes_left_out:,} of them left out"] if self.genes_left_out else []
        parts += [f"{self.genes_filled:,} genes stored as 0"] if self.genes_filled else []
        return f"  {self.place}: {', '.join(parts)} (cohort {', '.join(self.cohorts)})"


@dataclass(frozen=True)
class MergeReport:
    """The result of `merge_stores`; `to_json` is the store's ingest_report.json.

    Attributes:
        store: place of the merged store.
        manifest: its manifest.
        members: what came from which store, in the order given.
        class_counts: cases of each class.
        split_schemes: stored split schemes and their folds.
        options: as given.
        notes: what a user should know.
    """

    store: str
    manifest: Manifest
    members: tuple[MergedMember, ...]
    class_counts: dict[str, int]
    split_schemes: dict[str, tuple[int, ...]]
    options: dict[str, object]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "fingerprint": self.manifest.fingerprint,
            "options": self.options,
            "merged": [asdict(member) for member in self.members],
            "class_counts": self.class_counts,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        m = self.manifest
        classes = ", ".join(f"{label} {count:,}" for label, count in self.class_counts.items())
        lines = [f"Store {self.store}, merged of {len(self.members)} stores", *map(str, self.members)]
        lines.append(f"  cases     {m.num_cases:,} ({classes})")
        if m.dim is not None:
            lines.append(f"  slides    {m.num_slides:,}")
            lines.append(f"  patches   {m.num_patches:,} x {m.dim} {m.dtype}, none copied")
            lines.append(f"  encoder   {m.encoder or 'not named by the stores'}")
        for name, vector in m.vectors.items():
            lines.append(f"  {'genes' if name == RNA else name:<9} {vector.num_features:,}, unit {vector.unit}")
        schemes = "; ".join(f"{name}: {len(folds)} folds" for name, folds in self.split_schemes.items())
        lines.append(f"  splits    {schemes or 'none'}")
        lines.append(f"  contents  {m.fingerprint[:16]}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def merge_stores(
    stores: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    genes: str = "intersect",
    cohort_column: str = "cohort",
    split_schemes: Sequence[str] = (KFOLD,),
    split_seed: int = 0,
    folds: int = 5,
    deep: bool = False,
) -> MergeReport:
    """Make the store `out` of several stores. Their part files are used where they are; nothing of theirs changes.

    Args:
        stores: two or more, local paths or URIs.
        out: the store to make, a local path or URI where nothing is yet.
        genes: `same` refuses stores of other genes, `intersect` keeps what all have, in the first store's order,
            `union` keeps all and stores 0 where a store has no value; so for every modality with named features.
        cohort_column: column of cases.parquet that names the store a case came from: its folder, unless its case table
            has the column already.
        split_schemes: made anew over all cases: `kfold`, `leave_one_out:cohort` and the other schemes of an ingest.
        split_seed: of them.
        folds: k of the k-fold schemes.
        deep: compare every patch of the members with its hash first.

    Returns:
        What came from where; also written to `out/ingest_report.json`.

    Raises:
        ConfigError: an option that cannot be.
        InputError: stores that do not fit together, share a case, patient or slide, or are not sound; something at
            `out`; or the store cannot be written. There is no store at `out` then.
    """
    if genes not in GENE_RULES:
        raise ConfigError("there is no such rule for genes", expected=", ".join(GENE_RULES), found=repr(genes))
    reserved = table_schema("cases").arrow().names
    if not cohort_column or cohort_column in reserved:
        expected = f"a name other than {', '.join(reserved)}"
        raise ConfigError("the cohort column cannot have this name", expected=expected, found=cohort_column)
    for scheme in split_schemes:
        check_scheme(scheme, folds=folds)
    place, found = canonical(out), [canonical(store) for store in stores]
    _check_places(found, place)
    try:
        with publishing.lock(place) as after_a_kill:
            if publishing.exists(place):
                raise InputError(
                    "the output exists already",
                    file=place,
                    expected="a path where nothing is yet",
                    found="a store",
                    fix="give another path, or remove the store first; nothing is ever overwritten",
                )
            publishing.refuse_other(place, after_a_kill)
            opened = [CohortStore.open(where) for where in found]
            merge = _Merge(found, opened, short_names(found), place, cohort_column)
            merge.notes += merge_fit.refuse_other_kind(opened)
            merge_fit.refuse_shared(opened)
            for where in found:
                check_store(where, deep=deep).raise_if_bad()
            options = {
                "genes": genes, "cohort_column": cohort_column, "split_schemes": tuple(split_schemes),
                "split_seed": split_seed, "folds": folds, "deep": deep,
            }  # fmt: skip
            with publishing.new_store(place) as folder:
                return merge.write(folder, genes, dict.fromkeys(split_schemes), folds, split_seed, options)
    except (OSError, pa.ArrowException) as error:
        fix = "check free space and permissions there; nothing of this merge was left behind"
        raise InputError("the merged store cannot be written", file=place, found=str(error), fix=fix) from error


def _check_places(found: Sequence[str], out: str) -> None:
    if len(found) < 2:
        raise ConfigError("too few stores to merge", expected="two stores or more", found=str(len(found)))
    for store in found:
        if found.count(store) > 1:
            raise ConfigError("a store was given twice", file=store, fix="give every store once")
        if inside(out, store) or inside(store, out):
            fix = "choose a place beside the stores"
            raise ConfigError("the merged store would lie in one of its stores, or around it", file=out, fix=fix)


class _Merge:
    """The stores of one merge as one: their cases and slides sorted by id.

    Attributes:
        cases, slides: the merged tables; `slides` is None without patches.
        member_of: (cases,) number of the store each case is from.
        notes: what a user should know.
    """

    def __init__(
        self, found: Sequence[str], stores: Sequence[CohortStore], cohorts: Sequence[str], place: str, column: str
    ) -> None:
        self._found, self._stores, self._place, self._column = found, stores, place, column
        self.cases: pa.Table = None
        self.slides: pa.Table | None = None
        self.member_of: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.notes: list[str] = []
        self._cohorts = cohorts

    def write(
        self, folder: str, rule: str, schemes: Iterable[str], folds: int, seed: int, options: dict[str, object]
    ) -> MergeReport:
        """Write the tables into `folder`, check them, publish the manifest; names in them are as seen from `place`."""
        self._unite()
        writer = tables.TableWriter(folder)
        modalities: dict[str, Bag | Vector] = {}
        if self.slides is not None:
            writer.write("slides", self.slides)
            modalities["patches"] = self._bag(self.slides)
        merged = {name: merge_fit.merge_features(self._stores, name, rule) for name in self._stores[0].manifest.vectors}
        writer.write("cases", self.cases)
        for name, features in merged.items():
            modalities[name] = self._write_vector(name, features, writer)
        splits = self._splits(schemes, folds, seed)
        if splits.num_rows:
            writer.write("splits", splits)
        writer.write("sources", self._sources())
        members = {} if self.slides is None else self._members()
        manifest = writer.manifest(self.cases, modalities, members=members)
        labels = Counter(label for label in self.cases["label"].to_pylist() if label is not None)
        own = sorted({scheme for store in self._stores for scheme in store.split_schemes})
        if own:
            self.notes.append(
                f"the stores' own splits ({', '.join(own)}) were not taken over: splits are made anew over all cases"
            )
        report = MergeReport(
            store=self._place,
            manifest=manifest,
            members=tuple(self._account(merged.get(RNA))),
            class_counts={label: labels[label] for label in sorted(labels)},
            split_schemes=schemes_of(splits),
            options=options,
            notes=tuple(self.notes),
        )
        filesystem, root = storage.resolve(folder)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, default=str) + "\n"
        storage.write_bytes(filesystem, f"{root}/{REPORT_FILE}", text.encode())
        check_store(folder, manifest=manifest).raise_if_bad()
        storage.write_bytes(filesystem, f"{root}/{FILE}", manifest.to_json().encode())
        return report

    def _unite(self) -> None:
        """The cases and slides of all stores, sorted by id."""
        cases = [self._with_cohort(i) for i in range(len(self._stores))]
        slides = [self._with_files(i) for i, store in enumerate(self._stores) if store.dim is not None]
        self.notes += _move_to_slides(cases, slides)
        united, mixed = _united(cases, table_schema("cases").arrow())
        self.notes += [f"cases.parquet: {what}" for what in mixed]
        order = pc.sort_indices(united["case_id"])
        self.cases = united.take(order).combine_chunks()
        owner = np.repeat(np.arange(len(self._stores)), [table.num_rows for table in cases])
        self.member_of = owner[order.to_numpy()]
        if slides:
            joined, mixed = _united(slides, table_schema("slides").arrow())
            self.notes += [f"slides.parquet: {what}" for what in mixed]
            self.slides = joined.sort_by("slide_id").combine_chunks()
        pairs = pa.table({"cohort": self.cases[self._column], "member": pa.array(self.member_of)})
        counts = pairs.group_by("cohort").aggregate([("member", "count_distinct")])
        several = counts.filter(pc.greater(counts["member_count_distinct"], 1))["cohort"].to_pylist()
        self.notes += [f"{self._column} {name} holds cases of more than one store" for name in sorted(several)]

    def _with_cohort(self, i: int) -> pa.Table:
        """A store's cases, with the column that names the store a case is from third, and which vectors it has."""
        store, column = self._stores[i], self._column
        cases = store.cases
        if column in store.slides.column_names:
            raise InputError(
                f"the column {column} differs within a case, so it cannot say where a case came from",
                file=self._found[i],
                fix="name another column with --column",
            )
        values = pa.repeat(self._cohorts[i], cases.num_rows)
        if column in cases.column_names:
            values = pc.fill_null(cases[column].cast(pa.string()), self._cohorts[i])
            cases = cases.drop_columns([column])
        cases = cases.add_column(2, pa.field(column, pa.string()), values)
        for name in store.manifest.vectors:
            lacking = any(f"has_{name}" in other.cases.column_names for other in self._stores)
            if lacking and f"has_{name}" not in cases.column_names:
                cases = cases.append_column(f"has_{name}", pa.array(np.ones(cases.num_rows, dtype=bool)))
        return cases

    def _with_files(self, i: int) -> pa.Table:
        """A store's slides, with the part files named as seen from the merged store."""
        slides = self._stores[i].slides
        files = slides["file"].combine_chunks().dictionary_encode()
        names = [name_from(below(self._found[i], name), self._place) for name in files.dictionary.to_pylist()]
        column = slides.schema.get_field_index("file")
        return slides.set_column(column, slides.schema.field(column), pa.array(names, pa.string()).take(files.indices))

    def _bag(self, slides: pa.Table) -> Bag:
        bags = [store.manifest.patches for store in self._stores]
        first, compressions = bags[0], {bag.compression for bag in bags if bag}
        assert first is not None
        checked = all(bag is not None and bag.checksums for bag in bags)
        return tables.bag_of(
            slides,
            dim=first.dim,
            dtype=first.dtype,
            compression=compressions.pop() if len(compressions) == 1 else "mixed",
            checksums=CHECKSUMS if checked else None,
            **{name: self._stated(name) for name in ("encoder", "magnification", "patch_size", "overlap")},
        )

    def _stated(self, name: str) -> Any:
        """What the first store that states it states."""
        values = (getattr(store.manifest.patches, name) for store in self._stores)
        return next((value for value in values if value is not None), None)

    def _write_vector(self, modality: str, merged: MergedFeatures, writer: tables.TableWriter) -> Vector:
        """The values of a modality; every store is read from its first case to its last, in blocks."""
        rows = [
            merge_fit.rows_of_cases(store, modality, index)
            for store, index in zip(self._stores, merged.index, strict=True)
        ]
        case_ids, owners = self.cases["case_id"].to_pylist(), self.member_of.tolist()
        if f"has_{modality}" in self.cases.column_names:
            has = self.cases[f"has_{modality}"].to_pylist()
            case_ids = [case_id for case_id, known in zip(case_ids, has, strict=True) if known]
            owners = [owner for owner, known in zip(owners, has, strict=True) if known]
        in_order: Iterator[tuple[str, NDArray[np.float32]]] = (next(rows[member]) for member in owners)

        def values(case_id: str) -> NDArray[np.float32]:
            found, row = next(in_order)
            assert found == case_id, f"values of {found} where {case_id} was due"
            return row

        features = tables.features_table(modality, merged.feature_ids, merged.columns)
        unit = self._stores[0].manifest.vectors[modality].unit
        return writer.write_vector(modality, features, case_ids, values, unit)

    def _splits(self, schemes: Iterable[str], folds: int, seed: int) -> pa.Table:
        case_ids, names = self.cases["case_id"].to_pylist(), list(schemes)
        labels = dict(zip(case_ids, self.cases["label"].to_pylist(), strict=True))
        wanted = {PATIENT_COLUMN, *(name.partition(":")[2] or name for name in names)}
        columns = {
            name: dict(zip(case_ids, self.cases[name].to_pylist(), strict=True))
            for name in sorted(wanted & set(self.cases.column_names))
        }
        made = []
        for scheme in names:
            table, more = make_scheme(scheme, labels, columns, folds=folds, seed=seed)
            made.append(table)
            self.notes += more
        return join_splits(made)

    def _sources(self) -> pa.Table:
        """sources.parquet of all stores; a file that several were made from (a table of all cohorts) stands once."""
        keys = ["kind", "id", "file"]
        table = pa.concat_tables([store.table("sources") for store in self._stores])
        table = table.sort_by([*((key, "ascending") for key in keys), ("mtime_ns", "descending")])
        rows = table.append_column("row", pa.array(np.arange(table.num_rows)))
        first = rows.group_by(keys).aggregate([("row", "min")])["row_min"].combine_chunks()
        return table.take(first.sort()).combine_chunks()

    def _members(self) -> dict[str, str]:
        """The stores whose part files are used, as the merged store names them, and their fingerprints."""
        leaves: dict[str, str] = {}
        for where, store in zip(self._found, self._stores, strict=True):
            own = {below(where, name): fingerprint for name, fingerprint in store.manifest.members.items()}
            leaves |= own or {where: store.fingerprint}
        return {name_from(where, self._place): fingerprint for where, fingerprint in sorted(leaves.items())}

    def _account(self, genes: MergedFeatures | None) -> Iterator[MergedMember]:
        for i, (where, store) in enumerate(zip(self._found, self._stores, strict=True)):
            manifest = store.manifest
            cohorts = Counter(self.cases[self._column].filter(pa.array(self.member_of == i)).to_pylist())
            lacking = 0 if genes is None else int((genes.index[i] < 0).sum())
            yield MergedMember(
                place=where,
                fingerprint=manifest.fingerprint,
                cohorts={name: cohorts[name] for name in sorted(cohorts)},
                cases=manifest.num_cases,
                slides=manifest.num_slides,
                patches=manifest.num_patches,
                genes=manifest.num_genes,
                genes_left_out=0 if genes is None else manifest.num_genes - len(genes.feature_ids) + lacking,
                genes_filled=lacking,
                members=tuple(sorted(below(where, name) for name in manifest.members)),
            )


def _move_to_slides(cases: list[pa.Table], slides: list[pa.Table]) -> list[str]:
    """A column that one member has a value a case of, and another a value a slide: every member's is then by slide."""
    # who is a patient is a matter of the case
    known = [*table_schema("slides").arrow().names, PATIENT_COLUMN]
    by_slide = dict.fromkeys(name for table in slides for name in table.column_names if name not in known)
    notes = []
    for i, (of_cases, of_slides) in enumerate(zip(cases, slides, strict=False)):
        for name in [name for name in of_cases.column_names[3:] if name in by_slide]:
            rows = pc.index_in(of_slides["case_id"], of_cases["case_id"])
            field = of_cases.schema.field(name)
            slides[i] = slides[i].append_column(field, of_cases[name].take(rows))
            cases[i] = cases[i].drop_columns([name])
            notes.append(f"{name} differs within a case of another store, so all have it by slide")
    return list(dict.fromkeys(notes))


def _united(found: Sequence[pa.Table], schema: pa.Schema) -> tuple[pa.Table, list[str]]:
    """Tables below one another, and notes: `schema`'s columns, then any member's others, null where it has none."""
    fields, notes = list(schema), []
    extra = dict.fromkeys(name for table in found for name in table.column_names if name not in schema.names)
    for name in extra:
        kinds = dict.fromkeys(table.schema.field(name).type for table in found if name in table.column_names)
        fields.append(pa.field(name, _common_type(list(kinds))))
        if len(kinds) > 1:
            notes.append(f"{name} is {' and '.join(map(str, kinds))} in the stores; here {fields[-1].type}")
    target = pa.schema(fields)
    parts = []
    for table in found:
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in target
        ]
        parts.append(pa.table(columns, schema=target))
    return pa.concat_tables(parts), notes


def _common_type(kinds: Sequence[pa.DataType]) -> pa.DataType:
    kinds = [kind for kind in kinds if not pa.types.is_null(kind)] or [pa.string()]
    if len(kinds) == 1:
        return kinds[0]
    if all(pa.types.is_integer(kind) for kind in kinds):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return pa.float64()
    return pa.string()
