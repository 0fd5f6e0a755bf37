"""Mixup: rows and labels are mixed alike."""

import pytest
import torch

from gimp_ray.nn.losses import mixup

LABELS = torch.tensor([0, 2, 1, 2])


def test_labels_are_mixed_as_the_rows_are():
    torch.manual_seed(0)
    rows = torch.nn.functional.one_hot(LABELS, 3).float()
    mixed, target = mixup(rows, LABELS, 3, alpha=1.0)
    torch.testing.assert_close(mixed, target)  # rows that are their labels stay so
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    assert ((target > 0) & (target < 1)).any()


def test_mean_of_the_batch_is_kept():
    torch.manual_seed(0)
    x = torch.randn(4, 7)
    mixed, _ = mixup(x, LABELS, 3)
    torch.testing.assert_close(mixed.mean(dim=0), x.mean(dim=0))
    assert not torch.allclose(mixed, x)


def test_same_seed_same_mixture():
    x = torch.randn(4, 7)
    torch.manual_seed(3)
    first = mixup(x, LABELS, 3)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, mixup(x, LABELS, 3), strict=True))


def test_zero_alpha_mixes_nothing_and_negative_is_refused():
    x = torch.randn(4, 7)
    mixed, target = mixup(x, LABELS, 3, alpha=0)
    assert torch.equal(mixed, x) and torch.equal(target.argmax(dim=1), LABELS)
    with pytest.raises(ValueError, match="alpha"):
        mixup(x, LABELS, 3, alpha=-1)
