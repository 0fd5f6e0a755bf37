"""`merge_stores`: several stores become one, without copying a patch.

The merged store has tables of its own, and slides.parquet points at the members' part files: by relative names on one
disk or in one bucket, so that all of them can be moved together, else by URI. Every case gets a column `cohort`, so
that leave-one-cohort-out splits are possible. A member that was merged itself is replaced by the stores it stands on.
Left out: copying part files, converting units or gene ids, the members' own splits (a fold of one cohort says nothing
about the others; splits are made anew).
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.io import places
from gimp_ray.store import merge_fit, publishing, tables
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import FILE, FORMAT, Manifest, gene_list_sha256, program, store_fingerprint
from gimp_ray.store.merge_genes import GENE_RULES, MergedGenes, merge_genes, rows_of_cases
from gimp_ray.store.merge_places import below, canonical, inside, name_from, short_names
from gimp_ray.store.merge_report import MergedMember, MergeReport
from gimp_ray.store.schema import LAYOUT_VERSION, ROW_GROUP_ROWS, TABLES, table_schema
from gimp_ray.store.splits import KFOLD, PATIENT_COLUMN, check_scheme, join_splits, make_scheme, schemes_of
from gimp_ray.store.store import CohortStore

__all__ = ["GENE_RULES", "MergeReport", "merge_stores"]

REPORT_FILE = "ingest_report.json"


@dataclass(frozen=True)
class _Options:
    genes: str
    cohort_column: str
    split_schemes: tuple[str, ...]
    split_seed: int
    folds: int
    deep: bool


@dataclass(frozen=True)
class _Member:
    """A store to merge: `place` is canonical, `cohort` names its cases where its case table does not."""

    place: str
    store: CohortStore
    cohort: str


@dataclass(frozen=True)
class _Tables:
    """The merged tables; `slides` is None without patches, and `member_of` says whose each case is."""

    cases: pa.Table
    slides: pa.Table | None
    member_of: NDArray[np.int64]
    notes: list[str]


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
            `union` keeps all and stores 0 where a store has no value.
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
    options = _Options(genes, cohort_column, tuple(split_schemes), split_seed, folds, deep)
    _check_options(options)
    place, found = canonical(out), [canonical(store) for store in stores]
    _check_places(found, place)
    try:
        with publishing.lock(place) as after_a_kill:
            _refuse_existing(place, after_a_kill)
            members = [
                _Member(where, CohortStore.open(where), name)
                for where, name in zip(found, short_names(found), strict=True)
            ]
            notes = merge_fit.refuse_other_kind([member.store for member in members])
            merge_fit.refuse_shared([member.store for member in members])
            for member in members:
                check_store(member.place, deep=deep).raise_if_bad()
            with publishing.new_store(place) as folder:
                return _write(members, folder, place, options, notes)
    except (OSError, pa.ArrowException) as error:
        fix = "check free space and permissions there; nothing of this merge was left behind"
        raise InputError("the merged store cannot be written", file=place, found=str(error), fix=fix) from error


def _check_options(options: _Options) -> None:
    if options.genes not in GENE_RULES:
        raise ConfigError("there is no such rule for genes", expected=", ".join(GENE_RULES), found=repr(options.genes))
    reserved = table_schema("cases").arrow().names
    if not options.cohort_column or options.cohort_column in reserved:
        expected = f"a name other than {', '.join(reserved)}"
        raise ConfigError("the cohort column cannot have this name", expected=expected, found=options.cohort_column)
    for scheme in options.split_schemes:
        check_scheme(scheme, folds=options.folds)


def _check_places(found: Sequence[str], out: str) -> None:
    if len(found) < 2:
        raise ConfigError("too few stores to merge", expected="two stores or more", found=str(len(found)))
    for store in found:
        if found.count(store) > 1:
            raise ConfigError("a store was given twice", file=store, fix="give every store once")
        if inside(out, store) or inside(store, out):
            fix = "choose a place beside the stores"
            raise ConfigError("the merged store would lie in one of its stores, or around it", file=out, fix=fix)


def _refuse_existing(out: str, after_a_kill: bool) -> None:
    if publishing.exists(out):
        raise InputError(
            "the output exists already",
            file=out,
            expected="a path where nothing is yet",
            found="a store",
            fix="give another path, or remove the store first; nothing is ever overwritten",
        )
    publishing.refuse_other(out, after_a_kill)


def _write(members: Sequence[_Member], folder: str, place: str, options: _Options, notes: Sequence[str]) -> MergeReport:
    """Write the tables into `folder`, check them, publish the manifest; the names in them are those of `place`."""
    merged = _merged_tables(members, place, options.cohort_column)
    notes = [*notes, *merged.notes, *_shared_cohorts(members, merged, options.cohort_column)]
    writer = tables.TableWriter(folder)
    if merged.slides is not None:
        writer.write("slides", merged.slides)
    writer.write("cases", merged.cases)
    genes = None
    if members[0].store.num_genes:
        genes = merge_genes([member.store for member in members], options.genes)
        writer.write("genes", tables.genes_table(genes.gene_ids, genes.columns))
        _write_expression(members, genes, merged, writer)
    splits, more = _splits(merged.cases, options)
    if splits.num_rows:
        writer.write("splits", splits)
    writer.write("sources", _sources(members))
    manifest = _manifest(members, merged, genes, writer, place)
    labels = Counter(merged.cases["label"].to_pylist())
    report = MergeReport(
        store=place,
        manifest=manifest,
        members=tuple(_account(members, merged, genes, options.cohort_column)),
        class_counts={label: labels[label] for label in sorted(labels)},
        split_schemes=schemes_of(splits),
        options=asdict(options),
        notes=(*notes, *more, *_split_notes(members)),
    )
    filesystem, root = places.resolve(folder)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, default=str) + "\n"
    places.write_bytes(filesystem, f"{root}/{REPORT_FILE}", text.encode())
    check_store(folder, manifest=manifest).raise_if_bad()
    places.write_bytes(filesystem, f"{root}/{FILE}", manifest.to_json().encode())
    return report


def _merged_tables(members: Sequence[_Member], place: str, cohort_column: str) -> _Tables:
    """cases.parquet and slides.parquet of all members, sorted by id."""
    cases = [_with_cohort(member, cohort_column) for member in members]
    slides = [_with_files(member, place) for member in members if member.store.dim is not None]
    notes = _move_to_slides(cases, slides)
    all_cases, mixed = _united(cases, table_schema("cases").arrow())
    notes += [f"cases.parquet: {what}" for what in mixed]
    owner = np.repeat(np.arange(len(members)), [table.num_rows for table in cases])
    order = pc.sort_indices(all_cases["case_id"])
    if not slides:
        return _Tables(all_cases.take(order), None, owner[order.to_numpy()], notes)
    all_slides, mixed = _united(slides, table_schema("slides").arrow())
    notes += [f"slides.parquet: {what}" for what in mixed]
    all_slides = all_slides.sort_by("slide_id").combine_chunks()
    return _Tables(all_cases.take(order).combine_chunks(), all_slides, owner[order.to_numpy()], notes)


def _with_cohort(member: _Member, column: str) -> pa.Table:
    """The member's cases, with the column that says where they came from in third place."""
    cases, slides = member.store.cases, member.store.slides
    if column in slides.column_names:
        raise InputError(
            f"the column {column} differs within a case, so it cannot say where a case came from",
            file=member.place,
            fix="name another column with --column",
        )
    values = pa.repeat(member.cohort, cases.num_rows)
    if column in cases.column_names:
        values = pc.fill_null(cases[column].cast(pa.string()), member.cohort)
        cases = cases.drop_columns([column])
    return cases.add_column(2, pa.field(column, pa.string()), values)


