"""The speed benchmark's figures as Markdown, a section for each part. Left out: measuring."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.common import Found, span, table

# of the machine that the page was measured on; a GPU's own table stands in its own section
NO_GPU = "no GPU could be had"


@dataclass(frozen=True)
class Target:
    """A figure that was wanted.

    Attributes:
        what: is measured.
        part: of the benchmark.
        cpu, gpu: what was wanted of it on 2 cores and on an H200; None where nothing was.
        of: the figure in the part's results.
        at_most: whether less is better.
        unit: behind the figure.
    """

    what: str
    part: str
    cpu: float | None
    gpu: float
    of: Callable[[Found], Found]
    at_most: bool = False
    unit: str = " x"


def _times(*keys: str) -> Callable[[Found], Found]:
    """The reference's seconds over ours under some keys."""

    def of(part: Found) -> Found:
        for key in keys:
            part = part[key]
        found: Found = part["times"]["reference"]
        return found

    return of


def _epochs(part: Found) -> Found:
    """Of the faster of the reference's two loaders."""
    found: Found = min(part["times"].values(), key=lambda one: one["median"])
    return found


def _attention_memory(part: Found) -> Found:
    """Ours over the package's, forward."""
    peak = part["forward"]["peak_mb"]
    return dict.fromkeys(("median", "min", "max"), peak["gimp_ray"] / peak["reference"])


def _exponent(key: str) -> Callable[[Found], Found]:
    return lambda part: dict.fromkeys(("median", "min", "max"), part[key])


def _apart(part: Found) -> Found:
    """Seconds of an epoch of the longest bags over those of the shortest."""
    by_bag = {int(patches): seconds for patches, seconds in part["epoch_seconds_by_bag"].items()}
    return dict.fromkeys(("median", "min", "max"), by_bag[max(by_bag)] / by_bag[min(by_bag)])


TARGETS = (
    Target("Nystrom attention, forward", "attention", 2, 4, _times("forward")),
    Target("its peak memory", "attention", None, 0.25, _attention_memory, True),
    Target("Nystrom attention, forward and backward", "attention", 1.5, 3, _times("forward, backward")),
    Target("pre-training step, batch in memory", "step", 1.5, 3, _times()),
    Target("its share of the rate of large matrix products", "limits", None, 0.35, lambda part: part["share"], unit=""),
    Target("pre-training epoch with reading, the faster of the peers' loaders", "epoch", 2, 8, _epochs),
    Target("fine-tuning step, a bag of 15,000", "finetune", 1.5, 4, _times("one")),
    Target("GroupMSA, 60,480 genes, batch 32, forward and backward", "genes", 2, 2, _times()),
    Target("peak memory of a pre-training step", "memory", 0.6, 0.5, lambda part: part["share"], True),
    Target("exponent of a step's seconds in L", "growth", 1.05, 1.05, _exponent("exponent_of_length"), True, ""),
    Target("exponent of a step's memory in L", "growth", 1.05, 1.05, _exponent("exponent_of_memory"), True, ""),
    Target("exponent of GroupMSA's seconds in G", "growth", 1.05, 1.05, _exponent("exponent_of_genes"), True, ""),
    # independence has no figure: a tenth is the spread of an epoch
    Target("an epoch of bags of 50,000 over one of bags of 8,000", "growth", 1.1, 1.1, _apart, True),
)


def sections(result: Found) -> dict[str, str]:
    """Markdown of every part that was measured, by section name; GPU figures have sections of their own."""
    about, scale = result["machine"], result["scale"]
    gpu = about["gpu"]
    on = f"{gpu}, {'bf16' if about['bf16'] else 'float32'}" if gpu else f"{about['cpu']}, {about['cores']} cores"
    note = f"{on}, torch {about['torch']}, {result['date']}: `{result['command']}`."
    suffix = "-gpu" if gpu else ""
    made = {part: make(result[part], scale) for part, make in _PARTS.items() if part in result}
    if all(target.part in result for target in TARGETS) and result["epoch"]["switch"] == "all":
        made = {"targets": _targets(result, bool(gpu))} | made
    return {f"speed-{part}{suffix}": f"{text}\n\n{note}" for part, text in made.items()}


