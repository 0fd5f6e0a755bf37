"""BioViL's losses against loops."""

import pytest
import torch
from torch import Tensor

from gimp_ray.methods.biovil import biovil_loss, masked_group_loss
from gimp_ray.nn.losses import infonce

B, P, R, M, E = 3, 4, 5, 2, 6
MASKED = torch.tensor([[True, False, True, False, False], [False] * 5, [False, True, False, False, False]])


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masked_groups_against_loops():
    predicted, target = seeded(B, R), seeded(B, R, seed=1)
    first = sum((predicted[0, r] - target[0, r]).item() ** 2 for r in (0, 2)) / 2
    third = (predicted[2, 1] - target[2, 1]).item() ** 2
    # the second case has no masked group and does not count
    assert masked_group_loss(predicted, target, MASKED).item() == pytest.approx((first + third) / 2, abs=1e-12)


def test_what_is_not_masked_gives_no_gradient_and_nothing_masked_gives_zero():
    predicted = seeded(B, R).requires_grad_()
    masked_group_loss(predicted, seeded(B, R, seed=1), MASKED).backward()
    assert predicted.grad is not None and (predicted.grad[~MASKED] == 0).all() and (predicted.grad[MASKED] != 0).all()
    assert masked_group_loss(predicted, predicted.detach() + 1, torch.zeros_like(MASKED)) == 0


def test_joint_training_is_contrast_and_a_tenth_of_masked_groups():
    a, b, predicted, target = seeded(B, P), seeded(B, P, seed=1), seeded(B, R, seed=2), seeded(B, R, seed=3)
    result = biovil_loss(a, b, predicted, target, MASKED)
    expected = infonce(a, b, 0.5).loss + 0.1 * masked_group_loss(predicted, target, MASKED)
    torch.testing.assert_close(result.loss, expected)
    assert result.patches is None and 0 <= result.accuracy <= 1


def test_the_warm_up_adds_the_masked_patches():
    a, b, predicted, target = seeded(B, P), seeded(B, P, seed=1), seeded(B, R, seed=2), seeded(B, R, seed=3)
    reconstruction, patches = seeded(B, M, E, seed=4), seeded(B, M, E, seed=5)
    joint = biovil_loss(a, b, predicted, target, MASKED, mask_weight=2.0)
    warm = biovil_loss(a, b, predicted, target, MASKED, reconstruction, patches, mask_weight=2.0)
    torch.testing.assert_close(warm.loss, joint.loss + (reconstruction - patches).abs().mean())
    torch.testing.assert_close(joint.loss, joint.contrast + 2 * joint.groups)


def test_bad_input_is_refused():
    x = seeded(B, R)
    with pytest.raises(ValueError, match="one shape"):
        masked_group_loss(x, x[:, :2], MASKED)
    with pytest.raises(ValueError, match="bool"):
        masked_group_loss(x, x, MASKED.long())
    with pytest.raises(ValueError, match="together"):
        biovil_loss(x, x, x, x, MASKED, reconstruction_BME=seeded(B, M, E))
