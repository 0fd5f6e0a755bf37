"""The MPM loss: Eq. 3 to the digit."""

import pytest
import torch

from gimp_ray.nn.losses import masked_patch_loss, patches_at

PREDICTION = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
TARGET = torch.tensor([[[0.0, 4.0], [3.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])


def test_mean_is_over_masked_elements():
    assert masked_patch_loss(PREDICTION, TARGET).item() == 1.0  # (1 + 2 + 0 + 4 + 1) / 8


def test_sum_is_eq_3_of_a_window_averaged_over_windows():
    assert masked_patch_loss(PREDICTION[:1], TARGET[:1], "sum").item() == 7.0
    assert masked_patch_loss(PREDICTION, TARGET, "sum").item() == 4.0  # (7 + 1) / 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_halves_of_a_batch_average_to_the_whole(reduction):
    halves = [masked_patch_loss(PREDICTION[i : i + 1], TARGET[i : i + 1], reduction) for i in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), masked_patch_loss(PREDICTION, TARGET, reduction))


def test_gradient_is_the_sign_of_the_error():
    prediction = PREDICTION.clone().requires_grad_()
    masked_patch_loss(prediction, TARGET).backward()
    torch.testing.assert_close(prediction.grad, (PREDICTION - TARGET).sign() / 8)


def test_half_precision_is_computed_in_float32():
    prediction, target = torch.full((1, 4000, 64), 100.0).half(), torch.zeros(1, 4000, 64).half()
    loss = masked_patch_loss(prediction, target, "sum")
    assert loss.dtype == torch.float32 and loss.item() == 100.0 * 4000 * 64  # beyond float16


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        masked_patch_loss(PREDICTION, TARGET[:1])
    with pytest.raises(ValueError, match="no masked"):
        masked_patch_loss(PREDICTION[:, :0], TARGET[:, :0])
    with pytest.raises(ValueError, match="reduction"):
        masked_patch_loss(PREDICTION, TARGET, "max")  # type: ignore[arg-type]


def test_the_patches_at_some_positions_of_each_window():
    patches = torch.arange(24, dtype=torch.float16).view(2, 4, 3)
    found = patches_at(patches, torch.tensor([[3, 0], [1, 2]]))
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.stack([patches[0, [3, 0]], patches[1, [1, 2]]]))
