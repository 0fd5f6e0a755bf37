"""Which stages a run has, in which order, and on which keys each depends: for all that run, plan or compare runs.

Pure functions of a config, without torch or Ray. Left out: what a stage does (`gimp_ray.learn`), and running it
(`gimp_ray.pipeline`).
"""

from __future__ import annotations

from gimp_ray.config import Config

DEPENDS_ON: dict[str, list[str]] = {
    "genes": ["seed", "split", "genes", "model.dim"],
    "pretrain": ["seed", "split", "genes", "train", "window", "mask", "triplet", "batch", "model", "objective"],
    "finetune": ["seed", "split", "genes", "model", "finetune", "target", "method"],
}


def genes_first(config: Config, has_genes: bool) -> list[str]:
    """Stage `genes`, where a gene encoder is wanted and none was given.

    Args:
        config: of the run.
        has_genes: whether the store has any.
    """
    wanted = config.genes.encoder != "none" and config.genes.checkpoint is None and has_genes
    return ["genes"] if wanted else []


def up_to_pretrain(config: Config, has_genes: bool) -> list[str]:
    """The stages of pre-training; a compared objective trains its gene encoder itself."""
    first = genes_first(config, has_genes) if config.objective.name == "gimp" else []
    return [*first, "pretrain"]


def up_to_finetune(config: Config, has_genes: bool) -> list[str]:
    """The stages of a whole run; a compared method has one."""
    init = config.finetune.init
    first: list[str] = []
    if config.method.recipe is None and init == "pretrain":
        first = up_to_pretrain(config, has_genes)
    elif config.method.recipe is None and (init == "scratch" or not config.objective.genes):
        first = genes_first(config, has_genes)
    return [*first, "finetune"]