def _targets(result: Found, on_gpu: bool) -> str:
    """What was wanted, and what was found, of every target."""
    rows = []
    for target in TARGETS:
        wanted = target.gpu if on_gpu else target.cpu
        bound = "at most" if target.at_most else "at least"
        cells = ["-", "-", ""] if wanted is None else _verdict(target, bound, wanted, target.of(result[target.part]))
        there = [] if on_gpu else [f"{bound} {target.gpu:g}{target.unit}", NO_GPU]
        rows.append([f"[{target.what}](#{_ANCHORS[target.part]})", *cells, *there])
    head = ["against the reference", "wanted", "measured", ""]
    return table(head if on_gpu else [*head, "wanted on an H200", "measured there"], rows)


def _verdict(target: Target, bound: str, wanted: float, found: Found) -> list[str]:
    met = found["median"] <= wanted if target.at_most else found["median"] >= wanted
    one = math.isclose(found["min"], found["max"])
    return [
        f"{bound} {wanted:g}{target.unit}",
        f"{found['median']:.2f}" if one else span(found),
        "met" if met else "missed",
    ]


def _attention(of: Found, scale: Found) -> str:
    rows = [
        [
            passes,
            *(_ms(of[passes]["seconds"][who]) for who in ("gimp_ray", "reference")),
            span(of[passes]["times"]["reference"]),
            *(f"{value:,.0f}" for value in of[passes].get("peak_mb", {}).values()),
        ]
        for passes in ("forward", "forward, backward")
    ]
    head = ["passes", "gimp_ray, ms", "nystrom-attention, ms", "times"]
    head += ["gimp_ray, MB", "nystrom-attention, MB"] if "peak_mb" in of["forward"] else []
    return (
        f"One layer, L = {scale['length']:,}, d = {scale['sizes']['dim']}, batch {scale['attention_size']}, the same "
        f"weights. Where both are the same function, outputs differ by {of['forward']['apart']:.1e} of the largest.\n\n"
        + table(head, rows)
    )


def _step(of: Found, scale: Found) -> str:
    rows = [
        [who, _ms(of["seconds"][who]), span(of["times"][who]) if who in of["times"] else "1"] for who in of["seconds"]
    ]
    return (
        f"Forward, losses, backward, clipping and AdamW on {scale['size']} windows of {scale['length']:,} in memory. "
        f"At the same weights the two losses differ by {of['apart']:.1e} of themselves (the package pads with "
        "zeros and scales the pseudo-inverse over the batch).\n\n"
        + table(["trainer", "ms a step", "times"], rows)
        + _gpu_memory(of)
    )


def _finetune(of: Found, scale: Found) -> str:
    names = {
        "one": f"a bag of {scale['bag']:,}",
        "uneven": "bags of " + ", ".join(f"{n:,}" for n in scale["bags"]) + ": read padded here, one by one there",
    }
    rows = [
        [
            names[key],
            *(_ms(of[key]["seconds"][who]) for who in ("gimp_ray", "reference")),
            span(of[key]["times"]["reference"]),
        ]
        for key in ("one", "uneven")
    ]
    return (
        "A step of fine-tuning on images alone. At the same weights the logits differ by "
        f"{of['one']['same']:.1e} of the largest where both are the same function, by {of['one']['apart']:.1e} on the "
        f"bag timed and by {of['uneven']['apart']:.1e} on the uneven ones (the package pads with zeros that it attends "
        "to, and scales the pseudo-inverse otherwise).\n\n"
        + table(["step on", "gimp_ray, ms", "reference, ms", "times"], rows)
        + _gpu_memory(of["one"])
    )


def _genes(of: Found, scale: Found) -> str:
    rows = [
        [who, _ms(of["seconds"][who]), span(of["times"][who]) if who in of["times"] else "1"] for who in of["seconds"]
    ]
    return (
        f"GroupMSA of {scale['genes']:,} genes, batch {scale['gene_batch']}, forward with backward; outputs differ by "
        f"{of['apart']:.1e} of the largest.\n\n" + table(["encoder", "ms", "times"], rows)
    )


def _memory(of: Found, scale: Found) -> str:
    rows = [[who, span(value, ",.0f")] for who, value in of["mb"].items()]
    return (
        f"Peak over model and optimiser of a pre-training step, {scale['memory_size']} windows of {scale['length']:,}, "
        "the batch included, each in a process of its own; ours over the reference's: "
        f"{span(of['share'])}.\n\n" + table(["trainer", "MB"], rows)
    )


