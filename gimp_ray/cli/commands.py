"""The command `gimp`: one verb a step, each with `--config FILE.yaml` and overrides by a key's dotted name.

Verbs only gather options and print; what they do is in `pipeline`, `cohort` and `doctor`. A refusal is printed with
its reason and its fix, and ends with exit code 2; failed checks end with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gimp_ray import __version__
from gimp_ray.cli.ingest import check, ingest
from gimp_ray.cli.options import ANY_KEYS, options_of, overrides_of, plain_values
from gimp_ray.cli.status import status
from gimp_ray.cli.store import info, store_group
from gimp_ray.cli.sweep import sweep
from gimp_ray.cli.table import table
from gimp_ray.config import Config
from gimp_ray.config_files import describe_keys, load_config, read_yaml
from gimp_ray.config_training import StageTrainConfig
from gimp_ray.errors import GimpError

Command = Callable[..., None]
KEYS_NOTE = "Any config key can be given by its dotted name, such as --train.lr 3e-4; `gimp keys` lists them all."


class _Group(click.Group):
    """Prints refusals instead of tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GimpError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Gene-induced multimodal pre-training (GiMP) of whole-slide images and RNA-seq on Ray.

    \b
    A first run:
      gimp synth --out cohort --cases 24 --median_patches 500
      gimp ingest --patches cohort/patches --genes cohort/genes.tsv --cases cohort/cases.csv --out store
      gimp run --store store --run runs/first --train.epochs 5 --window.length 512
    """


@main.command(context_settings=ANY_KEYS)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the source files to.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with these options.")
@click.pass_context
def synth(ctx: click.Context, out: Path, config: Path | None) -> None:
    """Write a synthetic cohort as the source files of other tools (CLAM .h5, gene matrix, case table).

    --cases N, --classes '[LUAD, LUSC]', --dim D, --genes N or a file of real expression, --tile-bank FILE of real
    tile embeddings, --median_patches, --min_patches, --max_patches, --tumour_fraction, --signal, --seed and the other
    fields of SynthOptions.

    \b
    Example:
      gimp synth --out cohort --cases 40 --median_patches 2000
    """
    from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

    tree = (read_yaml(config) if config else {}) | plain_values(overrides_of(ctx.args))
    if not str(tree.get("genes", "0")).isdigit():
        tree["genes_file"] = tree.pop("genes")
    result = write_synthetic_cohort(out, options_of(SynthOptions, tree, config))
    click.echo(
        f"wrote {result.n_cases} cases, {result.n_slides} slides, {result.n_patches} patches "
        f"of width {result.dim}, {result.n_genes} genes"
    )
    splits = f" --splits {result.splits}" if result.splits else ""
    click.echo(
        f"next: gimp ingest --patches {result.patches} --genes {result.genes} --cases {result.cases}{splits}"
        f" --gene-unit '{result.gene_unit}' --out STORE"
    )


def _run_verb(name: str, about: str, example: str, stage: str | None = None) -> None:
    """Add a verb that works on a run folder; `stage` is where its `--train.*` options go."""

    @main.command(name, context_settings=ANY_KEYS, help=f"{about}\n\n{KEYS_NOTE}\n\n\b\nExample:\n  {example}")
    @click.option("--store", help="The cohort store.")
    @click.option("--run", "run_dir", help="The run folder, or its s3:// URI; an existing one is continued.")
    @click.option("--config", type=click.Path(path_type=Path), help="YAML with config keys.")
    @click.pass_context
    def verb(ctx: click.Context, store: str | None, run_dir: str | None, config: Path | None) -> None:
        from gimp_ray import pipeline

        overrides, config = overrides_of(ctx.args), _fetched(config)
        if store is not None:
            overrides["store"] = store
        where = run_dir or (load_config(config).run if config else None)

        def resolve(overrides: dict[str, Any]) -> Config:
            return (
                load_config(config, overrides) if where is None else pipeline.load_run_config(where, overrides, config)
            )

        staged = {key for key in overrides if stage is not None and _for_stage(key, stage) != key}
        if staged:
            others = resolve({key: value for key, value in overrides.items() if key not in staged})
            section = others.trained_by.get(str(stage), str(stage))
            overrides = {_for_stage(key, section): value for key, value in overrides.items()}
        resolved = resolve(overrides)
        pipeline.run_folder_of(resolved)
        work = {
            "pretrain-genes": pipeline.pretrain_genes,
            "pretrain": pipeline.pretrain,
            "finetune": pipeline.finetune,
            "evaluate": pipeline.evaluate,
            "run": pipeline.run_all,
        }[name]
        run = work(resolved)
        outcome = run.record()["attempts"][-1]["status"]
        click.echo(f"{name}: {outcome}, see {run.place_of(run.path / 'summary.md')}")


_run_verb(
    "pretrain-genes",
    "Train the gene encoder on genes and labels of the training split.",
    "gimp pretrain-genes --store store --run runs/a --train.epochs 40",
    "genes",
)
_run_verb(
    "pretrain",
    "Pre-train GiMP: masked patch modelling and gene-induced triplets. Trains the gene encoder first where none is "
    "given (--genes.checkpoint FILE).",
    "gimp pretrain --store store --run runs/a --train.workers 2 --window.length 6000 --mask.ratio 0.5",
)
_run_verb(
    "finetune",
    "Fine-tune a pre-trained run on whole bags; the best epoch on validation is kept.",
    "gimp finetune --run runs/a --train.epochs 70",
    "finetune",
)
_run_verb(
    "evaluate",
    "Evaluate a fine-tuned run: predictions, intervals, baselines, figures.",
    "gimp evaluate --run runs/a",
)
_run_verb(
    "run", "All stages in order from one config, then evaluation and report.", "gimp run --config run.yaml --run runs/a"
)


@main.command(context_settings=ANY_KEYS)
@click.option("--run", "run_dir", required=True, help="A run folder with a trained model, or its s3:// URI.")
@click.option("--model", help="A model file or URI; the run's fine-tuned, else pre-trained one by default.")
@click.option("--store", help="The store to embed; the run's own by default.")
@click.option("--out", help="Parquet file or URI to write; RUN/embeddings.parquet by default.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML laid over the run's own config.")
@click.pass_context
def embed(
    ctx: click.Context, run_dir: str, model: str | None, store: str | None, out: str | None, config: Path | None
) -> None:
    """Write CLS_pat of every case of a store, from whole bags, as Parquet keyed by case.

    \b
    Example:
      gimp embed --run runs/a --store other-store --out other.parquet
    """
    from gimp_ray import pipeline
    from gimp_ray.runs.folder import RunFolder

    overrides = overrides_of(ctx.args) | ({"store": store} if store else {})
    resolved = pipeline.load_run_config(run_dir, overrides, _fetched(config))
    run = RunFolder(run_dir)
    file = model or run.place_of(run.model_file("finetune" if run.stage_done("finetune") else "pretrain"))
    click.echo(f"wrote {pipeline.embed(resolved, file, out or run.place_of(run.path / 'embeddings.parquet'))}")


@main.command(context_settings=ANY_KEYS)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the cohort, the store and the run.",
)
@click.option(
    "--short", is_flag=True, help="A smaller cohort and fewer epochs: does everything, proves nothing about quality."
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML with config keys to change.")
@click.pass_context
def demo(ctx: click.Context, out: Path, short: bool, config: Path | None) -> None:
    """The whole pipeline on a small synthetic cohort, on a local Ray.

    \b
    Example:
      gimp demo --out demo
    """
    from gimp_ray.cli.demo import run_demo

    run = run_demo(out, short, config, overrides_of(ctx.args))
    click.echo((run.path / "summary.md").read_text())
    click.echo(f"the run folder: {run.path}")


@main.command()
@click.option("--store", help="A store to open as well.")
@click.option("--address", help="A Ray cluster to ask for its resources.")
@click.option("--ray", "start_ray", is_flag=True, help="Also start a local Ray, which takes about ten seconds.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="YAML with a config; its store and cluster are checked."
)
def doctor(store: str | None, address: str | None, start_ray: bool, config: Path | None) -> None:
    """Is this machine, or cluster, fit? Each check says PASS, WARN or FAIL and what to do. Exit code 1 where one fails.

    \b
    Example:
      gimp doctor --store store
    """
    from gimp_ray.cli.doctor import format_checks, run_checks

    if config is not None:
        loaded = load_config(config)
        store, address = store or loaded.store, address or loaded.cluster.address
    checks = run_checks(store=store, address=address, start_ray=start_ray)
    click.echo(format_checks(checks))
    if any(one.status == "FAIL" for one in checks):
        sys.exit(1)


@main.command()
@click.option("--method", default="gimp", show_default=True, help="The method whose keys are listed.")
def keys(method: str) -> None:
    """List every config key of a method with its default and its meaning.

    \b
    Example:
      gimp keys --method mcat | grep method
    """
    for key, default, meaning in describe_keys(method):
        click.echo(f"{key:32} {default:14} {meaning}")


@main.command()
def methods() -> None:
    """List the methods (`method.name`) with what they need and their stages; your own module is named by its address.

    \b
    Example:
      gimp methods
    """
    from gimp_ray.methods import available

    for name, method in available().items():
        needs = ", ".join(method.needs)
        click.echo(f"{name:12} {method.title}{f' ({method.paper})' if method.paper else ''}")
        click.echo(f"{'':12} needs {needs}; targets {', '.join(method.kinds)}; stages {', '.join(method.stage_names)}")


def _fetched(file: Path | None) -> Path | None:
    """A file given by path or URI as a local path."""
    if file is None:
        return None
    from gimp_ray.io.mirror import local_file

    return local_file(file)


def _for_stage(key: str, stage: str) -> str:
    """In a verb of one stage `--train.epochs` means that stage's epochs."""
    name = key.removeprefix("train.")
    return f"{stage}.{key}" if key != name and name in StageTrainConfig.model_fields else key


main.add_command(ingest)
main.add_command(check)
main.add_command(info)
main.add_command(status)
main.add_command(sweep)
main.add_command(store_group)
main.add_command(table)

if __name__ == "__main__":
    main()
