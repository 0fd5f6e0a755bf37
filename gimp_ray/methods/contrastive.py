"""What the compared pre-trainings share: GiMP's sections, trunk, gene encoder, windows and fine-tuning.

Both sides are trained together from fresh weights, without labels, and the contrast alone differs. Contrasts are over
the cases of all workers: two workers with half the cases have the losses of one worker with all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gimp_ray.errors import ConfigError
from gimp_ray.methods.base import JOINT, Loss, Method, Pretrain, Sizes, Tensors, Window, config_with
from gimp_ray.methods.gimp import FINETUNE, WindowedConfig, answer, gene_card, pretrainable
from gimp_ray.methods.sections import MethodSection

READS = ("window", "mask", "batch", "model", "genes", "split.transductive", "method")


def contrastive(
    name: str,
    title: str,
    paper: str,
    numbers: type[MethodSection],
    network: Callable[[Any, Sizes], nn.Module],
    loss: Callable[[Any, nn.Module, Tensors], Loss],
    read: Callable[[Any, Window], dict[str, NDArray[Any]]] = lambda config, window: {},
    fewest_groups: int = 1,
) -> Method:
    """A compared pre-training.

    Args:
        name: of its file.
        title, paper: see `Method`.
        numbers: section `method` of its config.
        network, loss, read: see `Pretrain`.
        fewest_groups: gene groups that it needs; 0 where it needs none, and an SNN will do.
    """
    config = config_with(WindowedConfig, title, numbers)
    pretrain = Pretrain(
        network=network,
        embed=pretrainable,
        answer=answer,
        read=lambda config, window: {"counted": np.full(len(window.case), window.counted), **read(config, window)},
        loss=loss,
        needs=JOINT,
        reads=READS,
        starts=lambda config, has_genes: {"genes.sets": config.genes.sets} if config.genes.sets else {},
        trains_genes=True,
        gene_card=gene_card,
        check=partial(_check, name, fewest_groups),
    )
    finetune = replace(FINETUNE, reads=("finetune", "model", "target", "genes.encoder", "method"))
    return Method(title=title, paper=paper, config=config, stages=(pretrain, finetune))


def _check(name: str, fewest_groups: int, config: Any, groups: int, at_once: int) -> None:
    """Refuse gene settings that mean another pre-training, and contrasts of one case."""
    genes = config.genes
    allowed = ("group_msa",) if fewest_groups else ("group_msa", "snn")
    if genes.encoder not in allowed:
        raise ConfigError(
            f"method {name} cannot train with this gene encoder",
            expected=f"genes.encoder: {' or '.join(allowed)}",
            found=f"genes.encoder: {genes.encoder}",
            fix="set genes.encoder, or method.name: gimp",
        )
    if genes.checkpoint is not None:
        raise ConfigError(
            f"method {name} trains its gene encoder itself, and one was given",
            expected="genes.checkpoint: null",
            found=genes.checkpoint,
            fix="unset genes.checkpoint, or set method.name: gimp",
        )
    if groups < fewest_groups:
        raise ConfigError(
            f"method {name} contrasts halves of the gene groups, and there is one group",
            expected=f"genes.groups of at least {fewest_groups}",
            found=f"{groups}",
            fix="raise genes.groups, or use sets with more of the store's genes",
        )
    if at_once < 2:
        raise ConfigError(
            f"method {name} contrasts the cases of a step with each other, and a step has one",
            expected="batch.classes * batch.cases_per_class * train.workers of at least 2, and 2 training cases",
            found=f"{at_once}",
            fix="raise batch.cases_per_class",
        )
