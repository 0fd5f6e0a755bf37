"""Bags in bounded memory: the direct path's results and gradients in any cut, and memory that stays near the bag's."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gimp_ray.nn.aggregator import PatchAggregator

WIDTH, DIM = 12, 16


def pair(piece: int, dtype: torch.dtype = torch.float64, **changes) -> tuple[PatchAggregator, PatchAggregator]:
    """The same weights, direct and in pieces."""
    torch.manual_seed(0)
    options = {"residual_kernel": 5, "num_landmarks": 4} | changes
    direct = PatchAggregator(WIDTH, DIM, 2, 8, **options).to(dtype)
    pieces = copy.deepcopy(direct)
    pieces.long_bag, pieces.piece = 1, piece
    return direct, pieces


def bag(length: int, valid: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(2, length, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x if valid is None else x.masked_fill(~valid[..., None], torch.nan)


def results(model: PatchAggregator, x: Tensor, valid: Tensor | None, tokens: bool) -> dict[str, Tensor | None]:
    """Outputs with and without gradients, and the gradients of everything."""
    x = x.clone().requires_grad_()
    cls, out = model(x, valid, tokens=tokens)
    found = {"cls": cls, "tokens": out}
    weighted = (part * torch.linspace(-1, 1, part.numel()).view_as(part) for part in (cls, out) if part is not None)
    loss = torch.stack([part.sum() for part in weighted]).sum()
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        found["cls, no gradients"], found["tokens, no gradients"] = model(x, valid, tokens=tokens)
    return found | {"x": x.grad} | {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(one: dict[str, Tensor | None], two: dict[str, Tensor | None], **tolerance: float) -> None:
    for name, value in one.items():
        if value is None:
            assert two[name] is None, name
        else:
            torch.testing.assert_close(two[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 70),
    piece=st.integers(2, 200),
    landmarks=st.sampled_from([1, 4, 9, 100]),
    kernel=st.sampled_from([0, 1, 5, 33]),
    real=st.none() | st.lists(st.booleans(), min_size=140, max_size=140),
    tokens=st.booleans(),
)
def test_pieces_give_the_direct_results_and_gradients(length, piece, landmarks, kernel, real, tokens):
    # any mask: holes, no real patch at the start or at all, padding that holds NaN
    valid = None if real is None else torch.tensor(real)[: 2 * length].view(2, length)
    direct, pieces = pair(piece, num_landmarks=landmarks, residual_kernel=kernel)
    x = bag(length, valid)
    assert_same(results(direct, x, valid, tokens), results(pieces, x, valid, tokens), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("padded", [False, True])
def test_single_precision_agrees_to_rounding(padded):
    direct, pieces = pair(64, torch.float32, num_landmarks=16, residual_kernel=33)
    valid = torch.arange(300) < torch.tensor([[300], [170]]) if padded else None
    x = bag(300, valid, torch.float32).half()  # as stored
    for tokens in (True, False):
        for one, two in zip(direct(x, valid, tokens=tokens), pieces(x, valid, tokens=tokens), strict=True):
            if one is not None:
                torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


def test_alone_equals_padded_beside_a_longer_bag():
    _, pieces = pair(32, torch.float32)
    x = bag(90, dtype=torch.float32)
    valid = torch.arange(90) < torch.tensor([[90], [41]])
    together, _ = pieces(x.masked_fill(~valid[..., None], torch.nan), valid)
    torch.testing.assert_close(together[1:], pieces(x[1:, :41])[0], atol=1e-5, rtol=1e-5)


def test_the_same_call_gives_the_same_bits():
    _, pieces = pair(32, torch.float32, dropout=0.3)
    x = bag(90, dtype=torch.float32)

    def once() -> dict[str, Tensor | None]:
        torch.manual_seed(5)
        return results(pieces, x, None, True)

    one, two = once(), once()
    assert all(torch.equal(one[name], two[name]) for name in one if one[name] is not None)


def test_dropout_is_the_same_in_both_passes_and_off_in_evaluation():
    _, pieces = pair(16, dropout=0.5, layers=1)
    x = bag(40)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return pieces(x)[1].square().sum()

    # gradients by differences are right only if the backward pass draws what the forward pass drew
    assert torch.autograd.gradcheck(loss, (x[:1, :20].clone().requires_grad_(),), fast_mode=True)
    torch.manual_seed(5)
    one = pieces(x)[0]
    assert not torch.equal(one, pieces(x)[0]), "other random numbers, other masks"
    pieces.eval()
    assert torch.equal(pieces(x)[0], pieces(x)[0])


def test_autocast_is_put_back_in_the_backward_pass():
    direct, pieces = pair(32, torch.float32, num_landmarks=16)
    x = bag(120, dtype=torch.float32)
    for model in (direct, pieces):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cls, tokens = model(x)
            assert tokens.dtype == torch.bfloat16
        (cls * torch.linspace(-1, 1, DIM)).sum().backward()
    for one, two in zip(direct.parameters(), pieces.parameters(), strict=True):
        assert two.grad.dtype == torch.float32
        assert (two.grad - one.grad).norm() < 0.1 * one.grad.norm()


def test_frozen_weights_stay_without_gradients():
    _, pieces = pair(16)
    pieces.attentions.requires_grad_(False)
    pieces.project.requires_grad_(False)
    pieces(bag(40), tokens=False)[0].sum().backward()
    assert all((p.grad is None) == (not p.requires_grad) for name, p in pieces.named_parameters())


def test_masked_patches_are_replaced():
    direct, pieces = pair(16)
    masked, token = torch.tensor([[0, 5, 39], [3, 4, 17]]), torch.randn(DIM, dtype=torch.float64)
    for one, two in zip(direct(bag(40), None, masked, token), pieces(bag(40), None, masked, token), strict=True):
        torch.testing.assert_close(two, one)


def test_length_decides():
    torch.manual_seed(0)
    model = PatchAggregator(WIDTH, DIM, 2, 8, 4, residual_kernel=3, long_bag=50)
    for length, name in ((49, "Add"), (50, "_LongLayer")):
        _, tokens = model(bag(length, dtype=torch.float32))
        assert name in type(tokens.grad_fn.next_functions[0][0]).__name__


MEASURE = """
import json, sys
from pathlib import Path
import torch
from gimp_ray.nn.aggregator import PatchAggregator

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.set_num_threads(1)
long_bag, backward = json.loads(sys.argv[1])
model = PatchAggregator(128, 64, 4, 16, 32, residual_kernel=5, long_bag=long_bag, piece=512)
peaks = []
for length in (2000, 20000, 60000):
    bag = torch.zeros(1, length, 128, dtype=torch.float16)
    bag.normal_()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with torch.set_grad_enabled(backward):
        cls, _ = model(bag, tokens=False)
    if backward:
        cls.sum().backward()
    peaks.append(resident("VmHWM") - before)
    del cls, bag
    model.zero_grad()
print((peaks[2] - peaks[1]) / 40000 / (64 * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own peak of a process")
@pytest.mark.parametrize(("backward", "most"), [(False, 1.6), (True, 5.5)])
def test_memory_grows_by_a_few_values_of_the_width_for_a_patch(backward, most):
    """In units of D float32 values: 1 for the tokens; with gradients 2 layers' tokens and their gradients."""

    def growth(long_bag: int) -> float:
        command = [sys.executable, "-c", MEASURE, json.dumps([long_bag, backward])]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 0.5 < growth(1) < most
    assert growth(10**9) > 1.5 * most, "the direct path, by the same meter"
