"""What the genes of the sources are called in the store, and which of their rows become one gene.

`plan_genes` decides once for a source: names (`names`, `versions`), Y copies of pseudo-autosomal genes (`par_y`), rows
of one name (`duplicates`), the genes to keep (`gene_list`). `agree` puts the plans of several sources in one order
(`genes`). `values_of` then computes the rows of the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes.files import ENTREZ, SYMBOL, GeneColumns
from gimp_ray.ingest.genes.options import GeneOptions
from gimp_ray.io.gene_sets import match_genes, read_gene_list, without_version
from gimp_ray.store.units import UNKNOWN, is_linear, parse_unit

SOURCE_ID = "source_id"
_ENSEMBL = re.compile(r"ENS[A-Z]*\d{11}")
_PAR_Y_V22 = re.compile(r"ENSGR(\d{10})((?:\.\d+)?)")
_SHOWN = 10

# mean over the chosen samples of some of a source's rows: places (n,) -> (n,) float64
Means = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class GenePlan:
    """How the genes of a source become those of the store.

    Args:
        gene_ids: G names, each once.
        gene_columns: what else is known of them.
        take: (G,) place of each gene's row in the source.
        combine: genes made of several rows: gene -> places and weights of the rows.
        rows_chosen: whether one of several rows of a name was taken, which must be the same row in every source.
    """

    path: Path
    gene_ids: list[str]
    gene_columns: GeneColumns
    take: NDArray[np.int64]
    combine: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]
    notes: tuple[str, ...] = ()
    rows_chosen: bool = False

    def select(self, places: Sequence[int]) -> GenePlan:
        """The plan of some of its genes, in the order given."""
        combine = {new: self.combine[old] for new, old in enumerate(places) if old in self.combine}
        columns = {name: [values[i] for i in places] for name, values in self.gene_columns.items()}
        take = self.take[np.asarray(places, dtype=np.int64)]
        return replace(
            self, gene_ids=[self.gene_ids[i] for i in places], gene_columns=columns, take=take, combine=combine
        )


def plan_genes(
    path: Path, source_ids: Sequence[str], beside: GeneColumns, options: GeneOptions, unit: str, means: Means
) -> GenePlan:
    """Decide the genes of a source.

    Args:
        source_ids: gene of every row of the source, as it names it.
        beside: its gene columns.
        unit: unit of the values; sums are of linear units alone.
        means: asked for rows of one name with `duplicates: max`, and for Y copies that are dropped.

    Raises:
        InputError: a gene twice (with `duplicates: refuse`), a name the source does not have, a sum of logarithms,
            no gene of the gene list.
    """
    ids = [name.strip() for name in source_ids]
    beside = {name: [_clean(name, v) for v in values] for name, values in beside.items()}
    rows, extras, par_notes = _without_par_y(ids, path, options, unit, means)
    names, name_notes = _names(ids, beside, rows, path, options)
    nameless = sum(not names[row] for row in rows)
    rows = [row for row in rows if names[row]]
    notes = [*par_notes, *name_notes]
    if nameless:
        notes.append(f"{nameless:,} rows of {path.name} without a gene name were left out")
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(names[row], []).append(row)
    if not groups:
        fix = "give genes a name in the column that the option gene_names chooses"
        what, expected = "the gene file names no gene", "a name for every gene"
        raise InputError(what, file=path, expected=expected, found="none", fix=fix)
    twice = {name: group for name, group in groups.items() if len(group) > 1}
    if twice:
        notes += _refuse_or_note(twice, path, options, unit)
    chosen = {name: _chosen(group, options, means) for name, group in groups.items()}
    take = np.fromiter((row for row, _ in chosen.values()), np.int64, len(chosen))
    combine = {
        place: combined
        for place, (_, group) in enumerate(chosen.values())
        if (combined := _combined(group, extras, options)) is not None
    }
    columns = {name: [values[row] for row in take.tolist()] for name, values in beside.items()}
    kept_ids = [ids[row] for row in take.tolist()]
    gene_ids = list(chosen)
    if kept_ids != gene_ids:
        columns[SOURCE_ID] = list(kept_ids)
    rows_chosen = bool(twice) and options.duplicates in ("first", "max")
    return _listed(GenePlan(path, gene_ids, columns, take, combine, tuple(notes), rows_chosen), options)


def agree(plans: Sequence[GenePlan], rule: str) -> list[GenePlan]:
    """Plans of the same genes in the order of the first.

    Raises:
        InputError: different genes with the rule `same`, none in common with `intersect`.
    """
    first = plans[0]
    if all(plan.gene_ids == first.gene_ids for plan in plans[1:]):
        return list(plans)
    common = set(first.gene_ids).intersection(*(plan.gene_ids for plan in plans[1:]))
    if rule == "same":
        for plan in plans[1:]:
            if set(plan.gene_ids) != set(first.gene_ids):
                raise _different(first, plan)
    if not common:
        raise _different(first, plans[1])
    genes = [gene for gene in first.gene_ids if gene in common]
    agreed = []
    for plan in plans:
        place = {gene: i for i, gene in enumerate(plan.gene_ids)}
        agreed.append(plan.select([place[gene] for gene in genes]))
    fewer = max(len(plan.gene_ids) for plan in plans) - len(genes)
    if fewer:
        note = f"{len(genes):,} genes are in all gene files and are kept; the largest has {fewer:,} more"
        agreed[0] = replace(agreed[0], notes=(*agreed[0].notes, note))
    return agreed


def values_of(plan: GenePlan, values: np.ndarray) -> NDArray[np.float32]:
    """A source's rows (samples, source genes) as rows of the store (samples, G)."""
    with np.errstate(over="ignore"):
        out = values[:, plan.take].astype(np.float32, copy=False)
        for gene, (places, weights) in plan.combine.items():
            out[:, gene] = values[:, places].astype(np.float32) @ weights
    return out


