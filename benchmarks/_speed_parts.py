"""Kernels, steps and encoders timed side by side in one process, contestants in turn.

Every part returns plain data: seconds of each contestant, ratios round by round, how far the results of both lie apart,
and on a GPU the memory at the peak. Left out: what runs in processes of its own (`_speed_processes`), tables.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from nystrom_attention import NystromAttention as PackageAttention
from torch import Tensor, nn

from benchmarks._reference_model import ReferenceGroupMSA
from benchmarks._speed_models import (
    Sizes,
    Step,
    Where,
    classifiers,
    make_batch,
    our_bags_loss,
    our_logits,
    our_loss,
    pretraining,
    stepping,
    their_bags_loss,
    their_loss,
)
from benchmarks.common import alternate, ratios, spread
from gimp_ray.methods.gimp import GiMPClassifier
from gimp_ray.nn.attention import NystromAttention
from gimp_ray.nn.genes import GroupMSA

Found = dict[str, Any]
OURS, PEER, DIRECT = "gimp_ray", "reference", "gimp_ray, direct path"


def compared(contestants: Mapping[str, Step], rounds: int, where: Where) -> Found:
    """Seconds of every contestant, and the others' over ours."""
    seconds = alternate(contestants, rounds)
    found: Found = {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times": {name: ratios(seconds[name], seconds[OURS]) for name in contestants if name != OURS},
    }
    if where.device.type == "cuda":
        found["peak_mb"] = {name: _peak_mb(step) for name, step in contestants.items()}
    return found


def attention(length: int, size: int, sizes: Sizes, rounds: int, where: Where) -> dict[str, Found]:
    """One attention layer against the package's, with the same weights: forward, and forward with backward."""
    torch.manual_seed(0)
    head, landmarks = sizes.dim // sizes.heads, sizes.landmarks
    ours = NystromAttention(sizes.dim, sizes.heads, head, landmarks, residual_kernel=sizes.kernel).to(where.device)
    theirs = PackageAttention(
        sizes.dim, dim_head=head, heads=sizes.heads, num_landmarks=landmarks, residual_conv_kernel=sizes.kernel
    ).to(where.device)
    theirs.load_state_dict(ours.state_dict())
    x_BND = torch.randn(size, length, sizes.dim, device=where.device)
    forward = {name: _forward(module, x_BND, where) for name, module in ((OURS, ours), (PEER, theirs))}
    both = {name: _both(module, x_BND, where) for name, module in ((OURS, ours), (PEER, theirs))}
    found = {"forward": compared(forward, rounds, where), "forward, backward": compared(both, rounds, where)}
    found["forward"]["apart"] = _attention_apart(ours, theirs, length, where)
    return found


def step(length: int, size: int, sizes: Sizes, rounds: int, where: Where) -> Found:
    """An optimiser step of pre-training on a batch in memory; also ours by the path that every bag can take."""
    ours, theirs = pretraining(sizes, where)
    batch = make_batch(size, length, sizes, where)
    with torch.no_grad():
        apart = abs(float(our_loss(ours, batch)) / float(their_loss(theirs, batch)) - 1)
    direct, _ = pretraining(sizes, where)
    contestants = {
        OURS: stepping(ours, lambda: our_loss(ours, batch), where),
        PEER: stepping(theirs, lambda: their_loss(theirs, batch), where),
        DIRECT: stepping(direct, lambda: our_loss(direct, batch, direct=True), where),
    }
    return compared(contestants, rounds, where) | {"apart": apart}


def finetune(lengths: list[int], sizes: Sizes, rounds: int, where: Where) -> Found:
    """An optimiser step of fine-tuning on whole bags."""
    ours, theirs = classifiers(sizes, where)
    torch.manual_seed(1)
    bags = [torch.randn(length, sizes.in_dim, device=where.device).half() for length in lengths]
    loaded = [bag.float() for bag in bags]
    labels_B = torch.arange(len(bags), device=where.device) % 2
    apart = _logits_apart(ours, theirs, bags)
    same = _classifiers_apart(ours, theirs, max(lengths), sizes, where)
    ours.train()
    theirs.train()
    contestants = {
        OURS: stepping(ours, lambda: our_bags_loss(ours, bags, labels_B), where),
        PEER: stepping(theirs, lambda: their_bags_loss(theirs, loaded, labels_B), where),
    }
    return compared(contestants, rounds, where) | {"apart": apart, "same": same}


def genes(num_genes: int, size: int, sizes: Sizes, rounds: int, where: Where) -> Found:
    """GroupMSA against a loop over its groups, with the same weights: forward with backward."""
    ours, theirs = _gene_encoders(num_genes, sizes, where)
    x_BG = torch.randn(size, num_genes, device=where.device)
    with torch.no_grad():
        one, other = ours(x_BG), theirs(x_BG)
    apart = float((one - other).abs().max() / other.abs().max())
    contestants = {OURS: _both(ours, x_BG, where), PEER: _both(theirs, x_BG, where)}
    return compared(contestants, rounds, where) | {"apart": apart}


