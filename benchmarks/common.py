"""What all benchmarks share: timing contestants side by side, the machine, processes, tables, and the command line."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.work import usable_cpus
from gimp_ray.store import CohortStore
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "performance.md"
# glibc hands every larger block back at once, so that a process has only the memory that it uses
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
Found = dict[str, Any]
Spread = dict[str, float]


def alternate(contestants: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; each round runs all of them, in an order that moves on.

    A contestant is called with the number of the round. One round before is not counted, nor is giving back the memory
    of what a contestant returns.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            started = time.perf_counter()
            result = contestants[name](max(number, 0))
            taken = time.perf_counter() - started
            del result
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def spread(values: Sequence[float], scale: float = 1.0) -> Spread:
    """Median, least and most of some values times `scale`."""
    scaled = [value * scale for value in values]
    return {"median": statistics.median(scaled), "min": min(scaled), "max": max(scaled)}


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """Spread of the quotient of two contestants, round by round: what slowed one in a round slowed the other too."""
    return spread([a / b for a, b in zip(of, to, strict=True)])


def memory_of(field: str, pid: int | str = "self") -> int:
    """Bytes of a process: VmRSS (now), VmHWM (most since the reset), RssAnon (its own, without mapped files and what is
    shared), RssShmem (shared; of a Ray worker the object store's pages that it has read).
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def forget_peak() -> int:
    """Start VmHWM anew; gives VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of("VmRSS")


def machine() -> Found:
    """The processor, its cores and memory, and the versions of what reads, computes and writes."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("numpy", "pyarrow", "h5py", "torch")}


def heading(scale: Found) -> Found:
    """The beginning of every result: date, machine, scale."""
    return {"date": datetime.date.today().isoformat(), "machine": machine(), "scale": scale}


def run_alone(module: str, task: Found, environment: Mapping[str, str] | None = None) -> Found:
    """What `module` prints as its last line when it runs as a program with `task` as its only argument."""
    command = [sys.executable, "-m", module, json.dumps(task)]
    variables = os.environ | dict(environment or {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=variables)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """The environment with some variables changed."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_store(folder: Path, out: str | Path, genes: Path | None = None, **options: Any) -> CohortStore:
    """The store at `out` of a cohort: `patches/` and `cases.csv` in `folder`."""
    ingest_cohort(
        patches=folder / "patches",
        genes=genes,
        cases=folder / "cases.csv",
        out=out,
        options=IngestOptions(progress=False, **options),
    )
    return CohortStore.open(out)


def synthetic_store(folder: Path, cases: int, dim: int, patches: tuple[int, int, int]) -> Path:
    """A store of synthetic slides without genes; `patches` of the smallest, the median and the largest slide."""
    least, median, most = patches
    options = SynthOptions(
        cases=cases, genes=50, dim=dim, min_patches=least, median_patches=median, max_patches=most, seed=0
    )
    write_synthetic_cohort(folder / "sources", options)
    make_store(folder / "sources", folder / "store")
    return folder / "store"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, ["---"] * len(head), *rows])


def span(of: Spread, form: str = ",.2f", scale: float = 1.0) -> str:
    """`median (least to most)`, each times `scale` and in one format."""
    median, least, most = (format(of[key] * scale, form) for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def write_json(path: Path, result: Found) -> None:
    """Write `result` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(path.suffix + ".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.replace(path)


def replace_section(path: Path, name: str, markdown: str) -> None:
    """Put `markdown` between the two comments that mark section `name`, at the end of the file where there are none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = path.read_text(encoding="utf-8")
    section = f"{begin}\n{markdown.strip()}\n{end}"
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


_OPTIONS: dict[str, dict[str, Any]] = {
    "quick": {"action": "store_true", "help": "small and soon done: shows that it works, not how fast"},
    "rounds": {"type": int, "help": "repeats of everything"},
    "out": {"type": Path, "help": "write the results as JSON"},
    "docs": {"action": "store_true", "help": "put the tables into the documentation"},
}


def parser(about: str | None, *options: str, **more: Any) -> argparse.ArgumentParser:
    """A benchmark's command line with some of `--quick`, `--rounds`, `--out` and `--docs`."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, **more)
    for name in options:
        made.add_argument(f"--{name}", **_OPTIONS[name])
    return made


def publish(sections: Mapping[str, str], docs: bool, page: Path = DOCS) -> None:
    """Print sections of Markdown, and put them into a page."""
    for name, text in sections.items():
        print(f"\n## {name}\n\n{text}")
        if docs:
            replace_section(page, name, text)


def done(what: str) -> None:
    """Say on the standard error that a part is done."""
    print(f"{what}: done", file=sys.stderr, flush=True)