def is_par_y(gene_id: str) -> bool:
    """Whether an Ensembl id is of the Y copy of a pseudo-autosomal gene (`ENSG....15_PAR_Y`, older `ENSGR...`)."""
    return gene_id.endswith("_PAR_Y") or _PAR_Y_V22.fullmatch(gene_id) is not None


def x_copy(gene_id: str) -> str:
    """The id of the X copy of a Y copy."""
    old = _PAR_Y_V22.fullmatch(gene_id)
    return f"ENSG0{old[1]}{old[2]}" if old else gene_id.removesuffix("_PAR_Y")


def _without_par_y(
    ids: Sequence[str], path: Path, options: GeneOptions, unit: str, means: Means
) -> tuple[list[int], dict[int, list[int]], list[str]]:
    """The rows to keep, the Y copies to add to a row, and notes."""
    copies = [row for row, name in enumerate(ids) if is_par_y(name)]
    rows = list(range(len(ids)))
    if not copies or options.par_y == "keep":
        return rows, {}, []
    place = {name: row for row, name in enumerate(ids)}
    extras: dict[int, list[int]] = {}
    if options.par_y == "add":
        if not is_linear(unit):
            raise InputError(
                "the Y copies of genes cannot be added",
                file=path,
                expected="a linear unit such as FPKM, TPM or counts",
                found=f"gene unit {unit}",
                fix="say par_y: drop or keep, or the unit if it is linear",
            )
        for row in copies:
            if x_copy(ids[row]) in place:
                extras.setdefault(place[x_copy(ids[row])], []).append(row)
        added = {row for group in extras.values() for row in group}
        note = f"{len(added)} Y copies of pseudo-autosomal genes were added to their X copies"
        return [row for row in rows if row not in added], extras, [note]
    gone = set(copies)
    zero_is_zero = parse_unit(unit) == UNKNOWN or is_linear(unit) or unit.endswith("+1)")
    filled = int(np.count_nonzero(means(np.asarray(copies, dtype=np.int64)))) if zero_is_zero else 0
    note = f"{len(copies)} Y copies of pseudo-autosomal genes (PAR_Y) were dropped"
    if filled:
        note += f"; {filled} of them are not 0 in every sample: say par_y: add or keep to have them"
    return [row for row in rows if row not in gone], {}, [note]


def _names(
    ids: Sequence[str], beside: GeneColumns, rows: Sequence[int], path: Path, options: GeneOptions
) -> tuple[list[str], list[str]]:
    """The store's name of every row, and notes."""
    plain = [without_version(name) if options.versions == "strip" else name for name in ids]
    if options.names == "id":
        return plain, []
    key = SYMBOL if options.names == "symbol" else ENTREZ
    values = beside.get(key)
    if values is None:
        ensembl = sum(_ENSEMBL.match(ids[row]) is not None for row in rows)
        if key == SYMBOL and 2 * ensembl < len(rows):  # the file's own key is no Ensembl id: it is a symbol
            return plain, []
        raise InputError(
            f"the gene file has no {'symbols' if key == SYMBOL else 'Entrez ids'}",
            file=path,
            expected=f"a column of {'symbols, such as gene_name' if key == SYMBOL else 'ids, such as Entrez_Gene_Id'}",
            found=f"gene ids such as {', '.join(ids[:3])}; further columns: {', '.join(beside) or 'none'}",
            fix="say gene_names: id",
        )
    missing = sum(not values[row] for row in rows)
    notes = [f"{missing:,} genes have no {key}; they are named by their id"] if missing else []
    return [value or name for value, name in zip(values, plain, strict=True)], notes