def growth(lengths: list[int], numbers: list[int], sizes: Sizes, rounds: int, where: Where) -> Found:
    """Seconds of a pre-training step by L, and of the gene encoder by G, with the exponent of a line through the logs.
    All lengths take turns.
    """
    ours, _ = pretraining(sizes, where)
    steps = {}
    for length in lengths:
        batch = make_batch(1, length, sizes, where)
        steps[str(length)] = stepping(ours, lambda batch=batch: our_loss(ours, batch), where)  # type: ignore[misc]
    by_length = {name: spread(values)["median"] for name, values in alternate(steps, rounds).items()}
    encoders = {}
    for number in numbers:
        encoder, _ = _gene_encoders(number, sizes, where)
        encoders[str(number)] = _both(encoder, torch.randn(32, number, device=where.device), where)
    by_genes = {name: spread(values)["median"] for name, values in alternate(encoders, rounds).items()}
    return {
        "seconds_by_length": by_length,
        "exponent_of_length": exponent(by_length),
        "seconds_by_genes": by_genes,
        "exponent_of_genes": exponent(by_genes),
    }


def exponent(by_size: Mapping[str, float]) -> float:
    """Slope of the least-squares line through the logarithms of sizes and values."""
    points = [(math.log(float(size)), math.log(value)) for size, value in by_size.items()]
    mean_x, mean_y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _gene_encoders(num_genes: int, sizes: Sizes, where: Where) -> tuple[GroupMSA, ReferenceGroupMSA]:
    """Without dropout, as both must say the same; fragments of 60 genes in 24 groups at the full gene count."""
    torch.manual_seed(0)
    fragments = max(24, num_genes // 60 // 24 * 24)
    ours = GroupMSA(num_genes, sizes.dim, fragments, 24, sizes.heads, dropout=0.0, gene_dropout=0.0)
    theirs = ReferenceGroupMSA(num_genes, sizes.dim, fragments, 24, sizes.heads, 2.0)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(where.device), theirs.to(where.device)


def _forward(module: nn.Module, x: Tensor, where: Where) -> Step:
    def run(_: int = 0) -> None:
        with torch.no_grad(), where.autocast():
            module(x)
        where.wait()

    return run


def _both(module: nn.Module, x: Tensor, where: Where) -> Step:
    def run(_: int = 0) -> None:
        given = x.clone().requires_grad_()
        with where.autocast():
            out = module(given)
        out.float().square().sum().backward()
        module.zero_grad(set_to_none=True)
        where.wait()

    return run


def _attention_apart(ours: NystromAttention, theirs: nn.Module, length: int, where: Where) -> float:
    """Largest difference over the largest output, where both are the same function: one sample, tokens that fill the
    landmarks, and the package's scaling of the pseudo-inverse.
    """
    same = NystromAttention(
        ours.to_qkv.in_features,
        ours.heads,
        ours.dim_head,
        ours.num_landmarks,
        residual_kernel=0 if ours.res_conv is None else ours.res_conv.kernel_size[0],
        pinv_scale="batch",
    ).to(where.device)
    same.load_state_dict(ours.state_dict())
    whole = max(ours.num_landmarks, length // ours.num_landmarks * ours.num_landmarks)
    x_BND = torch.randn(1, whole, ours.to_qkv.in_features, device=where.device)
    with torch.no_grad(), where.autocast():
        one, other = same(x_BND).float(), theirs(x_BND).float()
    return float((one - other).abs().max() / other.abs().max())


def _logits_apart(ours: GiMPClassifier, theirs: nn.Module, bags: list[Tensor]) -> float:
    """Largest difference over the largest logit, without dropout; the package bag by bag."""
    with torch.no_grad():
        one_BC = our_logits(ours.eval(), bags)
        other_BC = torch.cat([theirs.eval()(bag.float()[None]) for bag in bags])
    return float((one_BC - other_BC).abs().max() / other_BC.abs().max())


def _classifiers_apart(ours: GiMPClassifier, theirs: nn.Module, length: int, sizes: Sizes, where: Where) -> float:
    """`_logits_apart` where both are the same function: CLS and patches fill the landmarks, the package's scaling."""
    same, _ = classifiers(sizes, where)
    same.load_state_dict(ours.state_dict())
    for module in same.modules():
        if isinstance(module, NystromAttention):
            module.pinv_scale = "batch"
    whole = max(1, (length + 1) // sizes.landmarks) * sizes.landmarks - 1
    return _logits_apart(same, theirs, [torch.randn(whole, sizes.in_dim, device=where.device).half()])


def _peak_mb(run: Step) -> float:
    """MB at the peak of one call, over what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
