"""What the engine adds to the step itself: `python -m benchmarks.engine [--quick] [--only PART] [--out FILE] [--docs]`.

Steps with the real feed against the same step on a batch that is in memory, with the memory both take; two workers on a
core each against one worker on one; what a checkpoint costs; how long a run stands still when a worker is killed;
memory over ten thousand steps. What is compared takes turns in one run. Writes JSON, prints tables, and with `--docs`
puts them into docs/performance.md. Left out: the step itself, kernels, storage.
"""

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import _engine_ray, _engine_steps
from benchmarks.common import (
    NOTHING_KEPT,
    Found,
    Spread,
    done,
    heading,
    parser,
    publish,
    ratios,
    span,
    spread,
    synthetic_store,
    table,
    write_json,
)
from gimp_ray.config import Config
from gimp_ray.config_files import load_config

PARTS = ("feed", "memory", "workers", "checkpoint", "recovery", "soak")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        cases: of the cohort; a case has a slide.
        patches: N of the median slide.
        dim: E, width of an embedding.
        length: L of a window.
        width: d of the model.
        landmarks: m.
        rounds: repeats.
        kills: of a worker.
        soak: steps of the long run.
    """

    cases: int = 40
    patches: int = 9000
    dim: int = 1024
    length: int = 6000
    width: int = 512
    landmarks: int = 256
    rounds: int = 2
    kills: int = 2
    soak: int = 10_000


QUICK = Scale(cases=24, patches=300, dim=64, length=128, width=32, landmarks=16, rounds=1, kills=1, soak=600)


def make_store(folder: Path, scale: Scale) -> Path:
    """A store of synthetic slides, without genes."""
    patches = (scale.patches * 2 // 3, scale.patches, scale.patches * 3 // 2)
    return synthetic_store(folder, scale.cases, scale.dim, patches)


def config_of(scale: Scale, store: Path, run: Path, **more: Any) -> Config:
    """Pre-training on images alone, B = 2."""
    tree = {
        "store": str(store),
        "run": str(run),
        "genes.encoder": "none",
        "window.length": scale.length,
        "model.dim": scale.width,
        "model.landmarks": scale.landmarks,
        "batch.cases_per_class": 1,
        "triplet.weight": 0,
        "train.workers": 0,
        "train.log_every": 1,
        "train.epochs": 100,
        "train.stop_after": 1,
        "log.progress": False,
    }
    return load_config(None, tree | {key.replace("__", "."): value for key, value in more.items()})


def feed(scale: Scale, store: Path, folder: Path) -> Found:
    """Steps with windows read from the store against the same steps on one batch that stays in memory."""
    found = _in_turn(scale, store, folder)
    batch_mb = _batch_mb(scale)
    means = {kind: [statistics.median(one["seconds_a_step"]) for one in of] for kind, of in found.items()}
    waits = [sum(one["data_wait"]) / sum(one["seconds_a_step"]) for one in found["feed"]]
    more = [a["peak_mb"] - b["peak_mb"] for a, b in zip(found["feed"], found["memory"], strict=True)]
    return {
        "seconds_a_step": {kind: spread(values) for kind, values in means.items()},
        "share": ratios(means["memory"], means["feed"]),
        "data_wait": spread(waits),
        "batch_mb": batch_mb,
        "more_peak_mb": spread(more),
        "more_batches": spread(more, 1 / batch_mb),
    }


def memory(scale: Scale, store: Path, folder: Path) -> Found:
    """What the feed holds beside the step: few steps with an allocator that keeps nothing, which makes them slow."""
    few = make_store(folder / "few", Scale(**asdict(scale) | {"cases": 14}))
    found = _in_turn(scale, few, folder / "held", NOTHING_KEPT)
    peaks = {kind: [one["peak_mb"] for one in of] for kind, of in found.items()}
    batch_mb = _batch_mb(scale)
    more = [a - b for a, b in zip(peaks["feed"], peaks["memory"], strict=True)]
    return {
        "peak_mb": {kind: spread(of) for kind, of in peaks.items()},
        "batch_mb": batch_mb,
        "more_batches": spread(more, 1 / batch_mb),
    }


def _in_turn(
    scale: Scale, store: Path, folder: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, list[Found]]:
    """What steps with the feed and steps on one batch found, in turn."""
    found: dict[str, list[Found]] = {"feed": [], "memory": []}
    cores, threads = [sorted(_cores())], len(_cores())
    for number in range(scale.rounds):
        for kind in ("feed", "memory") if number % 2 else ("memory", "feed"):
            run = config_of(scale, store, folder / f"{kind}-{number}", train__epochs=1, train__stop_after=None)
            found[kind] += _engine_steps.measure(kind, run.model_dump(), cores, threads, environment)
    return found


def _batch_mb(scale: Scale) -> float:
    return 2 * scale.length * scale.dim * 2 / 1e6


def workers(scale: Scale, store: Path, folder: Path) -> Found:
    """Cases a second of two workers on a core each, against one worker on one core."""
    first, second = sorted(_cores())[:2]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(scale.rounds):
        for count in (1, 2) if number % 2 else (2, 1):
            cores = [[first], [second]][:count]
            run = config_of(scale, store, folder / f"workers-{count}-{number}", train__epochs=1, train__stop_after=None)
            rates[count].append(_engine_steps.measure("feed", run.model_dump(), cores, 1)[0]["cases_per_s"])
    doubled = [2 * rate for rate in rates[1]]
    return {"cases_per_s": {str(n): spread(of) for n, of in rates.items()}, "efficiency": ratios(rates[2], doubled)}


def checkpoint(scale: Scale, store: Path, folder: Path) -> Found:
    """What writing a checkpoint after every epoch, the default, takes of an epoch."""
    run = config_of(scale, store, folder / "checkpoint", train__epochs=3, train__stop_after=None)
    cores, threads = [sorted(_cores())], len(_cores())
    (one,) = _engine_steps.measure("feed", run.model_dump(), cores, threads)
    epoch = statistics.median(one["seconds_a_step"]) * (len(one["seconds_a_step"]) + 2) / 3
    taken = [a + b / len(_cores()) for a, b in zip(one["blocked"], one["written"], strict=True)]
    return {
        "cases": scale.cases,
        "epoch_seconds": epoch,
        "blocked_seconds": spread(one["blocked"]),
        "cpu_seconds_beside": spread(one["written"]),
        "share": spread(taken, 1 / epoch),
    }


def recovery(scale: Scale, store: Path, folder: Path) -> Found:
    """Seconds from the kill of one of two workers to the next step."""
    small = Scale(**asdict(scale) | {"length": 128, "width": 32, "landmarks": 16})
    run = config_of(small, store, folder / "recovery", train__workers=2, train__epochs=100_000, train__stop_after=None)
    more = {"train.max_failures": 20, "checkpoint.every_epochs": 1, "train.use_gpu": False}
    return _engine_ray.recovery(load_config(None, more, base=run.model_dump()), folder / "recovering", scale.kills)


def soak(scale: Scale, store: Path, folder: Path) -> Found:
    """Memory of a worker over many steps of a tiny model."""
    tiny = Scale(**asdict(scale) | {"length": 64, "width": 16, "landmarks": 8})
    run = config_of(tiny, store, folder / "soak", train__workers=1, train__stop_after=None, train__log_every=10)
    steps_an_epoch = max(1, scale.cases * 3 // 10)
    epochs = -(-scale.soak // steps_an_epoch)
    more = {"train.epochs": epochs, "checkpoint.every_epochs": max(1, epochs // 50), "train.use_gpu": False}
    return _engine_ray.soak(
        load_config(None, more, base=run.model_dump()), folder / "soaking", scale.soak, scale.soak // 5
    )


def sections(result: Found, command: str) -> dict[str, str]:
    """Markdown of every part that was measured."""
    on, made = result["machine"], {}
    if "feed" in result:
        of = result["feed"]
        rows = [[name, _s(of["seconds_a_step"][name])] for name in ("memory", "feed")]
        made["feed"] = (
            f"{table(['step on', 'seconds a step'], rows)}\n\nSteps/s with the feed over steps/s on a batch in memory: "
            f"{_s(of['share'])}. Waiting for data: {100 * of['data_wait']['median']:.1f} % of the time. Peaks of the "
            f"processes' own memory differ by {_s(of['more_batches'])} batches of {of['batch_mb']:.1f} MB, what the "
            "allocator keeps of the model's activations included, which differs from run to run."
        )
    if "memory" in result:
        of = result["memory"]
        rows = [[name, _s(of["peak_mb"][name])] for name in ("memory", "feed")]
        made["memory"] = (
            f"{table(['step on', 'peak of own memory, MB'], rows)}\n\nWith an allocator that keeps nothing "
            f"(`MALLOC_MMAP_THRESHOLD_=1048576`) the feed holds {_s(of['more_batches'])} batches of "
            f"{of['batch_mb']:.1f} MB beyond the step on one batch in memory; pages of the store that are mapped, and "
            "that the kernel drops where memory is short, come on top."
        )
    if "workers" in result:
        of = result["workers"]
        rows = [[name, _s(of["cases_per_s"][name])] for name in ("1", "2")]
        made["workers"] = (
            f"{table(['workers, a core each', 'cases/s'], rows)}\n\nTwo workers over twice one: {_s(of['efficiency'])}."
        )
    if "checkpoint" in result:
        of = result["checkpoint"]
        made["checkpoint"] = (
            f"A checkpoint stops training for {_s(of['blocked_seconds'])} s and takes {_s(of['cpu_seconds_beside'])} s "
            f"of a core beside it: {100 * of['share']['median']:.2f} % of an epoch of {of['epoch_seconds']:.0f} s "
            f"({of['cases']} cases, {on['cores']} cores)."
        )
    if "recovery" in result:
        of = result["recovery"]
        made["recovery"] = (
            f"From SIGKILL of one of two workers to the next step: {_s(spread(of['seconds']))} s ({of['kills']} kills)."
        )
    if "soak" in result:
        of = result["soak"]
        made["soak"] = (
            f"{of['steps']:,} steps of a tiny model on a Ray worker: {of['early_mb']:.1f} MB of its own after warm-up, "
            f"{of['late_mb']:.1f} MB at the end ({100 * of['growth']:+.2f} %); it read at most "
            f"{of['object_store_mb']:.0f} MB of Ray's object store, which spilled{'' if of['spilled'] else ' nothing'}."
        )
    note = f"{on['cpu']}, {on['cores']} cores, torch {on['torch']}, {result['date']}: `{command}`."
    return {f"engine-{name}": f"{text} {note}" for name, text in made.items()}


def main() -> None:
    asks = parser(__doc__, "quick", "out", "docs")
    asks.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    options = asks.parse_args()
    scale = QUICK if options.quick else Scale()
    result = heading(asdict(scale))
    with tempfile.TemporaryDirectory(prefix="engine-benchmark-") as place:
        folder = Path(place)
        store = make_store(folder, scale)
        for part in options.only or PARTS:
            result[part] = globals()[part](scale, store, folder)
            done(part)
    if options.out:
        write_json(options.out, result)
    command = "python -m benchmarks.engine" + (" --quick" if options.quick else "")
    publish(sections(result, command), options.docs)


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def _s(of: Spread) -> str:
    return span(of, ".3g")


if __name__ == "__main__":
    main()
