"""Adding to a store: what it holds already joins the new sources before anything is matched.

Its cases, slides, genes and folds become rows of the sources, so that matching, leaving out and reporting are the
same as for a new store. Patch files whose size and dates are unchanged are not read again; others are hashed.
Nothing is ever taken away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.cases import CaseTable
from gimp_ray.ingest.genes import GeneMatrix
from gimp_ray.ingest.patches import PatchSource
from gimp_ray.ingest.patches.write import stored_chunks
from gimp_ray.ingest.roll import no_slide_column
from gimp_ray.ingest.work import tick
from gimp_ray.store.part_writer import SlideHash
from gimp_ray.store.schema import table_schema
from gimp_ray.store.schemes import KFOLD
from gimp_ray.store.splits import SplitRow, patient_column, rows_of, splits_table
from gimp_ray.store.store import CohortStore
from gimp_ray.store.tables import Signature


@dataclass(frozen=True)
class Existing:
    """The store to add to, and where its slides came from."""

    store: CohortStore
    sources: dict[str, Signature]

    @cached_property
    def slides(self) -> dict[str, int]:
        """Row of each stored slide in `store.slides`."""
        return {slide_id: row for row, slide_id in enumerate(self.store.slides["slide_id"].to_pylist())}

    @cached_property
    def cases(self) -> frozenset[str]:
        """The stored cases."""
        return frozenset(self.store.cases["case_id"].to_pylist())


@dataclass(frozen=True)
class CompareTask:
    """A stored slide whose source file's size or dates changed."""

    source: PatchSource
    dtype: str
    sha256: str


def open_existing(out: str) -> Existing:
    """The store at `out`, ready to be added to; InputError where it was merged of others."""
    store = CohortStore.open(out)
    if store.manifest.members:
        fix = "add to the stores it was merged of, and merge them again"
        raise InputError("a merged store cannot be added to", file=out, fix=fix)
    table = store.table("sources")
    rows = table.filter(pa.compute.field("kind") == "patches").to_pylist()
    return Existing(store, {row["id"]: Signature(row["bytes"], row["mtime_ns"], row["ctime_ns"]) for row in rows})


def same_bits(task: CompareTask) -> bool | InputError:
    """Whether a slide's file still gives the embeddings and coordinates that are stored; a refusal if unreadable."""
    digest = SlideHash()
    try:
        for chunk in stored_chunks(task.source, task.dtype):
            digest.update(*chunk)
            tick(0)
    except InputError as error:
        return error
    tick(1)
    return digest.hexdigest() == task.sha256


def with_stored_rows(table: CaseTable, existing: Existing, stems: Collection[str] = ()) -> CaseTable:
    """The case table with a row for every stored slide and case that it lacks.

    Args:
        stems: names of the patch files, without endings.

    Raises:
        InputError: the table has no slides and no new file is named by case, as for a new store.
    """
    new = set(stems) - set(existing.slides)
    if table.slide_ids is None and new and new.isdisjoint(table.case_ids):
        raise no_slide_column(table)
    store = existing.store
    stored_cases = store.cases.drop_columns(sorted(store.has_columns))
    cases = {row["case_id"]: row for row in stored_cases.to_pylist()}
    slides = store.slides.to_pylist() if store.slides.num_rows else []
    if table.slide_ids is None and slides:  # files are named by case, or the table names no new slide
        table = dataclasses.replace(table, slide_ids=list(table.case_ids))
    known = set(table.slide_ids or ())
    extra_of_slides = [n for n in store.slides.column_names if n not in table_schema("slides").arrow().names]
    rows: list[tuple[str, str | None, dict[str, object]]] = []
    for slide in slides:
        if slide["slide_id"] not in known:
            of_case = {k: v for k, v in cases[slide["case_id"]].items() if k not in ("case_id", "label")}
            rows.append((slide["case_id"], slide["slide_id"], of_case | {k: slide[k] for k in extra_of_slides}))
    named = {*table.case_ids, *(slide["case_id"] for slide in slides)}
    for case_id, row in cases.items():
        if case_id not in named:
            rows.append((case_id, None, {k: v for k, v in row.items() if k not in ("case_id", "label")}))
    if not rows:
        return table
    extra = [
        pa.field(name, store_table.schema.field(name).type)
        for store_table, names in ((stored_cases, stored_cases.column_names[2:]), (store.slides, extra_of_slides))
        for name in names
    ]
    if extra:
        stored = pa.Table.from_pylist([row[2] for row in rows], schema=pa.schema(extra))
    else:  # a table without columns would have no rows either
        stored = pa.table({field.name: pa.nulls(len(rows), field.type) for field in table.extra.schema})
    ids = None if table.slide_ids is None else [*table.slide_ids, *(row[1] for row in rows)]
    return dataclasses.replace(
        table,
        case_ids=[*table.case_ids, *(row[0] for row in rows)],
        labels=[*table.labels, *(cases[row[0]]["label"] for row in rows)],
        slide_ids=ids,
        extra=_joined(table.extra, stored),
    )


