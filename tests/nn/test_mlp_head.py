"""The MLP head."""

import torch
from torch import nn

from gimp_ray.nn.aggregator import MLPHead


def test_layers_follow_the_hidden_widths():
    head = MLPHead(8, 3, hidden=(6, 5), dropout=0.1)
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(8, 6), (6, 5), (5, 3)]
    assert head(torch.randn(2, 8)).shape == (2, 3)


def test_no_hidden_layer_is_a_linear_classifier():
    head, x = MLPHead(8, 3, hidden=()), torch.randn(2, 8)
    assert len(head) == 1
    torch.testing.assert_close(head(x), x @ head[0].weight.T + head[0].bias)
