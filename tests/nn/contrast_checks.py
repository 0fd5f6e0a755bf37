"""What the models of contrastive objectives must hold, and the small sides they are built of. All in float64.

`E` is the width of the patches, `G` the number of genes, `R` of gene groups, `D` the width of both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from bag_checks import E, in_a_batch, make_bags, seeded
from torch import Tensor, nn

from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import GeneEncoder, GroupMSA, GroupTargets, group_means

G, R, D = 11, 3, 8
LENGTHS = (13, 4, 6, 3, 9)


def aggregator() -> PatchAggregator:
    return PatchAggregator(E, D, heads=2, dim_head=4, num_landmarks=4, residual_kernel=3, dropout=0.1)


def encoder(**changes: Any) -> GeneEncoder:
    options = {"dim": D, "num_fragments": 6, "num_groups": R, "heads": 2} | changes
    return GeneEncoder(GeneInput(G), GroupMSA(G, **options))


def targets(side: GeneEncoder, bins: int = 4) -> GroupTargets:
    assert isinstance(side.net, GroupMSA)
    return GroupTargets.fit(group_means(side.net, seeded(20, G, seed=50).to(torch.float32)), bins)


def seeded_genes(rows: int) -> Tensor:
    return seeded(rows, G, seed=99)


def pairs(cases: int) -> tuple[Tensor, Tensor]:
    """Patches and genes of some cases; the patches of a case lie about a point of its own."""
    return seeded(cases, 9, E) + seeded(cases, 1, E, seed=98), seeded_genes(cases)


def check_alone_equals_batched_and_padded(
    model: nn.Module,
    outputs: tuple[str, ...],
    loss: Callable[[Any], Tensor],
    per_case: dict[str, Tensor] | None = None,
    holes: bool = False,
) -> None:
    """Outputs, and the gradients of a loss that is a sum over cases, in evaluation mode.

    Args:
        model: called with patches, genes, `valid` and `per_case`.
        outputs: names of outputs whose first axis is the case.
        loss: of the outputs.
        per_case: further arguments, a row a case.
        holes: whether padding may stand anywhere; the trunk's convolution wants it at the end.
    """
    model.double().eval()
    bags, genes, per_case = make_bags(LENGTHS), seeded_genes(len(LENGTHS)), per_case or {}
    one_each = [{name: value[row : row + 1] for name, value in per_case.items()} for row in range(len(bags))]
    alone = [model(bag, genes[row : row + 1], **one_each[row]) for row, bag in enumerate(bags)]
    model.zero_grad()
    torch.stack([loss(out) for out in alone]).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert wanted
    for width, anywhere in ((13, False), (31, False), (31, holes)):
        batch, valid = in_a_batch(bags, width, anywhere)
        model.zero_grad()
        out = model(batch, genes, valid=valid, **per_case)
        loss(out).backward()
        for row, one in enumerate(alone):
            for name in outputs:
                torch.testing.assert_close(getattr(out, name)[row], getattr(one, name)[0], atol=1e-9, rtol=1e-9)
        for name, p in model.named_parameters():
            if name in wanted:
                torch.testing.assert_close(p.grad, wanted[name], atol=1e-7, rtol=1e-7, msg=lambda m, n=name: f"{n} {m}")


def silent_parameters(model: nn.Module, loss: Tensor) -> tuple[list[str], list[str]]:
    """Names of the parameters that a loss gives no gradient, and of those it gives zeros."""
    model.zero_grad()
    loss.backward()
    none = [name for name, p in model.named_parameters() if p.grad is None]
    zeros = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
    return none, zeros


def check_half_precision_patches_are_cast(model: nn.Module, output: str, **per_case: Tensor) -> None:
    model.float().eval()
    x, genes = seeded(2, 7, E).half(), seeded_genes(2).float()
    whole = getattr(model(x.float(), genes, **per_case), output)
    torch.testing.assert_close(getattr(model(x, genes, **per_case), output), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = getattr(model(x, genes, **per_case), output)
    torch.testing.assert_close(found.float(), whole, atol=0.15, rtol=0.15)
