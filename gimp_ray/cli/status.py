"""The verb on runs that are there: `gimp status`."""

from __future__ import annotations

import json

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every attempt and all figures of the last lines.")
def status(run: str, as_json: bool) -> None:
    """How a run is going: stage, progress, last loss, attempts, failures with their reason. RUN is a folder or URI.

    Reads only: it may be asked while the run goes on, after a crash, and from another machine. Exit code 0 whatever the
    state is; 2 for a folder that is no run's.

    \b
    Example:
      gimp status runs/a
      gimp status s3://bucket/runs/a --json | jq .state
    """
    from gimp_ray.runs.status import format_status, run_status

    found = run_status(run)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else format_status(found))
