"""Gated Kronecker product fusion against its equations in numpy."""

import numpy as np
import pytest
import torch
from bag_checks import seeded, silent_parameters
from joint_checks import Weights

from gimp_ray.nn.fusion import BilinearFusion


@pytest.mark.parametrize("gate", ["linear", "bilinear"])
@pytest.mark.parametrize("gates", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("skip", ["inputs", "reduced", None])
def test_equals_the_equations(gate, gates, skip):
    torch.manual_seed(0)
    net = BilinearFusion(5, 4, 3, 6, gate, *gates, skip).double().eval()
    a, b = seeded(2, 5), seeded(2, 4, seed=1)
    w = Weights(torch.nn.ModuleDict({"fusion": net}))
    for row, found in enumerate(net(a, b)):
        expected = w.fused("fusion", a[row].numpy(), b[row].numpy(), gate, gates, skip)
        np.testing.assert_allclose(found.detach(), expected, atol=1e-12)


def test_defaults_make_the_product_1089_wide():
    net = BilinearFusion(256, 256)
    assert net.joint[0].in_features == 33 * 33
    assert net.out[0].in_features == 3 * 256 and net(torch.randn(2, 256), torch.randn(2, 256)).shape == (2, 256)


def test_backward_reaches_every_parameter():
    torch.manual_seed(0)
    net = BilinearFusion(5, 4, 8, 8, "bilinear", dropout=0.0).double()
    assert silent_parameters(net, net(seeded(9, 5), seeded(9, 4, seed=1)).square().sum()) == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="reduced=0"):
        BilinearFusion(5, 4, 0)
    with pytest.raises(ValueError, match="gate is"):
        BilinearFusion(5, 4, gate="tensor")
    with pytest.raises(ValueError, match="skip"):
        BilinearFusion(5, 4, skip="all")
    with pytest.raises(ValueError, match="vectors must be"):
        BilinearFusion(5, 4)(torch.zeros(2, 5), torch.zeros(1, 4))