def _refuse_or_note(twice: dict[str, list[int]], path: Path, options: GeneOptions, unit: str) -> list[str]:
    """Refuse rows of one name where the options do, else the note that says what became of them."""
    rows = sum(map(len, twice.values()))
    if options.duplicates == "refuse":
        more = f" and {len(twice) - _SHOWN:,} more" if len(twice) > _SHOWN else ""
        raise InputError(
            "a gene stands twice in the gene matrix",
            file=path,
            expected="every gene once",
            found=", ".join(sorted(twice)[:_SHOWN]) + more,
            fix="say what becomes of rows of one name with gene_duplicates: max (the row with the highest mean), "
            "mean, sum (of linear units) or first",
        )
    if options.duplicates == "sum" and not is_linear(unit):
        raise InputError(
            "rows of one gene cannot be summed",
            file=path,
            expected="a linear unit such as FPKM, TPM or counts",
            found=f"gene unit {unit}; {len(twice):,} genes in several rows, such as {min(twice)}",
            fix="say gene_duplicates: max, mean or first, or the unit if it is linear",
        )
    what = {
        "first": "the first row is used",
        "max": "the row with the highest mean over the cases is used",
        "mean": "their mean is used",
        "sum": "their sum is used",
    }[options.duplicates]
    return [f"{len(twice):,} genes stand in {rows:,} rows of {path.name}; {what}"]


def _chosen(group: list[int], options: GeneOptions, means: Means) -> tuple[int, list[int]]:
    """The row that names a gene, and the rows whose values it has."""
    if len(group) == 1 or options.duplicates in ("mean", "sum"):
        return group[0], group
    row = group[0]
    if options.duplicates == "max":
        row = group[int(np.argmax(np.nan_to_num(means(np.asarray(group, dtype=np.int64)), nan=-np.inf)))]
    return row, [row]


def _combined(
    group: Sequence[int], extras: dict[int, list[int]], options: GeneOptions
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Places and weights of a gene made of several rows; None for one made of one."""
    places = [place for row in group for place in (row, *extras.get(row, ()))]
    if len(places) == 1:
        return None
    weight = 1 / len(group) if options.duplicates == "mean" else 1
    return np.asarray(places, dtype=np.int64), np.full(len(places), weight, dtype=np.float32)


def _listed(plan: GenePlan, options: GeneOptions) -> GenePlan:
    """The genes of the gene list, in its order."""
    if options.gene_list is None:
        return plan
    path = Path(options.gene_list)
    asked = read_gene_list(path)
    places, missing = match_genes(asked, plan.gene_ids, plan.gene_columns.get(SYMBOL))
    if not places:
        raise InputError(
            "no gene of the gene list is in the gene file",
            file=path,
            expected=f"genes such as {', '.join(plan.gene_ids[:3])}",
            found=f"genes such as {', '.join(asked[:3])}",
            fix="name the genes as the gene file does (ids with or without version, or its symbols)",
        )
    note = f"{len(places):,} genes are kept by {path.name}"
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        note += f"; {len(missing):,} of its genes are not in {plan.path.name}: {shown}"
    return replace(plan.select(places), notes=(*plan.notes, note))


def _different(first: GenePlan, other: GenePlan) -> InputError:
    mine, theirs = set(first.gene_ids), set(other.gene_ids)
    only = [gene for gene in other.gene_ids if gene not in mine][:3]
    missing = [gene for gene in first.gene_ids if gene not in theirs][:3]
    found = f"{len(theirs):,} genes, {len(mine & theirs):,} of them the same"
    found += f"; only here: {', '.join(only)}" if only else ""
    found += f"; not here: {', '.join(missing)}" if missing else ""
    fix = "say gene_files: intersect to keep the common genes, or bring both to one naming (gene_versions: strip)"
    expected = f"the {len(mine):,} genes of {first.path.name}"
    return InputError("the gene files have different genes", file=other.path, expected=expected, found=found, fix=fix)


def _clean(column: str, value: str | None) -> str | None:
    value = (value or "").strip()
    # Entrez ids that went through a column of floats
    value = re.sub(r"^(\d+)\.0$", r"\1", value) if column == ENTREZ else value
    return value or None
