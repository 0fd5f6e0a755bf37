"""Fits of the gene benchmarks: logistic regression and gene networks, everything fitted on the rows that are given.

The loop is a few lines of plain torch on purpose: it measures the networks, not the engine. Left out: what is tried and
which is kept (`_gene_rows.py`). Shape suffixes: N cases, G genes, K kept genes, B batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.nn.gene_input import GeneInput, Order, SelectBy
from gimp_ray.nn.genes import SNN, GroupMSA, fit_fragments
from gimp_ray.nn.losses import mixup

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class NetSettings:
    """A gene network and how it is trained; `GroupMSA` unless `snn`. Names as in `gimp_ray.nn`."""

    name: str
    snn: bool = False
    top_genes: int = 3000  # 0 = all
    select_by: SelectBy = "variance"
    order: Order = "stored"
    clip: float = 5.0
    dim: int = 64
    num_fragments: int = 300
    num_groups: int = 12
    heads: int = 8
    ff_mult: float = 2.0
    dropout: float = 0.1
    gene_dropout: float = 0.3
    position_std: float = 1.0
    epochs: int = 15
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 1e-2
    mixup: float = 0.4
    label_smoothing: float = 0.1


def logistic_regression(
    x_NG: Tensor, labels_N: Tensor, test_NG: Tensor, select_by: SelectBy = "variance"
) -> Probabilities:
    """Probability of class 1 of the test rows: the 3,000 best genes, z-score, C = 1e-3."""
    gene_input = GeneInput.fit(x_NG, log=False, top_genes=3000, select_by=select_by, labels=labels_N)
    model = LogisticRegression(C=1e-3, max_iter=2000).fit(gene_input(x_NG).numpy(), labels_N.numpy())
    return model.predict_proba(gene_input(test_NG).numpy())[:, 1]


def networks(
    settings: NetSettings, x_NG: Tensor, labels_N: Tensor, evaluate: Sequence[Tensor], seeds: Sequence[int]
) -> list[list[Probabilities]]:
    """Train one network a seed on the rows given: its probabilities of class 1 for each set of rows in `evaluate`."""
    gene_input = GeneInput.fit(
        x_NG,
        log=False,
        top_genes=settings.top_genes,
        select_by=settings.select_by,
        order=settings.order,
        labels=labels_N,
        clip=settings.clip,
    )
    train_NK, evaluate_NK = gene_input(x_NG), [gene_input(rows) for rows in evaluate]
    results = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = nn.Sequential(_net(settings, gene_input.num_kept), MLPHead(settings.dim, 2, hidden=()))
        _train(model, train_NK, labels_N, settings)
        model.eval()
        with torch.no_grad():
            results.append([model(rows).double().softmax(dim=1)[:, 1].numpy() for rows in evaluate_NK])
    return results


def _net(settings: NetSettings, num_genes: int) -> nn.Module:
    if settings.snn:
        return SNN(num_genes, settings.dim, dropout=settings.dropout)
    fragments, groups = fit_fragments(num_genes, settings.num_fragments, settings.num_groups)
    return GroupMSA(
        num_genes,
        settings.dim,
        fragments,
        groups,
        settings.heads,
        settings.ff_mult,
        settings.dropout,
        settings.gene_dropout,
        settings.position_std,
    )


def _train(model: nn.Module, x_NK: Tensor, labels_N: Tensor, settings: NetSettings) -> None:
    """AdamW, a tenth of the steps warm-up, then cosine to 0; the last step is what is used."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    per_epoch = len(x_NK) // settings.batch_size
    steps = settings.epochs * per_epoch
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(x_NK))[: per_epoch * settings.batch_size]
        for rows_B in order.view(per_epoch, settings.batch_size):
            x, target = mixup(x_NK[rows_B], labels_N[rows_B], 2, settings.mixup)
            loss = F.cross_entropy(model(x), target, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
