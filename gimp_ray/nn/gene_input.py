"""What stands between stored expression and a gene network: gene selection, log2(x + 1), z-score, clipping.

In here: `GeneInput` and its fit, in one pass over chunks of training rows. Everything fitted is a buffer, so a
checkpoint carries it. Left out: who the training cases are, which is the caller's to get right.

Shape suffixes: B batch, G all genes, K kept genes, C classes, n rows of a chunk.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

SelectBy = Literal["variance", "f_score"]
Order = Literal["stored", "score"]
Chunk = Tensor | tuple[Tensor, Tensor]


class _Moments:
    """Counts, sums and sums of squares about the first row, for each class: one pass, float64."""

    def __init__(self) -> None:
        self.shift_G: Tensor | None = None
        self.by_class: dict[int, list[Tensor]] = {}

    def add(self, x_nG: Tensor, labels_n: Tensor) -> None:
        if self.shift_G is None:
            self.shift_G = x_nG[0].clone()  # about a typical row, squares do not cancel
        centred_nG = x_nG - self.shift_G
        for label in labels_n.unique().tolist():
            rows = centred_nG[labels_n == label]
            new = [torch.tensor(float(len(rows)), dtype=torch.float64), rows.sum(0), rows.square().sum(0)]
            old = self.by_class.get(label)
            self.by_class[label] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    def totals(self) -> tuple[float, Tensor, Tensor]:
        """rows, mean (G), sum of squared deviations (G)."""
        if self.shift_G is None:
            raise ValueError("no training rows: a gene input cannot be fitted")
        n, sums_G, squares_G = (torch.stack(parts).sum(0) for parts in zip(*self.by_class.values(), strict=True))
        return float(n), self.shift_G + sums_G / n, (squares_G - sums_G.square() / n).clamp_min(0)

    def f_score(self) -> Tensor:
        """One-way ANOVA F of each gene (G); 0 where a gene is constant."""
        n, _, total_G = self.totals()
        classes = len(self.by_class)
        if classes < 2:
            raise ValueError("select_by='f_score' needs training rows of at least two classes")
        within_G = torch.zeros_like(total_G)
        for count, sums_G, squares_G in self.by_class.values():
            within_G += (squares_G - sums_G.square() / count).clamp_min(0)
        ratio_G = (total_G - within_G).clamp_min(0) / within_G.clamp_min(1e-12) * (n - classes) / (classes - 1)
        return ratio_G.where(total_G > 0, torch.zeros_like(ratio_G))


class GeneInput(nn.Module):
    """Frozen statistics of the training split, applied to raw expression.

    Buffers: `select` (K,) int64 places of the kept genes, `mean` and `std` (K,), `constant` (K,) bool, `log` bool,
    `clip` float. Build it with `fit`, or from a checkpoint with `from_state_dict`; the plain constructor gives the
    identity.

    Args:
        num_genes: G, genes in a stored row.
        log: take log2(x + 1) first; for linear units such as FPKM. Not for values that are logs already.
        clip: z-scores are kept inside [-clip, clip]; inf leaves them. A gene seen in one training case only has a tiny
            deviation, and without a bound a test case may stand at hundreds of them.
    """

    select: Tensor
    mean: Tensor
    std: Tensor
    constant: Tensor
    log: Tensor
    clip: Tensor

    def __init__(self, num_genes: int, log: bool = False, clip: float = math.inf, num_kept: int | None = None) -> None:
        super().__init__()
        kept = num_genes if num_kept is None else num_kept
        self.num_genes = num_genes
        self.register_buffer("select", torch.arange(kept))
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("std", torch.ones(kept))
        self.register_buffer("constant", torch.zeros(kept, dtype=torch.bool))
        self.register_buffer("log", torch.tensor(log))
        self.register_buffer("clip", torch.tensor(float(clip)))

    @property
    def num_kept(self) -> int:
        """K, the number of values that come out."""
        return len(self.select)

    def forward(self, raw_BG: Tensor) -> Tensor:
        """(B, G) expression as stored -> (B, K) clipped z-scores in float32. Genes constant in training are 0 for all.

        Raises:
            ValueError: another number of genes than at the fit.
        """
        if raw_BG.shape[-1] != self.num_genes:
            raise ValueError(f"{raw_BG.shape[-1]} genes given, the statistics were fitted on {self.num_genes}")
        x_BK = raw_BG[:, self.select].to(self.mean.dtype)
        x_BK = torch.where(self.log, torch.log2(x_BK + 1), x_BK)  # a buffer, not an `if`: no device round trip
        z_BK = ((x_BK - self.mean) / self.std).masked_fill(self.constant, 0.0)
        return torch.minimum(torch.maximum(z_BK, -self.clip), self.clip)

    @classmethod
    def fit(
        cls,
        values: Tensor | Iterable[Chunk],
        *,
        log: bool,
        top_genes: int = 0,
        select_by: SelectBy = "variance",
        order: Order = "stored",
        labels: Tensor | None = None,
        clip: float = math.inf,
    ) -> Self:
        """Fit on training rows, and on nothing else.

        Args:
            values: (n, G), or an iterable of such chunks, read once; for `f_score` an iterable of (chunk, labels).
            log: see the class.
            top_genes: number of genes kept, the best by `select_by`; 0 keeps all.
            select_by: "variance" after the log, or "f_score" (one-way ANOVA against `labels`).
            order: how the kept genes are laid out, and so which share a fragment and a group of `GroupMSA`: as
                "stored", or by "score", best first: a fragment then holds genes that say about as much as each other.
            labels: (n,) integers, with a tensor of values and `f_score`.
            clip: see the class.

        Raises:
            ValueError: no rows, rows of unequal width, NaN or infinite values, negative values with `log`, labels
                missing.
        """
        if select_by not in get_args(SelectBy):
            raise ValueError(f"select_by must be one of {get_args(SelectBy)}: found {select_by!r}")
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {get_args(Order)}: found {order!r}")
        chunks: Iterable[Chunk] = values if not isinstance(values, Tensor) else [_paired(values, labels)]
        moments = _Moments()
        for chunk in chunks:
            x_nG, labels_n = chunk if isinstance(chunk, tuple) else (chunk, None)
            if select_by == "f_score" and labels_n is None:
                raise ValueError("select_by='f_score' needs labels")
            x_nG = _checked(x_nG, log, None if moments.shift_G is None else len(moments.shift_G))
            if len(x_nG):
                moments.add(x_nG, torch.zeros(len(x_nG), dtype=torch.int64) if labels_n is None else labels_n.cpu())
        rows, mean_G, deviations_G = moments.totals()
        variance_G = deviations_G / rows

        num_genes = len(mean_G)
        select_K = torch.arange(num_genes)
        if 0 < top_genes < num_genes or order == "score":
            score_G = variance_G if select_by == "variance" else moments.f_score()
            select_K = score_G.argsort(descending=True, stable=True)[: top_genes or num_genes]
            if order == "stored":
                select_K = select_K.sort().values
        fitted = cls(num_genes, log, clip, num_kept=len(select_K))
        # Rounding leaves dust in the variance of a constant gene; measured against its level it is none.
        constant_K = (variance_G <= 1e-14 * (1 + mean_G.square()))[select_K]
        fitted.select.copy_(select_K)
        fitted.mean.copy_(mean_G[select_K])
        fitted.std.copy_(variance_G[select_K].sqrt().masked_fill(constant_K, 1.0))
        fitted.constant.copy_(constant_K)
        return fitted

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], num_genes: int) -> Self:
        """Rebuild from the buffers of a checkpoint, whatever number of genes was kept."""
        fitted = cls(num_genes, num_kept=len(state["select"]))
        fitted.load_state_dict(state)
        return fitted


def _paired(values_nG: Tensor, labels_n: Tensor | None) -> Chunk:
    return values_nG if labels_n is None else (values_nG, labels_n)


def _checked(x_nG: Tensor, log: bool, width: int | None) -> Tensor:
    """A chunk as float64, after the log; refused when statistics of it would be nonsense."""
    if x_nG.ndim != 2 or (width is not None and x_nG.shape[1] != width):
        raise ValueError(f"expression must be (cases, {width or 'genes'}): found {tuple(x_nG.shape)}")
    x_nG = x_nG.detach().cpu().double()
    if not torch.isfinite(x_nG).all():
        raise ValueError("expression has NaN or infinite values")
    if log and (x_nG < 0).any():
        raise ValueError("expression has negative values, so it is not in a linear unit: fit with log=False")
    return torch.log2(x_nG + 1) if log else x_nG
