"""Markdown tables of a summary: results, metrics by class or label, time by stage, and the settings of the run.

The caption of every table of results names a transductive run as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gimp_ray.reports.reading import Lines, RunData

TRANSDUCTIVE = (
    "**Transductive run: pre-training saw the images and genes of the reported cases (not their labels). "
    "Do not compare with runs that did not.**"
)
# kind of target -> its metrics
METRICS_OF = {
    "class": {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "auroc": "AUROC",
    },
    "labels": {"auroc": "AUROC, mean over labels", "average_precision": "average precision, mean over labels"},
    "survival": {"c_index": "C-index"},
}
# what the paper states: config key -> what it is, the paper's value
PAPER_STATES = {
    "window.length": ("window length L, patches", 6000),
    "mask.ratio": ("share of the window that is masked", 0.5),
    "triplet.margin": ("triplet margin", 0.8),
    "train.epochs": ("epochs of pre-training", 100),
    "train.lr": ("learning rate of pre-training", 1e-4),
    "finetune.train.epochs": ("epochs of fine-tuning", 70),
}
# what the paper does not state: config key -> what it is
PAPER_LEAVES_OPEN = {
    "genes.encoder": "gene encoder",
    "genes.fragments": "gene fragments, N_f",
    "genes.groups": "gene groups, N_gr",
    "genes.top_genes": "genes kept, best score first (0: all)",
    "genes.select_by": "score of a gene over the training cases",
    "genes.order": "layout of the genes in fragments",
    "genes.log": "log2(x + 1) of expression (not set: by its unit), then z-score on training cases",
    "genes.train.epochs": "epochs of the gene encoder",
    "genes.train.lr": "learning rate of the gene encoder",
    "model.dim": "width d of CLS_img and CLS_ge",
    "model.layers": "Nystrom attention layers",
    "model.heads": "attention heads",
    "model.dim_head": "width of a head",
    "model.landmarks": "landmarks m",
    "mask.reduction": "reconstruction loss: mean or literal sum",
    "mask.weight": "weight of the reconstruction loss",
    "triplet.mining": "which triplets count",
    "triplet.average": "triplet loss averaged over",
    "triplet.normalize": "CLS_pat normalised before the triplet loss",
    "triplet.weight": "weight of the triplet loss",
    "batch.classes": "classes in a mini-batch, P",
    "batch.cases_per_class": "cases of each, K",
    "batch.balance": "how often a case is seen",
    "train.weight_decay": "weight decay",
    "train.warmup": "share of steps with a warm-up",
    "target.kind": "kind of target",
    "target.columns": "columns of the case table that are predicted (none: the label, or follow-up)",
    "finetune.init": "fine-tuning starts from",
    "finetune.freeze_genes": "gene encoder frozen in fine-tuning",
    "finetune.hidden": "hidden width of the head",
    "finetune.batch_size": "bags in a mini-batch of fine-tuning",
    "finetune.train.lr": "learning rate of fine-tuning (not set: as pre-training)",
    "finetune.select": "epoch chosen on validation by",
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_table(metrics: dict[str, Any], transductive: bool) -> str:
    """All methods side by side, caption first."""
    names = METRICS_OF[kind_of(metrics)]
    rows = [[row["method"], *(interval_text(row.get(name)) for name in names)] for row in metrics.get("rows", [])]
    return f"{caption(metrics, transductive)}\n\n{markdown_table(['method', *names.values()], rows)}"


def kind_of(metrics: dict[str, Any] | None) -> str:
    """The kind of target, `class` where the metrics do not name one."""
    return str((metrics or {}).get("kind", "class"))


def detail_table(metrics: dict[str, Any], transductive: bool) -> str | None:
    """Metrics by class or by label, caption first; None for survival."""
    methods = metrics["rows"]
    if kind_of(metrics) == "class":
        what, classes = "Recall by class", list(metrics.get("classes", []))
        head = ["method", *classes]
        rows = [
            [row["method"], *(interval_text((row.get("recall") or {}).get(name)) for name in classes)]
            for row in methods
        ]
    elif kind_of(metrics) == "labels":
        what, head = "AUROC by label", ["label", "positive cases, of those known", *(row["method"] for row in methods)]
        rows = [
            [
                label,
                f"{first['n_positive']} of {first['n_known']}",
                *(interval_text(row["labels"][label]["auroc"]) for row in methods),
            ]
            for label, first in methods[0]["labels"].items()
        ]
    else:
        return None
    return f"{what}. {caption(metrics, transductive)}\n\n{markdown_table(head, rows)}"


def caption(metrics: dict[str, Any], transductive: bool) -> str:
    """Which cases, split and intervals, and whether the run was transductive."""
    parts = {"test": "Test", "val": "Validation"}
    text = (
        f"{parts.get(metrics.get('part', ''), metrics.get('part', ''))} cases of fold {metrics.get('fold', '?')} "
        f"({metrics.get('scheme', '?')}), n = {metrics.get('n_cases', '?')}. 95 % confidence interval "
        f"over patients in brackets ({metrics.get('resamples', '?')} bootstrap resamples)."
    )
    if kind_of(metrics) == "survival" and metrics.get("rows"):
        text += f" {metrics['rows'][0]['n_events']} of the cases had an event."
    absent = (metrics.get("left_out") or {}).get(metrics.get("part"), 0)
    if absent:
        text += f" {absent} further cases without a known target are not counted."
    return f"{text} {TRANSDUCTIVE}" if transductive else text


def interval_text(interval: dict[str, Any] | None) -> str:
    """`0.912 [0.85, 0.96]`, or why there is no number."""
    if not interval or interval.get("value") is None:
        reason = (interval or {}).get("reason")
        return f"not defined ({reason})" if reason else "-"
    text = f"{interval['value']:.3f}"
    if interval.get("low") is None:
        return text
    return f"{text} [{interval['low']:.3f}, {interval['high']:.3f}]"


def stages_table(run: RunData) -> str | None:
    """Epochs and time of every stage."""
    recorded = run.record.get("stages") or {}
    names = [*run.logs, *(name for name in recorded if name not in run.logs)]
    rows = []
    for name in names:
        lines = run.logs.get(name, [])
        entry = recorded.get(name) if isinstance(recorded.get(name), dict) else {}
        seconds = (entry or {}).get("seconds") or stage_seconds(lines)
        epochs = 1 + max((int(line["epoch"]) for line in lines if line.get("kind") == "epoch"), default=-1)
        rows.append([name, epochs or "-", duration_text(seconds), (entry or {}).get("status", "not finished")])
    return markdown_table(["stage", "epochs", "time", "state"], rows) if rows else None


def stage_seconds(lines: Lines) -> float | None:
    """Time spent in a stage's epochs; from first to last line where epochs were not timed."""
    timed = [float(line["seconds"]) for line in lines if line.get("kind") == "epoch" and "seconds" in line]
    if timed:
        return sum(timed)
    times = [float(line["time"]) for line in lines if "time" in line]
    return max(times) - min(times) if times else None


def duration_text(seconds: float | None) -> str:
    """Seconds as hours, minutes or seconds."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def given_table(run: RunData) -> str:
    """What the paper states beside what this run used; differences in bold."""
    rows = []
    for key, (what, paper) in PAPER_STATES.items():
        here = run.setting(key)
        if here is not None:
            rows.append([what, f"{paper:g}", f"{here:g}" if here == paper else f"**{here:g}**", f"`{key}`"])
    return markdown_table(["setting", "paper", "here", "config key"], rows)


def choices_table(run: RunData) -> str:
    """What the paper leaves open, and what was chosen."""
    rows = [
        [what, "not set" if (value := run.setting(key)) is None else value, f"`{key}`"]
        for key, what in PAPER_LEAVES_OPEN.items()
        if key.rpartition(".")[2] in (run.setting(key.rpartition(".")[0]) or {})
    ]
    return markdown_table(["choice", "here", "config key"], rows)
