"""DSMIL against its equations in numpy, and what every bag model must hold."""

import bag_checks as checks
import numpy as np
import pytest
import torch
from bag_checks import C, E, seeded

from gimp_ray.methods.dsmil import DSMIL, dsmil_loss, dsmil_probabilities

FIELDS = ("logits", "max_logits", "bag")


def make(**changes) -> DSMIL:
    torch.manual_seed(0)
    return DSMIL(E, C, **{"query_dim": 5} | changes)


def both_streams(out, labels):
    return dsmil_loss(out.logits, out.max_logits, labels)


def test_equals_the_equations():
    model = make().double().eval()
    for p in model.parameters():  # biases of zero would hide themselves
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = seeded(1, 11, E)
    patches = x[0].numpy()

    def query(patch):
        hidden = np.maximum(w["query.0.weight"] @ patch + w["query.0.bias"], 0)
        return np.tanh(w["query.2.weight"] @ hidden + w["query.2.bias"])

    instance_logits = patches @ w["instances.weight"].T + w["instances.bias"]
    kernel = w["classify.weight"].reshape(C, C, E)  # out channel, in channel, position: a convolution over E values
    matrix, attention = np.zeros((C, E)), np.zeros((C, 11))
    for k in range(C):
        critical = query(patches[instance_logits[:, k].argmax()])
        weights = np.exp([query(patch) @ critical / np.sqrt(5) for patch in patches])
        attention[k] = weights / weights.sum()
        matrix[k] = attention[k] @ patches
    logits = np.einsum("jke,ke->j", kernel, matrix) + w["classify.bias"]
    out = model(x)
    np.testing.assert_allclose(out.max_logits[0].detach(), instance_logits.max(axis=0), atol=1e-12)
    np.testing.assert_allclose(out.class_attention[0].detach(), attention, atol=1e-12)
    np.testing.assert_allclose(out.bag[0].detach(), matrix.ravel(), atol=1e-12)
    np.testing.assert_allclose(out.logits[0].detach(), logits, atol=1e-11)
    np.testing.assert_array_equal(out.attention[0].detach(), out.class_attention[0, logits.argmax()].detach())


def test_the_linear_head_is_the_convolution():
    model = make().double()
    convolution = torch.nn.Conv1d(C, C, kernel_size=E).double()
    convolution.load_state_dict({"weight": model.classify.weight.view(C, C, E), "bias": model.classify.bias})
    out = model(seeded(2, 5, E))
    torch.testing.assert_close(out.logits, convolution(out.bag.view(2, C, E)).squeeze(-1))


def test_weights_start_orthogonal_and_biases_at_zero():
    model = make()
    weight = model.classify.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(C))
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    assert DSMIL(1024, 2).query[0].weight.shape == (128, 1024)


@pytest.mark.parametrize("value_map", [False, True])
def test_alone_equals_batched_and_padded(value_map):
    checks.check_alone_equals_batched_and_padded(
        make(value_map=value_map),
        per_bag=FIELDS,
        per_patch=["attention", "class_attention"],
        loss=lambda out: out.logits.square().sum() + out.max_logits.square().sum(),
    )


def test_masks():
    checks.check_a_mask_of_all_equals_none(make())
    checks.check_a_bag_without_patches_harms_nobody(make())
    out = make().eval()(torch.randn(2, 3, E), torch.tensor([[True] * 3, [False] * 3]))
    assert torch.isfinite(out.max_logits).all()


def test_a_patch_of_the_padding_is_never_critical():
    model = make().double().eval()
    x = seeded(1, 4, E)
    instance_logits = model.instances(x)[0]
    best = int(instance_logits[:, 0].argmax())
    valid = torch.ones(1, 4, dtype=torch.bool)
    valid[0, best] = False
    second = instance_logits[:, 0].sort().values[-2]
    torch.testing.assert_close(model(x, valid).max_logits[0, 0], second)


def test_dropout_in_training_only():
    checks.check_deterministic_in_evaluation_only(make(value_map=True, dropout=0.5))


@pytest.mark.parametrize("value_map", [False, True])
def test_backward_of_both_streams_reaches_every_parameter(value_map):
    model = make(value_map=value_map).double()
    out = model(seeded(2, 7, E))
    assert checks.silent_parameters(model, both_streams(out, torch.tensor([0, 1]))) == []


def test_the_bag_stream_alone_does_not_train_the_instance_classifier():
    model = make().double()
    assert checks.silent_parameters(model, model(seeded(2, 7, E)).logits.square().sum()) == [
        "instances.weight",
        "instances.bias",
    ]


def test_overfits_a_tiny_set():
    checks.check_overfits(make(query_dim=16), both_streams, steps=200, lr=1e-2)


def test_probabilities():
    bag, top = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    one = 1 / (1 + np.exp(-2.0))
    torch.testing.assert_close(dsmil_probabilities(bag, top), torch.tensor([[0.5, one]]).float())
    torch.testing.assert_close(dsmil_probabilities(bag, top, average=True), torch.full((1, 2), (0.5 + one) / 2))


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make())


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