def _epoch(of: Found, scale: Found) -> str:
    said = {"all": "", "skip-train-step": ", reading alone", "in-memory": ", one batch again and again"}[of["switch"]]
    rows = [
        [who, str(of["steps"][who]), span(of["seconds"][who]), span(of["times"][who]) if who in of["times"] else "1"]
        for who in of["seconds"]
    ]
    return (
        f"An epoch of {scale['cases']} bags of {scale['patches']:,}, windows of {scale['length']:,}{said}; files in "
        "the page cache. The reference reads whole float32 `.pt` bags with `torch.load` in a DataLoader of 0 and of 2 "
        "processes.\n\n" + table(["trainer", "steps", "seconds", "times"], rows)
    )


def _phases(of: Found, scale: Found) -> str:
    names = list(of["gimp_ray"])
    rows = [[name, *(f"{of[who][name] * 1e3:,.1f}" for who in of)] for name in names]
    rows.append(["all", *(f"{sum(of[who].values()) * 1e3:,.1f}" for who in of)])
    return (
        f"Milliseconds of a step of {scale['size']} windows, phases one after another; reading decodes as well. In a "
        "run reading goes ahead of the step and checkpoints are written beside it.\n\n" + table(["phase", *of], rows)
    )


def _growth(of: Found, scale: Found) -> str:
    def row(name: str, values: Found, digits: int) -> list[str]:
        return [name, ", ".join(f"{int(size):,}: {value:,.{digits}f}" for size, value in values.items())]

    rows = [
        [*row("seconds a step by L", of["seconds_by_length"], 2), f"{of['exponent_of_length']:.2f}"],
        [*row("peak MB of a step by L", of["mb_by_length"], 0), f"{of['exponent_of_memory']:.2f}"],
        [*row("seconds of GroupMSA by G", of["seconds_by_genes"], 3), f"{of['exponent_of_genes']:.2f}"],
        [*row("seconds an epoch by N_p", of["epoch_seconds_by_bag"], 2), ""],
    ]
    return table(["what", "measured", "exponent"], rows)


def _limits(of: Found, scale: Found) -> str:
    return (
        f"A pre-training step of {scale['size']} windows of {scale['length']:,} needs {of['gflop']:,.0f} GFLOP and "
        f"takes {span(of['seconds'])} s; large matrices are multiplied at {span(of['matmul_gflops'], ',.0f')} GFLOP/s. "
        f"The step reaches {100 * of['share']['median']:.0f} % of that rate ({100 * of['share']['min']:.0f} to "
        f"{100 * of['share']['max']:.0f})."
    )


def _profile(of: Found, scale: Found) -> str:
    made = []
    for name, rows in of.items():
        cells = [
            [f"`{row['operator']}`", f"{100 * row['share']:.0f} %", f"{row['ms']:,.0f}", str(row["calls"])]
            for row in rows
        ]
        made.append(f"{name.capitalize()}:\n\n" + table(["operator", "share", "ms", "calls"], cells))
    return (
        f"Operators of a step of {scale['size']} windows by their own time: of the reference; by the direct path, "
        "which every window took before; and by the path that masked windows take now.\n\n" + "\n\n".join(made)
    )


_ANCHORS = {
    "attention": "attention",
    "step": "a-pre-training-step",
    "memory": "memory-of-a-step",
    "finetune": "fine-tuning-on-whole-bags",
    "genes": "the-gene-encoder",
    "epoch": "a-whole-epoch",
    "growth": "how-cost-grows",
    "limits": "distance-to-the-limit",
}
_PARTS = {
    "attention": _attention,
    "step": _step,
    "memory": _memory,
    "finetune": _finetune,
    "genes": _genes,
    "epoch": _epoch,
    "phases": _phases,
    "growth": _growth,
    "limits": _limits,
    "profile": _profile,
}


def _gpu_memory(of: Found) -> str:
    if "peak_mb" not in of:
        return ""
    return (
        "\n\nPeak over what was there before, MB: " + ", ".join(f"{k} {v:,.0f}" for k, v in of["peak_mb"].items()) + "."
    )


def _ms(of: dict[str, float]) -> str:
    return span(of, ",.0f" if of["median"] > 0.02 else ",.2f", 1e3)
