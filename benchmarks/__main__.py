"""Speed of pre-training and fine-tuning beside what people do otherwise: `python -m benchmarks [PART ...]`.

    attention   one Nystrom layer against the package nystrom-attention
    step        a pre-training step on a batch in memory against the reference trainer's
    memory      what such a step takes at its peak
    finetune    a fine-tuning step on whole bags
    genes       GroupMSA against a loop over its groups
    epoch       a whole epoch with reading, against the reference trainer with the peers' loader
    phases      a step's phases one after another: read, collate, to device, forward, backward, optimiser, checkpoint
    growth      seconds by L, by G and by patches of a bag
    limits      the step against the machine's matmul rate
    profile     operators of a step: the reference's, ours by the path that every bag can take, and by the one taken

Contestants take turns in one run; figures are medians with least and most. `--quick` shows in a minute that all of it
works, `--device cuda --bf16` measures a GPU, `--out FILE` writes JSON, `--docs` puts the tables into
docs/performance.md, `--from FILE` makes the tables of an earlier run's JSON anew. Of `epoch`, `--skip-train-step`
leaves reading alone and `--in-memory` leaves it out. The reference trainer is `_reference_model.py` with
`_reference_bags.py`. Other benchmarks are programs of their own: `store`, `engine`, `sweeps`, `whole_bag`,
`feed_cache`, `manifest`, `scaling`.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _speed_limits, _speed_parts, _speed_processes, _speed_tables
from benchmarks._speed_models import Sizes, Where
from benchmarks.common import (
    NOTHING_KEPT,
    Found,
    done,
    heading,
    parser,
    publish,
    ratios,
    run_alone,
    spread,
    synthetic_store,
    write_json,
)
from gimp_ray.config_files import load_config
from gimp_ray.store import CohortStore

OURS, PEER = _speed_parts.OURS, _speed_parts.PEER


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        sizes: of the model.
        length: L.
        attention_size, size, memory_size: samples of a batch: of attention, of a step, of the step whose memory counts.
        bag: patches of a whole bag; `bags` are those of a mini-batch of uneven ones.
        genes: G; `gene_batch` cases.
        cases: of an epoch, of `patches` patches each.
        lengths, numbers, bag_sizes: L, G and N_p by which cost grows.
        rounds, long_rounds: repeats, and those of epochs and processes.
    """

    sizes: Sizes = field(default_factory=Sizes)
    length: int = 6000
    attention_size: int = 1
    size: int = 4
    memory_size: int = 2
    bag: int = 15_000
    bags: tuple[int, ...] = (9_000, 12_000, 15_000, 24_000)
    genes: int = 60_480
    gene_batch: int = 32
    cases: int = 12
    patches: int = 15_000
    lengths: tuple[int, ...] = (1_500, 3_000, 6_000, 12_000, 24_000, 48_000)
    numbers: tuple[int, ...] = (7_560, 15_120, 30_240, 60_480)
    bag_sizes: tuple[int, ...] = (8_000, 15_000, 50_000)
    rounds: int = 5
    long_rounds: int = 3


# shows that all of it works
QUICK = Scale(
    Sizes(64, 32, 4, 16, 5, 2),
    length=128,
    bag=300,
    bags=(100, 200, 300),
    genes=1440,
    gene_batch=4,
    cases=8,
    patches=200,
    lengths=(64, 128),
    numbers=(720, 1440),
    bag_sizes=(100, 300),
    rounds=1,
    long_rounds=1,
)


@dataclass(frozen=True)
class Asked:
    """What a part is given: the scale, where it runs, which half of an epoch, and a folder to write in."""

    scale: Scale
    where: Where
    switch: str
    folder: Path

    @property
    def step(self) -> tuple[int, int, Sizes]:
        return self.scale.length, self.scale.size, self.scale.sizes

    def alone(self, what: str, **task: Any) -> Found:
        """A contestant's measurement in a process of its own; in this process in a quick run."""
        if self.scale is QUICK:
            with contextlib.redirect_stdout(sys.stderr):
                return _speed_processes.measure(what, **task)
        return run_alone("benchmarks._speed_processes", {"what": what} | task)

    def peak(self, who: str, length: int, size: int) -> float:
        """MB of a step in a process of its own, with an allocator that keeps nothing given back."""
        on = {"device": str(self.where.device), "bf16": self.where.bf16, "sizes": asdict(self.scale.sizes)}
        task = on | {"who": who, "length": length, "size": size}
        mb: float = run_alone("benchmarks._speed_limits", task, NOTHING_KEPT)["mb"]
        return mb


