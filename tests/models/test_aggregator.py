"""The patch aggregator: shapes, masking for MPM, padding, types, and that every parameter learns."""

import pytest
import torch

from gimp_ray.models import PatchAggregator


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
