"""A masked window the short way: the function and the gradients of the direct path, and what it refuses."""

import pytest
import torch

from gimp_ray.methods.gimp import GiMP
from gimp_ray.nn import aggregator, masked_windows
from gimp_ray.nn.aggregator import LONG_WINDOWS, PatchAggregator
from gimp_ray.nn.masked_windows import places_of, spread


def make(layers: int = 2, **changes) -> PatchAggregator:
    torch.manual_seed(0)
    settings = {"dim": 16, "heads": 2, "dim_head": 8, "num_landmarks": 7, "residual_kernel": 5, "layers": layers}
    return PatchAggregator(12, **(settings | changes)).double()


def window(length: int, count: int, samples: int = 3):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(samples, length, 12, dtype=torch.float64, generator=generator)
    return x, torch.stack([torch.randperm(length, generator=generator)[:count] for _ in range(samples)])


def direct(aggregator: PatchAggregator, x, masked, token):
    cls, tokens = aggregator(x, None, masked, token)
    return cls, tokens.gather(1, masked[..., None].expand(-1, -1, aggregator.dim))


def with_gradients(aggregator, found, token):
    cls, tokens = found
    aggregator.zero_grad()
    token.grad = None
    (cls.square().sum() + (tokens**3).sum()).backward()
    return [cls, tokens, token.grad.clone(), *(p.grad.clone() for p in aggregator.parameters())]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("length", "count"), [(9, 3), (50, 25), (50, 1), (49, 48), (6, 6), (130, 65)])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_values_and_gradients_are_those_of_the_direct_path(layers, length, count, again):
    x, masked = window(length, count)
    aggregator, token = make(layers), torch.randn(16, dtype=torch.float64, requires_grad=True)
    want = with_gradients(aggregator, direct(aggregator, x, masked, token), token)
    aggregator.activation_checkpointing = again
    found = with_gradients(aggregator, aggregator.masked_tokens(x, masked, token), token)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("kernel", [0, 5])
def test_single_precision_agrees_to_rounding(kernel):
    x, masked = window(500, 250)
    aggregator, token = make(num_landmarks=16, residual_kernel=kernel).float(), torch.randn(16)
    for one, other in zip(
        aggregator.masked_tokens(x.float(), masked, token), direct(aggregator, x.float(), masked, token), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_half_precision_is_as_near_as_the_direct_path_is():
    x, masked = window(500, 250)
    aggregator, token = make(num_landmarks=16).float(), torch.randn(16)
    exact = direct(aggregator, x.float(), masked, token)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short, long = aggregator.masked_tokens(x.half(), masked, token), direct(aggregator, x.half(), masked, token)
    for one, other, true in zip(short, long, exact, strict=True):
        assert (one - true).abs().mean() <= 1.5 * (other - true).abs().mean()


def test_masked_patches_are_never_read():
    x, masked = window(30, 10)
    aggregator, token = make(), torch.randn(16, dtype=torch.float64)
    holes = x.clone()
    holes[torch.arange(3)[:, None], masked] = torch.nan
    for one, other in zip(
        aggregator.masked_tokens(holes, masked, token), aggregator.masked_tokens(x, masked, token), strict=True
    ):
        assert torch.equal(one, other)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    x, masked = window(40, 20)
    aggregator, token = make(), torch.randn(16, dtype=torch.float64)
    together = aggregator.masked_tokens(x, masked, token)
    for i in range(3):
        alone = aggregator.masked_tokens(x[i : i + 1], masked[i : i + 1], token)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[i], atol=1e-12, rtol=1e-12)


def test_dropout_is_applied():
    x, masked = window(40, 20)
    aggregator, token = make(dropout=0.5), torch.randn(16, dtype=torch.float64)
    assert not torch.equal(*(aggregator.masked_tokens(x, masked, token)[1] for _ in range(2)))
    aggregator.eval()
    assert torch.equal(*(aggregator.masked_tokens(x, masked, token)[1] for _ in range(2)))


@pytest.mark.parametrize(("length", "padded", "short"), [(12, True, False), (15, False, True), (16, False, False)])
def test_padding_and_long_windows_take_the_direct_path(length, padded, short, monkeypatch):
    assert LONG_WINDOWS * 4 == 16
    x, _ = window(length, 5)
    masked = torch.stack([torch.randperm(9)[:5] for _ in range(3)])
    model, token = make(long_bag=4, piece=3), torch.randn(16, dtype=torch.float64)
    valid = torch.arange(length) < torch.tensor([[12], [9], [10]]) if padded else None
    want = make(long_bag=1000)(x, valid, masked, token)
    taken = []
    monkeypatch.setattr(aggregator, "first_layer", lambda *a: taken.append(1) or masked_windows.first_layer(*a))
    cls, tokens = model.masked_tokens(x, masked, token, valid)
    assert bool(taken) is short
    torch.testing.assert_close(cls, want[0], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(tokens, want[1].gather(1, masked[..., None].expand(-1, -1, 16)), atol=1e-10, rtol=1e-9)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="11 wide"):
        make().masked_tokens(torch.randn(1, 4, 11), torch.tensor([[1]]), torch.zeros(16))
    with pytest.raises(ValueError, match="no masked patches"):
        make().masked_tokens(torch.randn(1, 4, 12), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(16))


def test_spreading_has_the_right_gradient():
    _, masked = window(7, 3, samples=2)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: spread(x, places_of(masked, 7)), (x,))
    whole = spread(x, places_of(masked, 7))
    assert all(torch.equal(whole[i, masked[i] + 1], x[i, -1].expand(3, -1)) for i in range(2))


def test_pre_training_takes_the_short_way(monkeypatch):
    x, masked = window(20, 10)
    model = GiMP(make(), None, 12).double()
    want = model(x, masked=masked, valid=torch.ones(3, 20, dtype=torch.bool))
    monkeypatch.setattr(PatchAggregator, "forward", None)
    out = model(x, masked=masked)
    torch.testing.assert_close(out.reconstruction, want.reconstruction, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(out.cls_img, want.cls_img, atol=1e-10, rtol=1e-9)
