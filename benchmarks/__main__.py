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
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _speed_limits, _speed_parts, _speed_tables
from benchmarks._speed_models import Sizes, Where
from benchmarks._speed_processes import run_alone
from benchmarks.common import machine, ratios, replace_section, spread, write_json
from gimp_ray.config_files import load_config
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.store import CohortStore
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
PARTS = ("attention", "step", "memory", "finetune", "genes", "epoch", "phases", "growth", "limits", "profile")
OURS, PEER = _speed_parts.OURS, _speed_parts.PEER
Found = dict[str, Any]


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


def attention(asked: Asked) -> Found:
    scale = asked.scale
    return _speed_parts.attention(scale.length, scale.attention_size, scale.sizes, scale.rounds, asked.where)


def step(asked: Asked) -> Found:
    scale = asked.scale
    return _speed_parts.step(scale.length, scale.size, scale.sizes, scale.rounds, asked.where)


def finetune(asked: Asked) -> Found:
    scale = asked.scale
    return {
        "one": _speed_parts.finetune([scale.bag], scale.sizes, scale.rounds, asked.where),
        "uneven": _speed_parts.finetune(list(scale.bags), scale.sizes, scale.rounds, asked.where),
    }


def genes(asked: Asked) -> Found:
    scale = asked.scale
    return _speed_parts.genes(scale.genes, scale.gene_batch, scale.sizes, scale.rounds, asked.where)


def memory(asked: Asked) -> Found:
    scale, where = asked.scale, asked.where
    common = {"device": str(where.device), "bf16": where.bf16, "length": scale.length, "size": scale.memory_size}
    found: dict[str, list[float]] = {OURS: [], PEER: []}
    for _ in range(scale.long_rounds):
        for who, values in found.items():
            values.append(run_alone(what="memory", who=who, sizes=asdict(scale.sizes), **common)["mb"])
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
            one = run_alone(
                what="epoch", who=who, config=run, bags=str(bags), loader=int(loader or 0), switch=asked.switch
            )
            values.append(one["seconds"])
            steps[name] = one["steps"]
    return {
        "switch": asked.switch,
        "steps": steps,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times": {name: ratios(values, seconds[OURS]) for name, values in seconds.items() if name != OURS},
    }


def phases(asked: Asked) -> Found:
    scale = asked.scale
    config, bags = make_cohort(asked, scale.patches, scale.length)
    made = config | {"run": str(asked.folder / "phases")}
    return {
        who: run_alone(what="phases", who=who, config=made, bags=str(bags), steps=scale.rounds) for who in (OURS, PEER)
    }


def growth(asked: Asked) -> Found:
    scale, where = asked.scale, asked.where
    found = _speed_parts.growth(list(scale.lengths), list(scale.numbers), scale.sizes, scale.long_rounds, where)
    by_length = {
        str(length): run_alone(
            what="memory",
            who=OURS,
            device=str(where.device),
            bf16=where.bf16,
            length=length,
            size=1,
            sizes=asdict(scale.sizes),
        )["mb"]
        for length in scale.lengths
    }
    by_bag: dict[str, list[float]] = {str(patches): [] for patches in scale.bag_sizes}
    made = {patches: make_cohort(asked, patches, scale.lengths[0]) for patches in scale.bag_sizes}
    for number in range(scale.long_rounds):
        for patches, (config, bags) in made.items():
            run = config | {"run": str(asked.folder / f"grown-{patches}-{number}")}
            one = run_alone(what="epoch", who=OURS, config=run, bags=str(bags), loader=0, switch="all")
            by_bag[str(patches)].append(one["seconds"])
    return found | {
        "mb_by_length": by_length,
        "exponent_of_memory": _speed_parts.exponent(by_length),
        "epoch_seconds_by_bag": {name: spread(values)["median"] for name, values in by_bag.items()},
    }


def limits(asked: Asked) -> Found:
    scale = asked.scale
    return _speed_limits.limits(scale.length, scale.size, scale.sizes, scale.rounds, asked.where)


