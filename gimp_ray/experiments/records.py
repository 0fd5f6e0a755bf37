"""A sweep's own memory: one small JSON file a trial, here or in object storage.

    SWEEP/records/t003.json   name, number, params, status, reason, run, session, reports, lineage, inputs

`status` is `waiting` (begun or not), `done`, `stopped` (by the scheduler) or `failed`; the last three are never run
again. `run` is the trial's folder inside the sweep's. A report is an epoch, the metrics with their intervals, and the
seconds so far. `inputs` are those of the stages that were measured. Ray Tune's own state, which is pickled, is never
read. A record has one writer at a time: the trial's process while it runs, the sweep's command before and after.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from gimp_ray.errors import InputError
from gimp_ray.experiments.space import Params
from gimp_ray.io import storage

Record = dict[str, Any]
FINISHED = ("done", "stopped", "failed")


def new_record(number: int, params: Params) -> Record:
    """The record of trial `number` (from 0) with these config keys, not begun."""
    name = f"t{number:03d}"
    return {
        "name": name,
        "number": number,
        "params": params,
        "status": "waiting",
        "reason": None,
        "run": f"trials/{name}",
        "session": None,
        "reports": [],
        "lineage": [],
        "inputs": [],
    }


def read_records(sweep: str) -> list[Record]:
    """All records of a sweep, by number; none where it has not begun."""
    filesystem, root = storage.resolve(f"{sweep}/records")
    names = storage.retry_read(filesystem, root, functools.partial(storage.files_below, filesystem, root))
    found = [read_record(sweep, name.removesuffix(".json")) for name in names if name.endswith(".json")]
    return sorted(found, key=lambda record: int(record["number"]))


def read_record(sweep: str, name: str) -> Record:
    """One trial's record.

    Raises:
        InputError: the file is damaged.
    """
    file = f"{sweep}/records/{name}.json"
    filesystem, path = storage.resolve(file)
    text = storage.retry_read(filesystem, path, functools.partial(storage.read_bytes, filesystem, path))
    try:
        record: Record = json.loads(text)
    except ValueError as error:
        raise InputError(
            "a trial's record is damaged", file=file, found=str(error), fix="remove it, and the trial begins anew"
        ) from None
    return record


def write_record(sweep: str, record: Record) -> None:
    """Write a trial's record whole."""
    write_file(f"{sweep}/records/{record['name']}.json", (json.dumps(record, indent=1) + "\n").encode())


def write_file(uri: str, data: bytes) -> None:
    """Write a small file whole, in a folder that need not be there yet; `uri` is a path or URI."""
    filesystem, path = storage.resolve(uri)
    if storage.is_local(filesystem):
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    storage.retry_read(filesystem, path, functools.partial(storage.write_bytes, filesystem, path, data))


def run_of(sweep: str, record: Record) -> str:
    """The trial's run folder, where the sweep is now."""
    return f"{sweep}/{record['run']}"


def finished(record: Record) -> bool:
    """Whether the trial is over, well or not."""
    return record["status"] in FINISHED


def last_value(record: Record, metric: str) -> float | None:
    """A metric of the trial's last measurement."""
    if not record["reports"]:
        return None
    value: float | None = record["reports"][-1]["metrics"][metric]["value"]
    return value


def best_of(records: list[Record], metric: str) -> Record | None:
    """The trial that came to its end with the largest value; the first of equals."""
    done = [record for record in records if record["status"] == "done" and last_value(record, metric) is not None]
    return max(done, key=lambda record: (last_value(record, metric), -record["number"])) if done else None
