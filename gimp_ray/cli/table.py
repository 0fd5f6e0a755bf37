"""The verb that makes tables of runs: `gimp table`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gimp_ray.cli.options import ANY_KEYS, overrides_of


@click.command(context_settings=ANY_KEYS)
@click.argument("table")
@click.option("--store", help="The cohort store.")
@click.option("--out", required=True, help="Folder of the table and its runs; one that is there is continued.")
@click.option("--folds", type=int, help="The first so many folds of the split scheme; all of them by default.")
@click.option("--seeds", type=int, help="Seeds 0, 1, ... of every row and fold; 3 by default.")
@click.option("--row", "rows", multiple=True, help="Only this row, by name; may be given several times.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with config keys of every row.")
@click.option("--concurrent", type=int, help="Runs at a time; as many as the cluster has room for by default.")
@click.option("--cpus_per_run", type=float, default=1.0, show_default=True, help="CPUs of a run.")
@click.option("--gpus_per_run", type=float, help="GPUs of a run, such as 0.25; 1 by default where there are any.")
@click.option("--dry-run", is_flag=True, help="List what is missing, and run and write nothing.")
@click.pass_context
def table(
    ctx: click.Context,
    table: str,
    store: str | None,
    out: str,
    folds: int | None,
    seeds: int | None,
    rows: tuple[str, ...],
    config: Path | None,
    concurrent: int | None,
    cpus_per_run: float,
    gpus_per_run: float | None,
    dry_run: bool,
) -> None:
    """A table of methods or settings over folds and seeds. TABLE is table1, table2 or a YAML file.

    Runs what is missing on the Ray cluster, uses what is there, and writes table.md, table.csv, table.tex, table.png
    and metrics.json. Config keys (--train.epochs 20) hold for every row; what a row says itself wins. Exit code 1 where
    runs are missing at the end.

    \b
    Example:
      gimp table table1 --store store --out tables/one --folds 5 --seeds 3 --dry-run
      gimp table my-table.yaml --store store --out tables/mine --concurrent 2 --window.length 1024
    """
    from gimp_ray.config_files import flatten, read_yaml
    from gimp_ray.experiments.grid import Resources
    from gimp_ray.experiments.spec import build_table, chosen_rows, load_table
    from gimp_ray.experiments.table import make_table, missing_text, plan_table
    from gimp_ray.io.mirror import local_file

    spec = load_table(table)
    tree = spec.model_dump()
    # keys of the command line win over the file, and both over the table
    given = flatten(read_yaml(local_file(config))) if config is not None else {}
    given |= overrides_of(ctx.args) | ({"store": store} if store else {})
    tree["base"] = flatten(tree["base"]) | given
    tree |= {name: value for name, value in (("folds", folds), ("seeds", seeds)) if value is not None}
    spec = build_table(tree, table)
    if rows:
        spec = chosen_rows(spec, list(rows))
    planned = plan_table(spec, out)
    if dry_run:
        click.echo(missing_text(planned))
        return
    for name, why in planned.left_out.items():
        click.echo(f"left out: {name}: {why}")
    click.echo(f"table: {len(planned.missing)} of {len(planned.cells)} runs to do")
    result = make_table(planned, Resources(concurrent, cpus_per_run, gpus_per_run))
    for one in result["missing"]:
        click.echo(f"missing: {one['row']}, fold {one['fold']}, seed {one['seed']}: {one['why']}", err=True)
    click.echo(f"table: {'incomplete' if result['missing'] else 'done'}, see {planned.out}/table.md")
    if result["missing"]:
        sys.exit(1)