def profile(asked: Asked) -> Found:
    scale = asked.scale
    return {
        who: _speed_limits.profiled(scale.length, scale.size, scale.sizes, asked.where, who)
        for who in _speed_limits.PROFILED
    }


def make_cohort(asked: Asked, patches: int, length: int) -> tuple[Found, Path]:
    """A store of equally long bags and a run's config over it, and the same bags as float32 `.pt` files."""
    scale, place = asked.scale, asked.folder / f"cohort-{patches}"
    bags = place / "pt"
    if not bags.exists():
        # a fold of five keeps three fifths for training
        cases = -(-scale.cases * 5 // 3)
        options = SynthOptions(
            cases=cases,
            genes=50,
            dim=scale.sizes.in_dim,
            min_patches=patches,
            median_patches=patches,
            max_patches=patches,
            seed=0,
        )
        write_synthetic_cohort(place / "sources", options)
        sources = place / "sources"
        ingest_cohort(
            patches=sources / "patches",
            genes=None,
            cases=sources / "cases.csv",
            out=place / "store",
            options=IngestOptions(progress=False),
        )
        _write_bags(place / "store", bags, scale.cases)
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
    return config.model_dump(), bags


def _write_bags(store: Path, bags: Path, cases: int) -> None:
    """Bags of the store's training cases as float32 tensors, as many as an epoch has."""
    bags.mkdir(parents=True)
    opened = CohortStore.open(store)
    train = sorted(opened.split("kfold", 0).train)[:cases]
    slides = {row["case_id"]: row for row in opened.slides.to_pylist()}
    for case in train:
        row = slides[case]
        bag = opened.read_window(row["slide_id"], 0, row["n_patches"])
        torch.save(torch.from_numpy(np.asarray(bag, dtype=np.float32)), bags / f"{case}.pt")


def about(where: Where) -> Found:
    """The machine, with the GPU where one is measured."""
    gpu = torch.cuda.get_device_name() if where.device.type == "cuda" else None
    return machine() | {"gpu": gpu, "bf16": where.bf16, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to measure; all of them without any")
    parser.add_argument("--quick", action="store_true", help="small and soon done: shows that it works, not how fast")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast, both contestants")
    switches = parser.add_mutually_exclusive_group()
    switches.add_argument("--skip-train-step", action="store_true", help="epoch: reading alone")
    switches.add_argument("--in-memory", action="store_true", help="epoch: one batch again and again")
    parser.add_argument("--rounds", type=int, help="repeats of everything")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--from", type=Path, dest="earlier", help="measure nothing: tables of this JSON")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part '{unknown[0]}'; parts are {', '.join(PARTS)}")
    result = json.loads(options.earlier.read_text(encoding="utf-8")) if options.earlier else measured(options)
    for name, text in _speed_tables.sections(result).items():
        print(f"\n## {name}\n\n{text}")
        if options.docs:
            replace_section(DOCS, name, text)


def measured(options: argparse.Namespace) -> Found:
    """The figures of the parts that were asked for; written after each part."""
    scale = QUICK if options.quick else Scale()
    if options.rounds:
        scale = Scale(**vars(scale) | {"rounds": options.rounds, "long_rounds": options.rounds})
    where = Where(torch.device(options.device), options.bf16)
    switch = "skip-train-step" if options.skip_train_step else "in-memory" if options.in_memory else "all"
    result: Found = {
        "date": datetime.date.today().isoformat(),
        "command": command_of(sys.argv[1:]),
        "machine": about(where),
        "scale": asdict(scale),
    }
    with tempfile.TemporaryDirectory(prefix="speed-benchmark-") as folder:
        asked = Asked(scale, where, switch, Path(folder))
        for part in options.parts or PARTS:
            run: Callable[[Asked], Found] = globals()[part]
            result[part] = run(asked)
            print(f"{part}: done", file=sys.stderr, flush=True)
            if options.out is not None:
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