def memory(asked: Asked) -> Found:
    scale = asked.scale
    found: dict[str, list[float]] = {OURS: [], PEER: []}
    for _ in range(scale.long_rounds):
        for who, values in found.items():
            values.append(asked.peak(who, scale.length, scale.memory_size))
    return {"mb": {who: spread(of) for who, of in found.items()}, "share": ratios(found[OURS], found[PEER])}


def epoch(asked: Asked) -> Found:
    scale = asked.scale
    config, bags = make_cohort(asked, scale.patches, scale.length)
    seconds: dict[str, list[float]] = {OURS: [], f"{PEER}, loader 0": [], f"{PEER}, loader 2": []}
    steps = {}
    for number in range(scale.long_rounds):
        for name, values in seconds.items():
            who, _, loader = name.partition(", loader ")
            run = config | {"run": str(asked.folder / f"run-{number}")}
            one = asked.alone("epoch", who=who, config=run, bags=bags, loader=int(loader or 0), switch=asked.switch)
            values.append(one["seconds"])
            steps[name] = one["steps"]
    return {
        "switch": asked.switch,
        "steps": steps,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times": {name: ratios(values, seconds[OURS]) for name, values in seconds.items() if name != OURS},
    }


def phases(asked: Asked) -> Found:
    config, bags = make_cohort(asked, asked.scale.patches, asked.scale.length)
    made = config | {"run": str(asked.folder / "phases")}
    return {
        who: asked.alone("phases", who=who, config=made, bags=bags, steps=asked.scale.rounds) for who in (OURS, PEER)
    }


def growth(asked: Asked) -> Found:
    scale = asked.scale
    found = _speed_parts.growth(list(scale.lengths), list(scale.numbers), scale.sizes, scale.long_rounds, asked.where)
    by_length = {str(length): asked.peak(OURS, length, 1) for length in scale.lengths}
    by_bag: dict[str, list[float]] = {str(patches): [] for patches in scale.bag_sizes}
    made = {patches: make_cohort(asked, patches, scale.lengths[0]) for patches in scale.bag_sizes}
    for number in range(scale.long_rounds):
        for patches, (config, bags) in made.items():
            run = config | {"run": str(asked.folder / f"grown-{patches}-{number}")}
            one = asked.alone("epoch", who=OURS, config=run, bags=bags, loader=0, switch="all")
            by_bag[str(patches)].append(one["seconds"])
    return found | {
        "mb_by_length": by_length,
        "exponent_of_memory": _speed_parts.exponent(by_length),
        "epoch_seconds_by_bag": {name: spread(values)["median"] for name, values in by_bag.items()},
    }


PARTS: dict[str, Callable[[Asked], Any]] = {
    "attention": lambda a: _speed_parts.attention(
        a.scale.length, a.scale.attention_size, a.scale.sizes, a.scale.rounds, a.where
    ),
    "step": lambda a: _speed_parts.step(*a.step, a.scale.rounds, a.where),
    "memory": memory,
    "finetune": lambda a: {
        "one": _speed_parts.finetune([a.scale.bag], a.scale.sizes, a.scale.rounds, a.where),
        "uneven": _speed_parts.finetune(list(a.scale.bags), a.scale.sizes, a.scale.rounds, a.where),
    },
    "genes": lambda a: _speed_parts.genes(a.scale.genes, a.scale.gene_batch, a.scale.sizes, a.scale.rounds, a.where),
    "epoch": epoch,
    "phases": phases,
    "growth": growth,
    "limits": lambda a: _speed_limits.limits(*a.step, a.scale.rounds, a.where),
    "profile": lambda a: {who: _speed_limits.profiled(*a.step, a.where, who) for who in _speed_limits.PROFILED},
}


