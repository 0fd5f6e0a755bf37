"""Mean-pooled patches under an MLP: the mean, and what every bag model must hold."""

import bag_checks as checks
import numpy as np
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded

from gimp_ray.methods.mean_pool import MeanPoolMLP


def make(**changes) -> MeanPoolMLP:
    torch.manual_seed(0)
    return MeanPoolMLP(E, C, **{"hidden": (8,)} | changes)


def test_without_hidden_layers_it_is_linear_in_the_mean():
    model = make(hidden=()).double().eval()
    x = seeded(2, 5, E)
    x[1, 3:] = torch.nan
    out = model(x, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    means = np.stack([x[0].numpy().mean(0), x[1, :3].numpy().mean(0)])
    weight, bias = (p.detach().numpy() for p in model.parameters())
    np.testing.assert_allclose(out.bag.detach(), means, atol=1e-12)
    np.testing.assert_allclose(out.logits.detach(), np.einsum("be,ce->bc", means, weight) + bias, atol=1e-12)
    assert out.attention is None


def test_half_precision_patches_are_averaged_in_float32():
    model = MeanPoolMLP(2, C, ()).eval()
    x = torch.full((1, 40_000, 2), 100.0).half()  # the sum is beyond float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x).bag, torch.full((1, 2), 100.0))


def test_alone_equals_batched_and_padded():
    checks.check_alone_equals_batched_and_padded(make())


def test_masks():
    checks.check_a_mask_of_all_equals_none(make())
    checks.check_a_bag_without_patches_harms_nobody(make())


def test_dropout_in_training_only():
    checks.check_deterministic_in_evaluation_only(make())


def test_backward_reaches_every_parameter():
    model = make(dropout=0.0).double()
    assert checks.silent_parameters(model, F.cross_entropy(model(seeded(2, 7, E)).logits, torch.tensor([0, 1]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(hidden=(32,)), lambda out, labels: F.cross_entropy(out.logits, labels), lr=1e-2)


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make())


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