def with_stored_genes(matrix: GeneMatrix | None, existing: Existing) -> tuple[GeneMatrix | None, list[str]]:
    """The matrix in the store's gene order, in which stored cases have their stored expression.

    Returns:
        The matrix, and the stored cases for which the file has other values now.

    Raises:
        InputError: other genes than the store's, or genes for a store without any.
    """
    store = existing.store
    if not store.num_genes:
        if matrix is not None:
            raise _other_genes(matrix, existing, "expression for a store without genes")
        return None, []
    cases, genes = store.complete_cases("rna"), store.table("genes")
    own_columns = [name for name in genes.column_names if name not in ("gene_id", "position")]
    stored = GeneMatrix(
        path=Path(store.path),
        gene_columns={name: genes[name].to_pylist() for name in own_columns},
        source_ids=cases,
        gene_ids=store.gene_ids,
        values=store.read_genes(cases),
        unit=store.manifest.gene_unit,
        row_of={case_id: row for row, case_id in enumerate(cases)},
        matched_by_patient=False,
    )
    if matrix is None:
        return stored, []
    column_of = {gene: i for i, gene in enumerate(matrix.gene_ids)}
    missing = [gene for gene in stored.gene_ids if gene not in column_of]
    if missing or len(column_of) != len(stored.gene_ids):
        found = f"{len(column_of):,} genes, {len(missing):,} of the store's missing" + (
            f": {missing[0]}" if missing else ""
        )
        raise _other_genes(matrix, existing, found)
    columns = np.array([column_of[gene] for gene in stored.gene_ids])
    both = [case_id for case_id in stored.source_ids if case_id in matrix.row_of]
    changed = [c for c in both if not np.array_equal(matrix.expression(c)[columns], stored.expression(c))]
    stored_cases = set(both)
    new = {case_id: row for case_id, row in matrix.row_of.items() if case_id not in stored_cases}
    # by case, not by row: two cases of one patient may share one
    rows = sorted(set(new.values()))
    kept = {row: i for i, row in enumerate(rows)}
    row_of = {case_id: kept[row] for case_id, row in new.items()}
    joined = dataclasses.replace(
        matrix,
        source_ids=[*(matrix.source_ids[row] for row in rows), *stored.source_ids],
        gene_ids=stored.gene_ids,
        gene_columns=stored.gene_columns,
        values=np.concatenate(
            [np.asarray(matrix.values)[np.ix_(np.array(rows, dtype=np.int64), columns)], stored.values]
        ),
        sources=[*(matrix.sources[row] for row in rows), *([Path(existing.store.path)] * len(stored.source_ids))],
        row_of={**row_of, **{case_id: len(rows) + i for i, case_id in enumerate(stored.source_ids)}},
    )
    return joined, changed


def stored_folds(
    brought: Collection[str], existing: Existing, cases: pa.Table, seed: int
) -> tuple[pa.Table, list[str]]:
    """The stored folds as they are, but for schemes the user brings anew, with the new ones of `cases` dealt into
    `kfold`.

    No case changes its part, so that a test case of a published result never becomes a training case.
    """
    kept = [row for row in rows_of(existing.store.table("splits")) if row.scheme not in brought]
    others = sorted({row.scheme for row in kept} - {KFOLD})
    ids = cases["case_id"].to_pylist()
    new = sorted(set(ids) - existing.cases)
    notes = []
    if others and new:
        notes.append(f"the {len(new):,} new cases are in no part of the split schemes {', '.join(others)}")
    labels = dict(zip(ids, cases["label"].to_pylist(), strict=True))
    patients = dict(zip(ids, patient_column(cases["case_id"], cases).to_pylist(), strict=True))
    kept += _dealt([row for row in kept if row.scheme == KFOLD], labels, patients, new, seed)
    return splits_table(kept), notes


def _dealt(
    kfold: list[SplitRow], labels: Mapping[str, str], patients: Mapping[str, str], new: Sequence[str], seed: int
) -> list[SplitRow]:
    """Rows of `kfold` for the new cases: each patient to the part that has fewest of its class, ties by the seed."""
    if not kfold:
        return []
    k = len({row.fold for row in kfold})
    part_of = {patients[row.case_id]: row.fold for row in kfold if row.part == "test"}
    label_of = {patients[case_id]: label for case_id, label in labels.items()}
    counts = {label: np.zeros(k, dtype=np.int64) for label in sorted(set(labels.values()))}
    for patient, part in part_of.items():
        counts[label_of[patient]][part] += 1
    generator = np.random.default_rng(seed)
    rows = []
    for case_id in new:
        patient = patients[case_id]
        if patient not in part_of:
            have = counts[label_of[patient]]
            part_of[patient] = int(generator.choice(np.flatnonzero(have == have.min())))
            have[part_of[patient]] += 1
        part = part_of[patient]
        for fold in range(k):
            name = "test" if part == fold else "val" if part == (fold + 1) % k else "train"
            rows.append(SplitRow(KFOLD, fold, case_id, name))
    return rows


def _joined(extra: pa.Table, stored: pa.Table) -> pa.Table:
    """Columns of both, one below the other; a column of two types becomes text."""
    tables = [extra, stored]
    for name in set(extra.column_names) & set(stored.column_names):
        kinds = {table.schema.field(name).type for table in tables} - {pa.null()}
        if len(kinds) > 1 and not kinds <= {pa.int64(), pa.float64()}:
            tables = [
                table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
                for table in tables
            ]
    return pa.concat_tables(tables, promote_options="permissive")


def _other_genes(matrix: GeneMatrix, existing: Existing, found: str) -> InputError:
    return InputError(
        "the genes are not those of the store",
        file=matrix.path,
        expected=f"the {existing.store.num_genes:,} genes of {existing.store.path}",
        found=found,
        fix="give the same genes, or make a new store of all sources",
    )
