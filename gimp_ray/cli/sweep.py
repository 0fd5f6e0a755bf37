"""The verb that searches config keys: `gimp sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gimp_ray.cli.options import ANY_KEYS, overrides_of, plain_values


@click.command(context_settings=ANY_KEYS)
@click.option("--store", help="The cohort store.")
@click.option("--run", "run_dir", help="Folder of the sweep, or its s3:// URI; an existing one is continued.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML of the sweep (base, space, search, ...), or a run's config that every trial starts from.",
)
@click.option(
    "--space",
    type=click.Path(path_type=Path),
    help="YAML: config key -> {uniform: [low, high]} | {loguniform: ...} | {randint: ...} | {choice: [...]} | ...",
)
@click.option("--preset", help="A space by name: masking_ratio, window, margin, lr, or paper for all four.")
@click.option("--search", help="random, grid or optuna.")
@click.option("--scheduler", help="none, asha, median or pbt.")
@click.option("--objective", help="probe or finetune.")
@click.option("--trials", type=int, help="How many trials.")
@click.option("--concurrent", type=int, help="Trials at a time; as many as the cluster has room for by default.")
@click.option(
    "--metric",
    help="On validation; of a class accuracy, auroc, ...; of survival c_index.",
)
@click.pass_context
def sweep(
    ctx: click.Context,
    store: str | None,
    run_dir: str | None,
    config: Path | None,
    space: Path | None,
    **given: Any,
) -> None:
    """Search config keys with Ray Tune: by default masking ratio, window length L, margin and learning rate.

    The same command goes on with a sweep that was killed; no trial that is over runs again. Any config key can be given
    by its dotted name and holds for every trial, and any other setting of a sweep by its name (--grace 5).

    \b
    Example:
      gimp sweep --store store --run sweeps/a --trials 8 --train.epochs 20
      gimp sweep --config sweep.yaml --store store --run sweeps/b --scheduler asha
    """
    from gimp_ray.config_files import read_yaml
    from gimp_ray.experiments.search import read_sweep, search
    from gimp_ray.experiments.sweep import own_settings
    from gimp_ray.io.mirror import local_file
    from gimp_ray.io.storage import as_location

    typed, overrides = own_settings(overrides_of(ctx.args))
    settings = plain_values(typed) | {key: value for key, value in given.items() if value is not None}
    if space is not None:
        settings["space"] = read_yaml(local_file(space))
    overrides |= {key: value for key, value in {"store": store, "run": run_dir}.items() if value is not None}
    base, resolved = read_sweep(config, overrides, settings)
    search(base, resolved)
    uri = as_location(str(base.run))
    click.echo(f"sweep: done, see {uri}/sweep.md, {uri}/trials.parquet and {uri}/best.yaml")