def _with_files(member: _Member, place: str) -> pa.Table:
    """The member's slides, with the part files named as seen from the merged store at `place`."""
    slides = member.store.slides
    files = slides["file"].combine_chunks().dictionary_encode()
    names = [name_from(below(member.place, name), place) for name in files.dictionary.to_pylist()]
    column = slides.schema.get_field_index("file")
    return slides.set_column(column, slides.schema.field(column), pa.array(names, pa.string()).take(files.indices))


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


def _write_expression(
    members: Sequence[_Member], genes: MergedGenes, merged: _Tables, writer: tables.TableWriter
) -> None:
    """expression.parquet: every member is read from its first case to its last, in blocks."""
    rows = [rows_of_cases(member.store, place) for member, place in zip(members, genes.places, strict=True)]
    in_order: Iterator[tuple[str, NDArray[np.float32]]] = (next(rows[member]) for member in merged.member_of)

    def values(case_id: str) -> NDArray[np.float32]:
        found, row = next(in_order)
        assert found == case_id, f"expression of {found} where {case_id} was due"
        return row

    writer.write_expression(merged.cases["case_id"].to_pylist(), len(genes.gene_ids), values)


def _splits(cases: pa.Table, options: _Options) -> tuple[pa.Table, list[str]]:
    case_ids = cases["case_id"].to_pylist()
    labels = dict(zip(case_ids, cases["label"].to_pylist(), strict=True))
    wanted = {PATIENT_COLUMN, *(name.partition(":")[2] or name for name in options.split_schemes)}
    columns = {
        name: dict(zip(case_ids, cases[name].to_pylist(), strict=True))
        for name in sorted(wanted & set(cases.column_names))
    }
    made, notes = [], list[str]()
    for scheme in dict.fromkeys(options.split_schemes):
        table, more = make_scheme(scheme, labels, columns, folds=options.folds, seed=options.split_seed)
        made.append(table)
        notes += more
    return join_splits(made), notes


