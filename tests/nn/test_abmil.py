"""ABMIL against its equations in numpy, and what every bag model must hold."""

import bag_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded

from gimp_ray.methods.abmil import ABMIL
from gimp_ray.nn.pooling import AttentionPool


def make(**changes) -> ABMIL:
    torch.manual_seed(0)
    return ABMIL(E, C, **{"dim": 8, "attention_dim": 5} | changes)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


@pytest.mark.parametrize("gated", [True, False])
def test_equals_the_equations(gated):
    model = make(gated=gated).double().eval()
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = seeded(1, 11, E)
    h = np.maximum(x[0].numpy() @ w["trunk.linear.weight"].T + w["trunk.linear.bias"], 0)
    scores = []
    for h_n in h:
        hidden = np.tanh(w["trunk.pool.content.0.weight"] @ h_n + w["trunk.pool.content.0.bias"])
        if gated:
            u = w["trunk.pool.gate.0.weight"] @ h_n + w["trunk.pool.gate.0.bias"]
            hidden = hidden / (1 + np.exp(-u))
        scores.append(float(w["trunk.pool.score.weight"][0] @ hidden))
    a = softmax(np.array(scores))
    z = sum(a_n * h_n for a_n, h_n in zip(a, h, strict=True))
    out = model(x)
    np.testing.assert_allclose(out.attention[0].detach(), a, atol=1e-12)
    np.testing.assert_allclose(out.bag[0].detach(), z, atol=1e-12)
    np.testing.assert_allclose(out.logits[0].detach(), w["classify.weight"] @ z + w["classify.bias"], atol=1e-12)


def test_defaults_are_the_fields():
    model = ABMIL(1024, 2)
    assert model.trunk.linear.weight.shape == (512, 1024)
    assert model.trunk.pool.content[0].weight.shape == model.trunk.pool.gate[0].weight.shape == (256, 512)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert ABMIL(1024, 2, gated=False).trunk.pool.gate is None


@pytest.mark.parametrize("gated", [True, False])
def test_alone_equals_batched_and_padded(gated):
    checks.check_alone_equals_batched_and_padded(make(gated=gated), per_patch=["attention"])


def test_masks():
    checks.check_a_mask_of_all_equals_none(make())
    checks.check_a_bag_without_patches_harms_nobody(make())


def test_order_of_patches_does_not_matter():
    model, x = make().double().eval(), seeded(1, 9, E)
    torch.testing.assert_close(model(x).logits, model(x.flip(1)).logits)


def test_dropout_in_training_only():
    checks.check_deterministic_in_evaluation_only(make())


@pytest.mark.parametrize("gated", [True, False])
def test_backward_reaches_every_parameter(gated):
    model = make(gated=gated, dropout=0.0).double()
    assert checks.silent_parameters(model, F.cross_entropy(model(seeded(2, 7, E)).logits, torch.tensor([0, 1]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(dim=32), lambda out, labels: F.cross_entropy(out.logits, labels))


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make())


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    with pytest.raises(ValueError, match="branches=0"):
        AttentionPool(4, 4, branches=0)
