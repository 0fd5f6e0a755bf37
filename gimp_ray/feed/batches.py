"""From a plan to a worker's batches: Ray Data streams plan rows (or, behind the same switch, the windows themselves).

One row of the dataset is one rank's mini-batch, or its next 64 where the plan alone travels, since a row costs Ray some
20 ms whatever is in it. Rows stand one after another in the steps' order, rank by rank, each in a block of its own, so
that with `preserve_order` Ray hands row i to rank i mod n. One dataset spans all the steps a stage has left: it
starts at the checkpointed position, for as many ranks as there are then, which is the whole of resuming in the middle
of an epoch and of a change of the number of workers. Arrays travel as plain binary columns with their shape and type
beside them, never as Ray's ragged tensor extension. Both modes give the same batches, bit for bit.

Left out: what a row means (`plan.py`), what is read (`windows.py`), device transfer (the engine).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from gimp_ray.feed.plan import Plan, Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.io.ahead import read_ahead

Batches = Generator[tuple[Row, Arrays], None, None]
ReadIn = Literal["worker", "ray_data"]


class Source(Protocol):
    """What the feed needs of a task: its plan and its reads."""

    @property
    def plan(self) -> Plan: ...

    def read(self, row: Row) -> Arrays: ...


Factory = Callable[..., Source]
ROWS_A_TASK = 16  # of windows carried by Ray Data: a task costs more than a row
STEPS_A_ROW = 64  # of a rank, where windows are read in the worker


def direct_batches(source: Source, start: int, rank: int, world_size: int, ahead: int) -> Batches:
    """Batches of a rank from position `start` on, without Ray."""
    plan = source.plan
    steps = plan.steps(start, plan.positions, world_size)
    rows = (plan.row(step, rank, world_size, start) for step in range(steps))
    return read_ahead(((row, source.read(row)) for row in rows), ahead)


def plan_dataset(factory: Factory, arguments: Mapping[str, Any], start: int, world_size: int, read_in: ReadIn) -> Any:
    """The Ray dataset of a stage's remaining steps.

    Args:
        factory: an importable function that makes the source; called again in Ray's tasks where they read.
        arguments: its JSON-like keyword arguments.
        start: position of the stage to go on from.
        world_size: number of ranks.
        read_in: whether rows carry the plan alone or the windows as well.
    """
    import ray

    # a callable dataset is made in the controller, where the driver's context does not hold
    ray.data.DataContext.get_current().target_max_block_size = 1
    plan = factory(**arguments).plan
    together = STEPS_A_ROW if read_in == "worker" else 1
    rows = -(-plan.steps(start, plan.positions, world_size) // together) * world_size
    # plan rows are cheap: one long task, in a process that never imports torch; windows are read by many
    blocks = 1 if read_in == "worker" else max(1, rows // ROWS_A_TASK)
    source = (factory, json.dumps(dict(arguments))) if read_in == "ray_data" else None
    make = functools.partial(_encode_rows, ray.put(plan), source, start, world_size, together)
    return ray.data.range(max(rows, world_size), override_num_blocks=blocks).map_batches(
        make, batch_size=None, batch_format="numpy"
    )


def shard_batches(shard: Any, source: Source, start: int, rank: int, ahead: int) -> Batches:
    """Batches of a rank from its shard of `plan_dataset`, beginning at position `start` even where the shard begins
    earlier.

    Raises:
        RuntimeError: the shard gave another rank's row, or left one out.
    """

    def batches() -> Batches:
        expected = start
        for table in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            for row, arrays in _decode(table):
                if row.begin < start:
                    continue
                if (row.begin, row.rank) != (expected, rank):
                    raise RuntimeError(
                        f"rank {rank} expected its mini-batch at position {expected} "
                        f"and was given one of rank {row.rank} at {row.begin}"
                    )
                expected = row.end
                yield row, source.read(row) if arrays is None else arrays
                del arrays  # or they would be alive beside the next

    return read_ahead(batches(), ahead)


@functools.lru_cache(maxsize=8)
def _cached_source(factory: Factory, arguments: str) -> Source:
    return factory(**json.loads(arguments))


@functools.lru_cache(maxsize=8)
def _fetched(plan: Any) -> Plan:
    import ray

    return ray.get(plan)


def _encode_rows(
    plan: Any,
    source: tuple[Factory, str] | None,
    start: int,
    world_size: int,
    together: int,
    batch: dict[str, np.ndarray],
) -> Iterator[pa.Table]:
    reader = None if source is None else _cached_source(*source)
    made = _fetched(plan)
    steps = made.steps(start, made.positions, world_size)
    for number in batch["id"]:
        first, rank = int(number) // world_size * together, int(number) % world_size
        # a stage without anything left still has a row for each rank, which nobody asks for
        rows = [made.row(step, rank, world_size, start) for step in range(first, min(first + together, steps))]
        yield _encode([(row, None if reader is None else reader.read(row)) for row in rows])


ARRAYS = ("case", "slide", "start", "mask_seed")


def _encode(batches: list[tuple[Row, Arrays | None]]) -> pa.Table:
    """One row of the dataset: some mini-batches of a rank."""
    encoded = pa.array([], pa.struct([]))
    if batches:
        encoded = pa.concat_tables([_encode_one(row, arrays) for row, arrays in batches]).to_struct_array()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return pa.table({"batches": pa.ListArray.from_arrays(pa.array([0, len(batches)], pa.int32()), encoded)})


def _encode_one(row: Row, arrays: Arrays | None) -> pa.Table:
    fields = dict(vars(row))
    payload: dict[str, Any] = {name: fields.pop(name) for name in ARRAYS}
    payload |= {f"batch.{name}": value for name, value in (arrays or {}).items()}
    header = {
        "row": fields,
        "carried": arrays is not None,
        "arrays": {name: [value.dtype.str, list(value.shape)] for name, value in payload.items()},
    }
    columns: dict[str, Any] = {"header": pa.array([json.dumps(header)])}
    for name, value in payload.items():
        columns[name] = pa.array([np.ascontiguousarray(value).reshape(-1).view(np.uint8).data], type=pa.large_binary())
    return pa.table(columns)


def _decode(table: pa.Table) -> Iterator[tuple[Row, Arrays | None]]:
    """The mini-batches of one row of the dataset."""
    encoded = table["batches"].chunk(0).flatten()
    for number in range(len(encoded)):
        yield _decode_one(encoded, number)


def _decode_one(encoded: pa.StructArray, number: int) -> tuple[Row, Arrays | None]:
    header = json.loads(encoded.field("header")[number].as_py())
    arrays = {
        name: np.frombuffer(encoded.field(name)[number].as_buffer(), dtype=np.dtype(dtype)).reshape(shape)
        for name, (dtype, shape) in header["arrays"].items()
    }
    row = Row(**header["row"], **{name: arrays[name] for name in ARRAYS})  # type: ignore[arg-type]
    carried = {name.removeprefix("batch."): value for name, value in arrays.items() if name.startswith("batch.")}
    return row, carried if header["carried"] else None
