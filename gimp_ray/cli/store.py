"""The verbs on stores that are there: `gimp store merge`, `gimp info`."""

from __future__ import annotations

import json

import click

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group("store", context_settings=_HELP)
def store_group() -> None:
    """Work on stores that are there already."""


@store_group.command("merge", context_settings=_HELP)
@click.argument("stores", nargs=-1, required=True, metavar="STORE STORE ...")
@click.option("--out", required=True, help="The store to make: a path, or a URI such as s3://bucket/store.")
@click.option(
    "--genes",
    type=click.Choice(["same", "intersect", "union"]),
    default="intersect",
    show_default=True,
    help="Refuse other genes, keep those that all have, or keep all (0 where a store has no value).",
)
@click.option("--column", default="cohort", show_default=True, help="Column that says which store a case came from.")
@click.option(
    "--split-scheme",
    "split_schemes",
    multiple=True,
    default=("kfold",),
    show_default=True,
    help="kfold, repeated, fixed, site, leave_one_out:COLUMN; may be given again.",
)
@click.option("--folds", type=int, default=5, show_default=True, help="Of the k-fold schemes.")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Of all schemes.")
@click.option("--deep", is_flag=True, help="Compare every patch of the stores with its hash first.")
def merge(
    stores: tuple[str, ...],
    out: str,
    genes: str,
    column: str,
    split_schemes: tuple[str, ...],
    folds: int,
    split_seed: int,
    deep: bool,
) -> None:
    """Make one store of several, without copying a patch.

    The merged store points at the part files of the others: keep them, and move them together with it. Every case gets
    a column that says which store it came from, the folder's name unless the case table has the column already.

    \b
    Example:
      gimp store merge stores/BRCA stores/LUAD stores/LUSC --out stores/ALL --split-scheme leave_one_out:cohort
    """
    from gimp_ray.store.merge import merge_stores

    report = merge_stores(
        stores,
        out,
        genes=genes,
        cohort_column=column,
        split_schemes=split_schemes,
        split_seed=split_seed,
        folds=folds,
        deep=deep,
    )
    click.echo(str(report))


@click.command(context_settings=_HELP)
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the whole manifest.")
def info(store: str, as_json: bool) -> None:
    """What is in a store: cases, slides, patches a case, genes, encoder, splits, sizes. Reads no patch.

    \b
    Example:
      gimp info store
      gimp info s3://bucket/store --json | jq .class_counts
    """
    from gimp_ray.store.info import store_info

    found = store_info(store)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else str(found))
