"""The losses of DSMIL and CLAM against loops over bags, classes and patches."""

import math

import pytest
import torch

from gimp_ray.methods.clam import clam_instance_loss, clam_loss
from gimp_ray.methods.dsmil import dsmil_loss

B, C, P = 4, 3, 5


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([2, 0, 1, 2])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dsmil_is_half_and_half_of_two_binary_cross_entropies():
    bag, top = seeded(B, C), seeded(B, C, seed=1)
    total = 0.0
    for i, label in enumerate(LABELS.tolist()):
        for k in range(C):
            for stream in (bag, top):
                p = sigmoid(stream[i, k].item())
                total -= math.log(p if k == label else 1 - p) / (2 * B * C)
    assert dsmil_loss(bag, top, LABELS).item() == pytest.approx(total, abs=1e-12)


def test_dsmil_with_cross_entropy():
    bag, top = seeded(B, C), seeded(B, C, seed=1)
    total = sum(-s.log_softmax(1)[i, k].item() for s in (bag, top) for i, k in enumerate(LABELS.tolist())) / (2 * B)
    assert dsmil_loss(bag, top, LABELS, kind="ce").item() == pytest.approx(total, abs=1e-12)


def instance_loss_by_loops(top, bottom, count, labels, subtyping, kind):
    """Lu et al., with the smooth SVM as its definition: a log-sum-exp over labels with a margin of 1 at the others."""

    def one(scores, y):
        margins = [(0.0 if j == y or kind == "ce" else 1.0) + s - scores[y] for j, s in enumerate(scores)]
        return math.log(sum(math.exp(m) for m in margins))

    total = 0.0
    for i, label in enumerate(labels):
        if count[i] == 0:
            continue
        places = range(count[i])
        for k in range(C):
            ones = [one(top[i, k, p].tolist(), 1) for p in places]
            zeros = [one(bottom[i, k, p].tolist(), 0) for p in places]
            if k == label:
                both = ones + zeros
                total += sum(both) / len(both)
            elif subtyping:
                zeros = [one(top[i, k, p].tolist(), 0) for p in places]
                total += sum(zeros) / len(zeros)
    return total / len(labels) / (C if subtyping else 1)


@pytest.mark.parametrize("kind", ["svm", "ce"])
@pytest.mark.parametrize("subtyping", [True, False])
def test_clam_instance_loss_equals_loops(kind, subtyping):
    top, bottom = seeded(B, C, P, 2), seeded(B, C, P, 2, seed=1)
    count = [5, 3, 1, 0]
    picked = torch.arange(P) < torch.tensor(count)[:, None]
    expected = instance_loss_by_loops(top, bottom, count, LABELS.tolist(), subtyping, kind)
    rubbish = torch.where(picked[:, None, :, None], top, torch.nan), torch.where(picked[:, None, :, None], bottom, 1e30)
    for ends in ((top, bottom), rubbish):
        found = clam_instance_loss(*ends, picked, LABELS, subtyping, kind)
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_clam_loss_is_seven_parts_bag_and_three_parts_instances():
    logits, top, bottom = seeded(B, C), seeded(B, C, P, 2, seed=1), seeded(B, C, P, 2, seed=2)
    picked = torch.ones(B, P, dtype=torch.bool)
    result = clam_loss(logits, top, bottom, picked, LABELS)
    bag = -sum(logits.log_softmax(1)[i, k].item() for i, k in enumerate(LABELS.tolist())) / B
    assert result.bag.item() == pytest.approx(bag, abs=1e-12)
    torch.testing.assert_close(result.instance, clam_instance_loss(top, bottom, picked, LABELS))
    torch.testing.assert_close(result.loss, 0.7 * result.bag + 0.3 * result.instance)


def test_half_precision_is_computed_in_float32():
    logits = torch.full((2, 3), 5.0).bfloat16()
    labels = torch.tensor([0, 1])
    assert dsmil_loss(logits, logits, labels).dtype == torch.float32
    ends = torch.zeros(2, 3, 4, 2).bfloat16()
    assert clam_loss(logits, ends, ends, torch.ones(2, 4, dtype=torch.bool), labels).loss.dtype == torch.float32


def test_bad_input_is_refused():
    x, ends, picked = torch.zeros(2, C), torch.zeros(2, C, P, 2), torch.ones(2, P, dtype=torch.bool)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="labels"):
        dsmil_loss(x, x, torch.tensor([0]))
    with pytest.raises(ValueError, match="kind"):
        dsmil_loss(x, x, labels, kind="mse")
    with pytest.raises(ValueError, match="top and bottom"):
        clam_instance_loss(ends, ends[:, :2], picked, labels)
    with pytest.raises(ValueError, match="picked"):
        clam_instance_loss(ends, ends, picked[:, :2], labels)
    with pytest.raises(ValueError, match="kind"):
        clam_instance_loss(ends, ends, picked, labels, kind="hinge")
    with pytest.raises(ValueError, match="bag_weight"):
        clam_loss(x, ends, ends, picked, labels, bag_weight=1.5)
