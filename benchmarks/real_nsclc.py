"""GiMP's parts on real TCGA lung expression: `python benchmarks/real_nsclc.py COMMAND --data DIR --out FILE.json`.

Commands: `subtype-genes` (LUAD against LUSC from expression), `luad-mutations` (TP53 and STK11 from expression, at the
paper's full gene count), `pipeline` (every stage on real genes and real tile embeddings). Each writes its numbers as
JSON and its section of docs/results.md.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _gene_fits import NetSettings
from _gene_folds import LUAD_FILE, SUBTYPE_FILE, mutation_cohort, subtype_cohort
from _gene_rows import REFIT, measure
from _tables import circumstances, gene_table, replace_section, write_json

from gimp_ray.errors import GimpError

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("TP53", "STK11")

# Found by cross-validation inside the training and validation parts of fold 0 (docs/results.md says what was tried).
GROUP_MSA = NetSettings("3,000 genes", select_by="f_score", order="score", mixup=1.0)
GROUP_MSA_SMALL = replace(GROUP_MSA, name="1,000 genes", top_genes=1000, num_fragments=200)
# Fewer cases and a fainter signal than the subtype: a smaller step, less mixing.
MUTATION_SMALL = replace(GROUP_MSA_SMALL, lr=1e-3, mixup=0.4)
MUTATION_ALL = replace(MUTATION_SMALL, name="all genes", top_genes=0, num_fragments=1008, num_groups=24)
# As published for PORPOISE and MCAT: no mixup, no smoothing.
SNN = NetSettings(
    "3,000 genes",
    snn=True,
    dim=256,
    dropout=0.25,
    gene_dropout=0.0,
    lr=2e-4,
    weight_decay=1e-5,
    epochs=20,
    mixup=0.0,
    label_smoothing=0.0,
)


def subtype_genes(options: argparse.Namespace) -> None:
    """LUAD against LUSC: GroupMSA and SNN beside logistic regression."""
    cohort = subtype_cohort(options.data)
    methods = {"SNN": [SNN], "GroupMSA": [GROUP_MSA, GROUP_MSA_SMALL]}
    result = measure(cohort, methods, options.seeds)
    text = [
        "## LUAD against LUSC from expression",
        f"{result['cases']} TCGA cases (`{SUBTYPE_FILE}`), {cohort.expression.shape[1]:,} genes. {PROTOCOL}",
        gene_table(result["rows"]),
        _choices(result),
        circumstances(_command(options), options.hardware, result["seconds"]),
    ]
    _finish(options, {"methods": _settings(methods), **result}, text)


def luad_mutations(options: argparse.Namespace) -> None:
    """TP53 and STK11 mutation in LUAD: GroupMSA beside logistic regression.

    One setting a method, so that the validation part has nothing to choose and is trained on.
    """
    methods = {"GroupMSA, all genes": [MUTATION_ALL], "GroupMSA, 1,000 genes": [MUTATION_SMALL]}
    results, text = {}, ["## TP53 and STK11 mutation from expression, LUAD", ""]
    for gene in TARGETS:
        cohort = mutation_cohort(options.data, gene)
        results[gene] = measure(cohort, methods, options.seeds, fitted_on=[REFIT])
        mutated = int(cohort.labels.sum())
        text += [f"### {gene}: {mutated} of {results[gene]['cases']} cases mutated", gene_table(results[gene]["rows"])]
        text.append(_choices(results[gene]))
    genes = cohort.expression.shape[1]
    text[1] = f"TCGA LUAD cases with a known status (`{LUAD_FILE}`), {genes:,} genes. {PROTOCOL} {NO_CHOICE}"
    text.append(circumstances(_command(options), options.hardware, sum(r["seconds"] for r in results.values())))
    _finish(options, {"methods": _settings(methods), "targets": results}, text)


PROTOCOL = (
    "Five stratified folds by case: fold i is the test part, fold i + 1 validation, the rest training. Logistic "
    "regression has the 3,000 most variable genes and C = 1e-3. Gene selection, z-scores and weights are fitted on the "
    "rows named in the table; where a method has several settings, each fold chooses by its validation log loss; the "
    "test part is predicted once. Every case is tested once, so figures are over all cases; intervals are 95 %, from "
    "1,000 bootstrap resamples of patients; AUC pools the folds."
)
NO_CHOICE = "Each method has one setting here, so the validation part is trained on."


def _settings(methods: Mapping[str, Sequence[NetSettings]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(settings) for settings in candidates] for name, candidates in methods.items()}


def _choices(result: dict[str, Any]) -> str:
    several = {name: names for name, names in result["chosen"].items() if len(set(names)) > 1 or name == "GroupMSA"}
    return " ".join(f"{name} chose, fold by fold: {'; '.join(names)}." for name, names in several.items())


def _command(options: argparse.Namespace) -> str:
    return f"python benchmarks/real_nsclc.py {options.command} --seeds {options.seeds} --threads {options.threads}"


def _finish(options: argparse.Namespace, result: dict[str, Any], text: list[str]) -> None:
    markdown = "\n\n".join(paragraph for paragraph in text if paragraph)
    write_json(options.out, {"command": _command(options), "hardware": options.hardware, **result})
    if options.docs is not None:
        replace_section(options.docs, options.command, markdown)
    print(markdown)


def whole_pipeline(options: argparse.Namespace) -> None:
    """GiMP with and without pre-training, genes alone, images alone, mean-pool alone, on real genes and real tiles."""
    from _pipeline import measure_pipeline, pipeline_table, pipeline_text

    result = measure_pipeline(options.data, options.work, options.cases, options.folds, options.seeds, options.threads)
    text = [
        "## The whole pipeline: real genes, real tiles",
        pipeline_text(result),
        pipeline_table(result["rows"]),
        circumstances(_command(options), options.hardware, result["seconds"]),
    ]
    _finish(options, result, text)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "subtype-genes": subtype_genes,
    "luad-mutations": luad_mutations,
    "pipeline": whole_pipeline,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 where it was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--docs", type=Path, help="Markdown file whose section is replaced, e.g. docs/results.md")
    parser.add_argument("--seeds", type=int, default=3, help="networks a method and fold")
    parser.add_argument("--cases", type=int, default=200, help="of the pipeline's cohort")
    parser.add_argument("--folds", type=int, default=5, help="of the pipeline that are run")
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"), help="folder of the pipeline's runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hardware", default="2 CPU cores", help="what it ran on, in plain words")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        COMMANDS[options.command](options)
    except GimpError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
