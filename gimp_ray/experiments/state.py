"""What there is of a table's runs: which are done and why the others are not, what they took, and runs that were made
with other settings, which a table refuses to use.

Left out: which runs there should be (`cells.py`), and their figures (`reading.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gimp_ray.config import Config
from gimp_ray.config_files import build_config, differences, read_yaml
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.experiments.cells import Cell, Grid, Step
from gimp_ray.runs.folder import RunFolder, read_json
from gimp_ray.store import CohortStore


def missing(steps: Iterable[Step]) -> dict[str, str]:
    """Folders of steps that are not done, with the reason."""
    found = {step.place: why_missing(step) for step in steps}
    return {place: why for place, why in found.items() if why is not None}


def needed(grid: Grid, places: Iterable[str]) -> list[Step]:
    """The steps of these folders and those they need that are not done, what is needed first."""
    steps = grid.shared | {cell.step.place: cell.step for cell in grid.cells}
    ordered: dict[str, Step] = {}

    def add(place: str) -> None:
        for before in steps[place].needs:
            if before not in ordered and why_missing(steps[before]) is not None:
                add(before)
        ordered[place] = steps[place]

    for place in places:
        if place not in ordered:
            add(place)
    return list(ordered.values())


def why_missing(step: Step) -> str | None:
    """Why a step is not done, None where it is."""
    run = RunFolder(step.place)
    run.pull()
    if not run.config_file.exists():
        return "not begun"
    stage = "genes" if step.does == "genes" else "finetune"
    if not run.stage_done(stage):
        attempts = run.record().get("attempts") or [{}]
        return f"stage {stage} is not finished, last attempt: {attempts[-1].get('status', 'unknown')}"
    if step.does == "genes":
        return None
    return _not_evaluated(run, step.config)


def _not_evaluated(run: RunFolder, config: Config) -> str | None:
    if not (run.evaluation / "predictions.parquet").exists() or not (run.evaluation / "metrics.json").exists():
        return "not evaluated"
    metrics, evaluate = read_json(run.evaluation / "metrics.json"), config.evaluate
    beside = [missing_modality(row["method"]) for row in metrics["rows"][1:]]
    notes = " ".join(metrics.get("notes", ()))  # say why a row beside the model's could not be made
    if evaluate.reference_rows and None not in beside and "reference row" not in notes:
        return "evaluated without the reference rows"
    lacking = [modality for modality in evaluate.missing if modality not in beside]
    if lacking and "evaluate.missing" not in notes:
        return f"evaluated without the row for missing {lacking[0]}"
    return None


def missing_modality(method: str) -> str | None:
    """The modality that is missing in a row of `evaluate.missing`; None for a reference row."""
    return next((name for name in ("images", "genes") if method.endswith(f", {name} missing")), None)


def check_same(cells: Iterable[Cell], store: CohortStore) -> None:
    """Refuse runs that are there and were made with other settings or of another store.

    Raises:
        ConfigError: names the run, the key and both values.
        InputError: the store's content is another.
    """
    for cell in cells:
        run = RunFolder(cell.step.place)
        if not run.config_file.exists():
            continue
        old = build_config(read_yaml(run.config_file), run.config_file)
        changed = {
            key: values
            for key, values in differences(old, cell.step.config).items()
            if _portable(values[0]) != _portable(values[1])
        }
        if changed:
            key, (before, now) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more: {', '.join(list(changed)[1:])})" if len(changed) > 1 else ""
            raise ConfigError(
                f"the run of row '{cell.row.name}', fold {cell.fold}, seed {cell.seed} was made with another "
                f"'{key}'{more}",
                file=run.place,
                expected=str(now),
                found=str(before),
                fix="give the settings it was made with, another --out, or remove the run's folder",
            )
        fingerprint = run.record().get("store", {}).get("fingerprint")
        if fingerprint is not None and fingerprint != store.fingerprint:
            raise InputError(
                f"the run of row '{cell.row.name}', fold {cell.fold}, seed {cell.seed} is of another store",
                file=run.place,
                expected=f"fingerprint {store.fingerprint} ({store.path})",
                found=f"fingerprint {fingerprint}",
                fix="give the store it was made with, or another --out",
            )


def seconds_of(cell: Cell) -> float:
    """What a cell took in all, with what it shares with others, by the records of the runs; 0 before it ran."""
    own = _seconds(cell.step.place, None)
    for place in cell.step.needs:
        own += _seconds(place, ("genes", "pretrain"))
        if cell.row.after is not None:
            config = RunFolder(place).config_file
            encoder = read_yaml(config).get("genes", {}).get("checkpoint") if config.exists() else None
            own += _seconds(encoder.rpartition("/")[0], ("genes",)) if encoder else 0.0
    return own


def _seconds(place: str, stages: tuple[str, ...] | None) -> float:
    run = RunFolder(place)
    run.pull()
    recorded: dict[str, Any] = run.record().get("stages") or {}
    return sum(float(entry.get("seconds", 0)) for name, entry in recorded.items() if stages is None or name in stages)


def _portable(value: Any) -> Any:
    """A file of the table as every copy of the table names it."""
    return value.rsplit("/", maxsplit=5)[1:] if isinstance(value, str) and value.endswith(".safetensors") else value
