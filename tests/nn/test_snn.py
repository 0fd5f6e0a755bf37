"""SNN: its blocks, its initial weights, its dropout."""

import pytest
import torch
from torch import nn

from gimp_ray.nn.genes import SNN


def test_shape_and_blocks():
    net = SNN(40, dim=6, hidden=(8, 7))
    assert net(torch.randn(3, 40)).shape == (3, 6)
    assert [type(m) for m in net.blocks] == [nn.Linear, nn.ELU, nn.AlphaDropout] * 3
    assert [(m.in_features, m.out_features) for m in net.blocks if isinstance(m, nn.Linear)] == [
        (40, 8),
        (8, 7),
        (7, 6),
    ]


def test_initial_weights_keep_unit_variance():
    torch.manual_seed(0)
    first = SNN(4000, dim=256, hidden=()).blocks[0]
    assert first.weight.std().item() == pytest.approx(4000**-0.5, rel=0.01)
    assert (first.bias == 0).all()


def test_dropout_in_training_only():
    net, x = SNN(10, 4, (5,), dropout=0.5), torch.randn(2, 10)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_backward_reaches_every_parameter():
    net = SNN(10, 4, (5,), dropout=0.0)
    net(torch.randn(6, 10)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_wrong_number_of_genes_is_refused():
    with pytest.raises(ValueError, match="11 genes"):
        SNN(10)(torch.randn(1, 11))