def make_cohort(asked: Asked, patches: int, length: int) -> tuple[Found, str]:
    """A run's config over a store of equally long bags, and a folder of `.pt` files of an epoch's bags."""
    scale, place = asked.scale, asked.folder / f"cohort-{patches}"
    bags = place / "pt"
    if not bags.exists():
        # a fold of five keeps three fifths for training
        made = synthetic_store(place, -(-scale.cases * 5 // 3), scale.sizes.in_dim, (patches, patches, patches))
        bags.mkdir()
        store = CohortStore.open(made)
        slides = {row["case_id"]: row for row in store.slides.to_pylist()}
        for case in sorted(store.split("kfold", 0).train)[: scale.cases]:
            bag = store.read_window(slides[case]["slide_id"], 0, slides[case]["n_patches"])
            torch.save(torch.from_numpy(np.asarray(bag, dtype=np.float32)), bags / f"{case}.pt")
    config = load_config(
        None,
        {
            "store": str(place / "store"),
            "genes.encoder": "none",
            "window.length": length,
            "model.dim": scale.sizes.dim,
            "model.heads": scale.sizes.heads,
            "model.dim_head": scale.sizes.dim // scale.sizes.heads,
            "model.landmarks": scale.sizes.landmarks,
            "model.residual_kernel": scale.sizes.kernel,
            "batch.cases_per_class": scale.size // 2,
            "batch.balance": "natural",
            "train.epochs": 1,
            "train.workers": 0,
            "train.log_every": 1,
            "train.use_gpu": asked.where.device.type == "cuda",
            "train.precision": "bf16" if asked.where.bf16 else "fp32",
            "log.progress": False,
        },
    )
    return config.model_dump(), str(bags)


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    asks = parser(__doc__, "quick", "rounds", "out", "docs", prog="python -m benchmarks")
    asks.add_argument("parts", nargs="*", metavar="PART", help="parts to measure; all of them without any")
    asks.add_argument("--device", default="cpu", help="cpu, or cuda")
    asks.add_argument("--bf16", action="store_true", help="under bf16 autocast, both contestants")
    switches = asks.add_mutually_exclusive_group()
    switches.add_argument("--skip-train-step", action="store_true", help="epoch: reading alone")
    switches.add_argument("--in-memory", action="store_true", help="epoch: one batch again and again")
    asks.add_argument("--from", type=Path, dest="earlier", help="measure nothing: tables of this JSON")
    options = asks.parse_args(given)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        asks.error(f"no part '{unknown[0]}'; parts are {', '.join(PARTS)}")
    result = json.loads(options.earlier.read_text(encoding="utf-8")) if options.earlier else measured(options, given)
    publish(_speed_tables.sections(result), options.docs)


def measured(options: argparse.Namespace, given: list[str]) -> Found:
    """The figures of the parts that were asked for; written after each part."""
    scale = QUICK if options.quick else Scale()
    if options.rounds:
        scale = Scale(**vars(scale) | {"rounds": options.rounds, "long_rounds": options.rounds})
    where = Where(torch.device(options.device), options.bf16)
    switch = "skip-train-step" if options.skip_train_step else "in-memory" if options.in_memory else "all"
    result = heading(asdict(scale)) | {"command": command_of(given)}
    result["machine"] |= {
        "gpu": torch.cuda.get_device_name() if where.device.type == "cuda" else None,
        "bf16": where.bf16,
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory(prefix="speed-benchmark-") as folder:
        asked = Asked(scale, where, switch, Path(folder))
        for part in options.parts or PARTS:
            result[part] = PARTS[part](asked)
            done(part)
            if options.out:
                write_json(options.out, result)
    return result


def command_of(arguments: list[str]) -> str:
    """The command that measures the same, without where its figures go."""
    kept = list(arguments)
    if "--out" in kept:
        del kept[kept.index("--out") : kept.index("--out") + 2]
    return " ".join(["python -m benchmarks", *(word for word in kept if word != "--docs" and "--out=" not in word)])


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    main()
