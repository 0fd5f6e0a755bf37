"""CLAM, single and multi branch, against its equations in numpy, and what every bag model must hold."""

import bag_checks as checks
import numpy as np
import pytest
import torch
from bag_checks import C, E, seeded

from gimp_ray.methods.clam import CLAM, clam_loss

BRANCHES = pytest.mark.parametrize("multi_branch", [False, True])


def make(multi_branch: bool = False, **changes) -> CLAM:
    torch.manual_seed(0)
    return CLAM(E, C, multi_branch, **{"dim": 8, "attention_dim": 5, "instances": 4} | changes)


def whole_loss(out, labels):
    return clam_loss(out.logits, out.top_logits, out.bottom_logits, out.picked, labels).loss


@BRANCHES
@pytest.mark.parametrize("n", [11, 6, 3])
def test_equals_the_equations(multi_branch, n):
    model = make(multi_branch).double().eval()
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = seeded(1, n, E)
    h = np.maximum(np.einsum("ne,de->nd", x[0].numpy(), w["trunk.linear.weight"]) + w["trunk.linear.bias"], 0)
    content = np.tanh(np.einsum("nd,ad->na", h, w["trunk.pool.content.0.weight"]) + w["trunk.pool.content.0.bias"])
    gate = 1 / (1 + np.exp(-np.einsum("nd,ad->na", h, w["trunk.pool.gate.0.weight"]) - w["trunk.pool.gate.0.bias"]))
    scores = np.einsum("na,ka->kn", content * gate, w["trunk.pool.score.weight"])
    a = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    z = np.einsum("kn,nd->kd", a, h)
    out = model(x)
    np.testing.assert_allclose(out.class_attention[0].detach(), a, atol=1e-12)
    np.testing.assert_allclose(out.bag[0].detach(), z.ravel(), atol=1e-12)
    if multi_branch:
        logits = [w[f"classify.{k}.weight"][0] @ z[k] + w[f"classify.{k}.bias"][0] for k in range(C)]
    else:
        logits = w["classify.weight"] @ z[0] + w["classify.bias"]
    np.testing.assert_allclose(out.logits[0].detach(), logits, atol=1e-12)
    np.testing.assert_allclose(out.attention[0].detach(), a[int(np.argmax(logits)) if multi_branch else 0], atol=1e-12)

    places = min(4, n)
    assert out.picked.tolist() == [[True] * places]
    for k in range(C):
        rising = np.argsort(a[k if multi_branch else 0])
        for found, order in ((out.top_logits, rising[::-1]), (out.bottom_logits, rising)):
            expected = h[order[:places]] @ w[f"instance_classifiers.{k}.weight"].T
            expected = expected + w[f"instance_classifiers.{k}.bias"]
            np.testing.assert_allclose(found[0, k].detach(), expected, atol=1e-12)


def test_defaults_are_the_published():
    model = CLAM(1024, 2)
    assert model.trunk.linear.weight.shape == (512, 1024) and model.instances == 8
    assert model.trunk.pool.gate[0].weight.shape == (256, 512)
    assert model.trunk.pool.score.weight.shape[0] == 1
    assert CLAM(1024, 2, multi_branch=True).trunk.pool.score.weight.shape[0] == 2


@BRANCHES
def test_alone_equals_batched_and_padded(multi_branch):
    def loss(out):
        chosen = [torch.where(out.picked[:, None, :, None], end, 0.0) for end in (out.top_logits, out.bottom_logits)]
        return out.logits.square().sum() + chosen[0].square().sum() + 2 * chosen[1].square().sum()

    checks.check_alone_equals_batched_and_padded(
        make(multi_branch), per_patch=["attention", "class_attention"], loss=loss
    )


@BRANCHES
def test_picked_patches_are_those_of_the_bag_alone(multi_branch):
    model = make(multi_branch).double().eval()
    bags = checks.make_bags()
    out = model(*checks.in_a_batch(bags, 31, holes=True))
    for row, bag in enumerate(bags):
        alone, places = model(bag), min(4, bag.shape[1])
        assert out.picked[row].sum() == places == alone.picked.sum()
        for name in ("top_logits", "bottom_logits"):
            found, expected = getattr(out, name)[row, :, :places], getattr(alone, name)[0]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@BRANCHES
def test_masks(multi_branch):
    checks.check_a_mask_of_all_equals_none(make(multi_branch))
    checks.check_a_bag_without_patches_harms_nobody(make(multi_branch))


def test_dropout_in_training_only():
    checks.check_deterministic_in_evaluation_only(make())


@BRANCHES
def test_backward_reaches_every_parameter(multi_branch):
    model = make(multi_branch, dropout=0.0).double()
    out = model(seeded(2, 7, E))
    assert checks.silent_parameters(model, whole_loss(out, torch.tensor([0, 1]))) == []


def test_without_the_instance_loss_its_classifiers_are_not_trained():
    model = make(dropout=0.0).double()
    silent = checks.silent_parameters(model, model(seeded(2, 7, E)).logits.square().sum())
    assert silent == [name for name, _ in model.named_parameters() if name.startswith("instance_classifiers")]


@BRANCHES
def test_overfits_a_tiny_set(multi_branch):
    checks.check_overfits(make(multi_branch, dim=32, attention_dim=16), whole_loss, steps=120)


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make())


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    with pytest.raises(ValueError, match="instances"):
        make(instances=0)
