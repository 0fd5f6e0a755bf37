"""The patch aggregator: shapes, masking for MPM, padding, types, and that every parameter learns."""

import pytest
import torch

from gimp_ray.nn import aggregator
from gimp_ray.nn.aggregator import PatchAggregator


def make(in_dim: int = 12, **changes) -> PatchAggregator:
    torch.manual_seed(0)
    settings = {"dim": 16, "heads": 2, "dim_head": 8, "num_landmarks": 4, "residual_kernel": 3} | changes
    return PatchAggregator(in_dim, **settings).eval()


@pytest.mark.parametrize("length", [1, 3, 4, 13])
def test_shapes(length):
    cls, tokens = make()(torch.randn(2, length, 12))
    assert cls.shape == (2, 16) and tokens.shape == (2, length, 16)


def test_alone_equals_batched_and_padded_with_anything():
    aggregator = make()
    lengths = [13, 1, 6]
    bags = [torch.randn(1, n, 12, generator=torch.Generator().manual_seed(n)) for n in lengths]
    batch = torch.full((3, 20, 12), torch.nan)
    for row, bag in zip(batch, bags, strict=True):
        row[: bag.shape[1]] = bag[0]
    cls, tokens = aggregator(batch, torch.arange(20) < torch.tensor(lengths)[:, None])
    for i, bag in enumerate(bags):
        cls_alone, tokens_alone = aggregator(bag)
        torch.testing.assert_close(cls[i : i + 1], cls_alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens[i : i + 1, : lengths[i]], tokens_alone, atol=1e-5, rtol=1e-5)


def test_padding_of_nan_reaches_no_gradient():
    aggregator = make()
    x = torch.randn(2, 6, 12)
    x[1, 2:] = torch.nan
    cls, _ = aggregator(x, torch.arange(6) < torch.tensor([[6], [2]]))
    cls.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in aggregator.parameters())


def test_masked_patches_are_replaced_and_never_seen():
    aggregator, token = make(), torch.randn(16)
    x = torch.randn(2, 9, 12)
    masked = torch.tensor([[0, 4, 8], [1, 2, 3]])
    other = x.clone()
    other[torch.arange(2)[:, None], masked] = 99.0
    cls, tokens = aggregator(x, masked=masked, mask_token=token)
    cls_other, tokens_other = aggregator(other, masked=masked, mask_token=token)
    torch.testing.assert_close(cls, cls_other)
    torch.testing.assert_close(tokens, tokens_other)
    assert not torch.allclose(cls, aggregator(x)[0], atol=1e-3)
    assert not torch.allclose(cls, aggregator(x, masked=masked, mask_token=-token)[0], atol=1e-3)


def test_order_of_patches_matters_through_the_convolution():
    aggregator, x = make(), torch.randn(1, 9, 12)
    assert not torch.allclose(aggregator(x)[0], aggregator(x.flip(1))[0], atol=1e-4)


def test_half_precision_patches_are_cast():
    aggregator = make()
    x = torch.randn(2, 7, 12).half()
    torch.testing.assert_close(aggregator(x)[0], aggregator(x.float())[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cls, _ = aggregator(x, masked=torch.tensor([[0], [1]]), mask_token=torch.zeros(16))
    assert torch.isfinite(cls).all()


def test_backward_reaches_every_parameter():
    aggregator = make(layers=2)
    cls, _ = aggregator(torch.randn(2, 11, 12))
    (cls * torch.randn(16)).sum().backward()
    silent = [name for name, p in aggregator.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="13 wide"):
        make()(torch.randn(1, 4, 13))
    with pytest.raises(ValueError, match="mask_token"):
        make()(torch.randn(1, 4, 12), masked=torch.tensor([[1]]))


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("lengths", [[13, 1, 6], [20, 20, 19]])
def test_bags_one_by_one_are_what_they_are_in_a_padded_batch(tokens, lengths, monkeypatch):
    model, seen = make(long_bag=18, piece=4).double(), []
    x = torch.randn(3, 20, 12, dtype=torch.float64)
    valid = torch.arange(20) < torch.tensor(lengths)[:, None]

    def run():
        model.zero_grad()
        cls, found = model(x, valid, tokens=tokens)
        loss = cls.square().sum() + (0 if found is None else (found**3 * valid[..., None]).sum())
        loss.backward()
        real = [] if found is None else [found.masked_fill(~valid[..., None], 0.0)]
        return [cls, *real, *(p.grad.clone() for p in model.parameters())]

    forward = PatchAggregator.forward
    monkeypatch.setattr(PatchAggregator, "forward", lambda *a, **k: seen.append(a[1].shape) or forward(*a, **k))
    alone = run()
    assert [shape[1] for shape in seen] == [20, *lengths]
    monkeypatch.setattr(aggregator, "_lengths_alone", lambda *_: None)
    for one, other in zip(alone, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


def test_gaps_and_empty_bags_stay_in_the_batch():
    model, x = make(), torch.randn(2, 9, 12)
    gap = torch.ones(2, 9, dtype=torch.bool)
    gap[0, 4] = False
    empty = torch.ones(2, 9, dtype=torch.bool)
    empty[1] = False
    assert aggregator._lengths_alone(x, gap) is None and aggregator._lengths_alone(x, empty) is None
    assert torch.isfinite(model(x, empty)[0]).all() and torch.isfinite(model(x, gap)[0]).all()
    ends = torch.arange(9) < torch.tensor([[9], [2]])
    assert aggregator._lengths_alone(x, ends) == [9, 2]