def _shared_cohorts(members: Sequence[_Member], merged: _Tables, column: str) -> list[str]:
    """Notes on values of the cohort column that several members have."""
    pairs = pa.table({"cohort": merged.cases[column], "member": pa.array(merged.member_of)})
    counts = pairs.group_by("cohort").aggregate([("member", "count_distinct")])
    several = counts.filter(pc.greater(counts["member_count_distinct"], 1))["cohort"].to_pylist()
    return [f"{column} {name} holds cases of more than one store" for name in sorted(several)]


def _split_notes(members: Sequence[_Member]) -> list[str]:
    schemes = sorted({scheme for member in members for scheme in member.store.split_schemes})
    if not schemes:
        return []
    return [f"the stores' own splits ({', '.join(schemes)}) were not taken over: splits are made anew over all cases"]


def _sources(members: Sequence[_Member]) -> pa.Table:
    """sources.parquet of all members; a file that several were made from (a table of all cohorts) stands once."""
    table = pa.concat_tables([member.store.table("sources") for member in members])
    keys = ["kind", "id", "file"]
    table = table.sort_by([*((key, "ascending") for key in keys), ("mtime_ns", "descending")]).combine_chunks()
    if table.num_rows < 2:
        return table
    repeated = np.ones(table.num_rows - 1, dtype=bool)
    for key in keys:
        column = table[key]
        repeated &= pc.equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy()
    return table.filter(pa.array(np.concatenate([[True], ~repeated]))).combine_chunks()


def _manifest(
    members: Sequence[_Member], merged: _Tables, genes: MergedGenes | None, writer: tables.TableWriter, place: str
) -> Manifest:
    stores, slides = [member.store for member in members], merged.slides
    first = stores[0].manifest
    encoder = _said(stores, "encoder")
    compressions = {store.manifest.compression for store in stores}
    gene_unit = None if genes is None else first.gene_unit
    known = [] if slides is None else slides["has_coords"].unique().to_pylist()
    contents = {name: value for name, value in writer.contents.items() if name != "sources"}
    meaning = {"dim": first.dim, "dtype": first.dtype, "encoder": encoder, "gene_unit": gene_unit}
    return Manifest(
        format=FORMAT,
        version=LAYOUT_VERSION,
        created_by=program(),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        dim=first.dim,
        dtype=first.dtype,
        row_group_rows=ROW_GROUP_ROWS,
        compression=compressions.pop() if len(compressions) == 1 else "mixed",
        patch_order=first.patch_order,
        revision=1,
        encoder=encoder,
        magnification=_said(stores, "magnification"),
        patch_size=_said(stores, "patch_size"),
        overlap=_said(stores, "overlap"),
        coordinates=None if slides is None else "some" if len(known) > 1 else "all" if known == [True] else "none",
        num_cases=merged.cases.num_rows,
        num_slides=0 if slides is None else slides.num_rows,
        num_patches=0 if slides is None else pc.sum(slides["n_patches"]).as_py(),
        num_genes=0 if genes is None else len(genes.gene_ids),
        gene_unit=gene_unit,
        gene_list_sha256=None if genes is None else gene_list_sha256(genes.gene_ids),
        classes=tuple(sorted(merged.cases["label"].unique().to_pylist())),
        files=writer.names,
        tables=writer.files,
        schema_versions={name: table_schema(name).version for name in TABLES},
        superseded=(),
        members={} if slides is None else _leaves(members, place),
        fingerprint=store_fingerprint(contents, **meaning),
    )


def _said(stores: Sequence[CohortStore], name: str) -> Any:
    """What the first store that says it says."""
    return next((value for store in stores if (value := getattr(store.manifest, name)) is not None), None)


def _leaves(members: Sequence[_Member], place: str) -> dict[str, str]:
    """The stores whose part files are used, as the merged store names them, and their fingerprints."""
    leaves: dict[str, str] = {}
    for member in members:
        own = member.store.manifest.members
        found = {below(member.place, name): fingerprint for name, fingerprint in own.items()}
        leaves |= found or {member.place: member.store.fingerprint}
    return {name_from(where, place): fingerprint for where, fingerprint in sorted(leaves.items())}


def _account(
    members: Sequence[_Member], merged: _Tables, genes: MergedGenes | None, cohort_column: str
) -> Iterator[MergedMember]:
    for i, member in enumerate(members):
        manifest = member.store.manifest
        cohorts = Counter(merged.cases[cohort_column].filter(pa.array(merged.member_of == i)).to_pylist())
        lacking = 0 if genes is None else int((genes.places[i] < 0).sum())
        yield MergedMember(
            place=member.place,
            fingerprint=manifest.fingerprint,
            cohorts={name: cohorts[name] for name in sorted(cohorts)},
            cases=manifest.num_cases,
            slides=manifest.num_slides,
            patches=manifest.num_patches,
            genes=manifest.num_genes,
            genes_left_out=0 if genes is None else manifest.num_genes - len(genes.gene_ids) + lacking,
            genes_filled=lacking,
            members=tuple(sorted(below(member.place, name) for name in manifest.members)),
        )
