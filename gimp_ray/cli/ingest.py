"""The verbs that make and check stores: `gimp ingest`, `gimp check`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click

from gimp_ray.cli.options import ANY_KEYS, options_of, overrides_of, plain_values
from gimp_ray.config_files import load_config, read_yaml
from gimp_ray.errors import ConfigError


@click.command(context_settings=ANY_KEYS)
@click.option(
    "--patches",
    type=click.Path(path_type=Path),
    help="Folder of patch embeddings: CLAM, TRIDENT, STAMP, TANGLE, npy, npz, Parquet, zarr.",
)
@click.option(
    "--genes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Gene matrix (CSV, TSV, Parquet, HDF5, h5ad, Xena, cBioPortal), or folder of GDC files; may be given again.",
)
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    metavar="NAME=FILE",
    help="A further matrix of cases and named features, stored as modality NAME: cnv=cnv.tsv; may be given again.",
)
@click.option(
    "--cases",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Case table: CSV, TSV, CLAM's, cBioPortal's, GDC's; given again, tables are joined by case.",
)
@click.option(
    "--sample-sheet",
    type=click.Path(path_type=Path),
    help="Which gene file or sample belongs to which case: GDC's sample sheet.",
)
@click.option("--out", help="The store to make or to add to: a path, or a URI such as s3://bucket/store.")
@click.option(
    "--splits",
    type=click.Path(path_type=Path),
    help="Split table (case_id, part, fold, scheme), or CLAM's split files.",
)
@click.option("--strict", is_flag=True, default=None, help="Refuse where anything would be left out.")
@click.option("--dry-run", is_flag=True, help="Inspect everything, show the plan, write nothing.")
@click.option("--ray", help="Spread the work over the Ray cluster at this address; `auto`, or `local` to start one.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with these options.")
@click.pass_context
def ingest(ctx: click.Context, config: Path | None, dry_run: bool, ray: str | None, **given: Any) -> None:
    """Make a cohort store of patch embeddings, gene files and case tables, or add to one what is new in them.

    The report lists every case, slide and file, kept or left out with its reason. Every further option of
    docs/store.md can be given by its name: --gene-unit FPKM, --slides DX1, --split-schemes '[kfold, site]', ...

    \b
    Example:
      gimp ingest --patches FEATURES --genes fpkm.tsv --cases cases.csv --out store --gene-unit FPKM --dry-run
      gimp ingest --patches TRIDENT_JOB --encoder uni_v1 --genes GDC_DOWNLOAD --sample-sheet gdc_sample_sheet.tsv
        --cases clinical.tsv --label-column project_id --slides DX1 --out s3://bucket/store
    """
    from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort, plan_ingest
    from gimp_ray.ingest.work import RayWork, WorkPool

    tree = (
        (read_yaml(config) if config else {})
        | {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v not in (None, ())}
        | plain_values(overrides_of(ctx.args))
    )
    if isinstance(tree.get("vectors"), list):
        tree["vectors"] = dict(_named(text) for text in tree["vectors"])
    places = {name: tree.pop(name, None) for name in ("patches", "genes", "cases", "out", "splits", "sample_sheet")}
    for name in ("cases", "out"):
        if places[name] is None:
            raise ConfigError(
                f"--{name} was not given", expected=f"--{name} PATH", found="nothing", fix="see `gimp ingest --help`"
            )
    ray = ray or tree.pop("ray", None)
    paths = {name: _path(value) for name, value in places.items() if name != "out"}
    options = options_of(IngestOptions, tree, config)
    if dry_run:
        click.echo(str(plan_ingest(out=places["out"], options=options, **paths)))  # type: ignore[arg-type]
        return
    report = ingest_cohort(
        out=places["out"],  # type: ignore[arg-type]
        options=options,
        on_plan=lambda plan: click.echo(f"{plan}\n"),
        make_work=functools.partial(RayWork, ray) if ray else WorkPool,
        **paths,  # type: ignore[arg-type]
    )
    click.echo(str(report))


def _named(text: str) -> tuple[str, Path]:
    """`cnv=cnv.tsv` as the name and the file."""
    name, equals, file = text.partition("=")
    if not equals or not file:
        what, fix = "--vector names no file", "such as --vector cnv=cnv.tsv"
        raise ConfigError(what, expected="--vector NAME=FILE", found=text, fix=fix)
    return name, Path(file)


def _path(value: Any) -> Any:
    """Paths of plain data: one, several, or none."""
    if isinstance(value, list | tuple):
        return [Path(item) for item in value]
    return None if value is None else Path(value)


@click.command()
@click.argument("store", required=False)
@click.option("--store", "named", help="The store, instead of the argument.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with a config; its store is checked.")
@click.option("--deep", is_flag=True, help="Also hash and scan every embedding.")
def check(store: str | None, named: str | None, config: Path | None, deep: bool) -> None:
    """Check a store: schemas, counts, hashes, splits, orphan files. Exit code 1 where something is wrong.

    \b
    Example:
      gimp check store --deep
    """
    from gimp_ray.store.check import check_store

    store = store or named or (load_config(config).store if config else None)
    if store is None:
        raise ConfigError("no store was given", expected="gimp check STORE", found="nothing", fix="name the store")
    report = check_store(store, deep=deep)
    click.echo(str(report))
    if not report.ok:
        sys.exit(1)
