"""One measurement of a whole bag in a process of its own: peak memory over the model's and the bag's, and seconds.

    python -m benchmarks._whole_bag '{"model": "this", "patches": 6000, "backward": true, "dim": 512, "in_dim": 1024}'

In here: the model as fine-tuning has it (images alone), the same with the attention of the package
`nystrom-attention`, and the meter. Left out: which measurements are made, and tables. Linux only: the peak is the
kernel's own (VmHWM), reset when bag and model are there.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.methods.gimp import GiMPClassifier
from gimp_ray.nn.aggregator import PatchAggregator

STATUS = Path("/proc/self/status")


class PackageAttention(nn.Module):
    """The package's attention where the aggregator calls its own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        from nystrom_attention import NystromAttention

        self.attention = NystromAttention(
            dim, dim_head=dim // heads, heads=heads, num_landmarks=256, residual_conv_kernel=33
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.attention(x, mask=mask)


class PackageAggregator(nn.Module):
    """Projection, CLS, two pre-norm residual layers of the package's attention: TransMIL's way with our sizes."""

    def __init__(self, in_dim: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_dim, dim)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(PackageAttention(dim, heads) for _ in range(layers))
        self.cls_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N, E) -> CLS (B, D)."""
        x = self.project(x.float())
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.cls_norm(x[:, 0])


def make_model(kind: str, in_dim: int, dim: int, layers: int) -> nn.Module:
    """The fine-tuning model with default heads and landmarks, or the package in its place."""
    heads = dim // 64
    torch.manual_seed(0)
    if kind == "package":
        return nn.Sequential(PackageAggregator(in_dim, dim, heads, layers), nn.Linear(dim, 2))
    return GiMPClassifier(PatchAggregator(in_dim, dim, heads=heads, layers=layers), None, 2, dim)


def make_bag(patches: int, in_dim: int) -> Tensor:
    """(1, N, E) float16, made piece by piece so that nothing larger is ever there."""
    generator = torch.Generator().manual_seed(0)
    bag = torch.empty(1, patches, in_dim, dtype=torch.float16)
    for piece in bag[0].split(1024):
        piece.copy_(torch.randn(piece.shape, generator=generator))
    return bag


def step(model: nn.Module, bag: Tensor, backward: bool) -> list[float]:
    """A forward pass in evaluation mode, or a forward and a backward pass in training mode; the logits."""
    model.train(backward)
    if not backward:
        with torch.no_grad():
            return _logits(model(bag))[0].tolist()
    logits = _logits(model(bag))
    F.cross_entropy(logits, torch.tensor([1])).backward()
    return logits[0].tolist()


def _logits(out: Any) -> Tensor:
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (most since the reset), bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(
    model: str, patches: int, backward: bool, in_dim: int, dim: int, layers: int = 2, limit: int = 0, threads: int = 1
) -> dict[str, Any]:
    """Peak bytes over those of model and bag in one step, and its seconds; `failed` where `limit` bytes did not do."""
    torch.set_num_threads(threads)
    net = make_model(model, in_dim, dim, layers)
    step(net, make_bag(600, in_dim), backward)  # libraries start their threads and take their workspaces
    net.zero_grad(set_to_none=True)
    bag = make_bag(patches, in_dim)
    if limit:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limit, size + limit))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        logits = step(net, bag, backward)
    except RuntimeError as problem:
        if "alloc" not in str(problem):
            raise
        return {"failed": str(problem).splitlines()[0]}
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "bytes": resident("VmHWM") - before,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bag_bytes": bag.nbytes,
        "logits": logits,
        "gradient_norm": float(sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None)) ** 0.5,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
