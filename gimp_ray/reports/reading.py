"""The files of a run folder that a report is made of. What is missing is None or empty; a damaged file is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.io.storage import is_uri
from gimp_ray.runs.folder import STAGES, RunFolder

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class RunData:
    """A run folder in memory."""

    path: Path
    place: str
    """the folder as the user named it"""
    config: dict[str, Any]
    environment: dict[str, Any]
    record: dict[str, Any]
    """`run.json`"""
    logs: dict[str, Lines]
    """stage -> lines of its metrics log, stages in order"""
    metrics: dict[str, Any] | None
    predictions: pa.Table | None
    embeddings: dict[str, pa.Table]
    """`finetune`, `pretrain` -> CLS_pat by case"""

    @property
    def name(self) -> str:
        return PurePosixPath(self.place).name if is_uri(self.place) else self.path.resolve().name

    @property
    def transductive(self) -> bool:
        """Whether pre-training saw cases that are reported on."""
        recorded = (self.metrics or {}).get("transductive")
        return bool(self.setting("split.transductive") if recorded is None else recorded)

    def setting(self, key: str) -> Any:
        """A config value by its dotted key, None where it is not set."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(run_dir: str | Path) -> RunData:
    """Read what there is of a run folder; of one in object storage, its copy here.

    Raises:
        InputError: the folder does not exist, or a file in it cannot be read.
    """
    run = RunFolder(run_dir)
    if not run.path.is_dir():
        raise InputError("the run folder does not exist", file=run.place, fix="give the folder of a run")
    tables = {"finetune": "embeddings.parquet", "pretrain": "embeddings_pretrain.parquet"}
    embeddings = {name: _table(run.evaluation / file) for name, file in tables.items()}
    return RunData(
        path=run.path,
        place=run.place,
        config=_yaml(run.config_file),
        environment=_json(run.path / "environment.json") or {},
        record=_json(run.record_file) or {},
        logs={stage: read_lines(run.metrics_log(stage)) for stage in STAGES if run.metrics_log(stage).exists()},
        metrics=_json(run.evaluation / "metrics.json"),
        predictions=_table(run.evaluation / "predictions.parquet"),
        embeddings={name: table for name, table in embeddings.items() if table is not None},
    )


def vectors(table: pa.Table, column: str = "cls_pat") -> NDArray[np.float32]:
    """A list column as (rows, width) float32."""
    lists = table[column].combine_chunks()
    rows = len(lists)
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(rows, -1 if rows else 0)


def _json(file: Path) -> Any:
    return read_json(file) if file.exists() else None


def _yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError("the file is not valid YAML", file=file, found=str(error)) from error
    return tree if isinstance(tree, dict) else {}


def _table(file: Path) -> pa.Table | None:
    if not file.exists():
        return None
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            "the table cannot be read", file=file, found=str(error), fix="evaluate the run again"
        ) from error
