"""TransMIL against its equations in numpy, and what every bag model must hold."""

import math

import bag_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded
from nystrom_attention import NystromAttention as PackageNystrom

from gimp_ray.methods.transmil import TransMIL

FILLS = pytest.mark.parametrize("fill", ["wrap", "zero"])
HEADS, K, M, KERNEL, ITERATIONS = 2, 4, 4, 5, 6
D = HEADS * K


def make(**changes) -> TransMIL:
    torch.manual_seed(0)
    settings = {"dim": D, "heads": HEADS, "dim_head": K, "num_landmarks": M, "residual_kernel": KERNEL}
    return TransMIL(E, C, **settings | {"pinv_iterations": ITERATIONS} | changes)


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def layer_norm(x, w, name):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def nystrom(x, w, name):
    """Xiong et al. 2021 for tokens that are all real, head by head; segments of ceil(n / M), the short one first."""
    n = len(x)
    qkv = np.einsum("nd,jd->nj", x, w[f"{name}.to_qkv.weight"]).reshape(n, 3, HEADS, K)
    length = -(-n // M)
    ends = list(range(n, 0, -length))[::-1]
    segments = [slice(max(0, end - length), end) for end in ends]
    heads = []
    for head in range(HEADS):
        q, k, v = (qkv[:, part, head] for part in range(3))
        q = q / math.sqrt(K)
        q_land, k_land = (np.stack([y[segment].mean(axis=0) for segment in segments]) for y in (q, k))
        middle = softmax(q_land @ k_land.T)
        z = middle.T / (np.abs(middle).sum(axis=1).max() * np.abs(middle).sum(axis=0).max())
        one = np.eye(len(middle))
        for _ in range(ITERATIONS):
            az = middle @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        out = softmax(q @ k_land.T) @ z @ softmax(q_land @ k.T) @ v
        taps = w[f"{name}.res_conv.weight"][head, 0, :, 0]
        padded = np.pad(v, ((KERNEL // 2, KERNEL // 2), (0, 0)))
        out = out + sum(tap * padded[i : i + n] for i, tap in enumerate(taps))
        heads.append(out)
    return np.concatenate(heads, axis=1) @ w[f"{name}.to_out.0.weight"].T + w[f"{name}.to_out.0.bias"]


def ppeg(image, w):
    """(s, s, D): identity and three depthwise convolutions, pixel by pixel."""
    out = image.copy()
    s = len(image)
    for i, size in enumerate((7, 5, 3)):
        taps, bias = w[f"ppeg.convolutions.{i}.weight"][:, 0], w[f"ppeg.convolutions.{i}.bias"]
        padded = np.pad(image, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        for row in range(s):
            for column in range(s):
                patch = padded[row : row + size, column : column + size]
                out[row, column] += np.einsum("yxd,dyx->d", patch, taps) + bias
    return out


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17])
def test_equals_the_equations(n):
    model = make().double().eval()
    for p in model.parameters():  # norms start as the identity, which would hide them
        torch.nn.init.normal_(p, std=0.4, generator=torch.Generator().manual_seed(p.numel()))
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = seeded(1, n, E)
    h = np.maximum(x[0].numpy() @ w["project.0.weight"].T + w["project.0.bias"], 0)
    s = math.ceil(math.sqrt(n))
    h = np.concatenate([w["cls_token"][None], h, h[: s * s - n]])
    h = h + nystrom(layer_norm(h, w, "norms.0"), w, "attentions.0")
    h = np.concatenate([h[:1], ppeg(h[1:].reshape(s, s, D), w).reshape(s * s, D)])
    h = h + nystrom(layer_norm(h, w, "norms.1"), w, "attentions.1")
    bag = layer_norm(h, w, "cls_norm")[0]
    out = model(x)
    np.testing.assert_allclose(out.bag[0].detach(), bag, atol=1e-9)
    np.testing.assert_allclose(out.logits[0].detach(), w["classify.weight"] @ bag + w["classify.bias"], atol=1e-9)
    assert out.attention is None


def test_defaults_are_the_published():
    model = TransMIL(1024, 2)
    attention = model.attentions[0]
    assert model.project[0].weight.shape == (512, 1024) and len(model.attentions) == 2
    assert (attention.heads, attention.dim_head, attention.num_landmarks, attention.pinv_iterations) == (8, 64, 256, 6)
    assert attention.res_conv.kernel_size == (33, 1) and attention.to_out[1].p == 0.1
    assert model.cls_token.std().item() == pytest.approx(1, abs=0.15)


@FILLS
def test_alone_equals_batched_and_padded(fill):
    checks.check_alone_equals_batched_and_padded(make(fill=fill))


@FILLS
def test_masks(fill):
    checks.check_a_mask_of_all_equals_none(make(fill=fill))
    checks.check_a_bag_without_patches_harms_nobody(make(fill=fill))


def test_the_fills_differ_only_where_there_is_something_to_fill():
    wrap, zero = make().double().eval(), make(fill="zero").double().eval()
    torch.testing.assert_close(wrap(seeded(1, 9, E)).logits, zero(seeded(1, 9, E)).logits)
    assert not torch.allclose(wrap(seeded(1, 7, E)).logits, zero(seeded(1, 7, E)).logits, atol=1e-4)


def test_wrapping_is_the_bag_with_its_first_patches_again():
    model, x = make().double().eval(), seeded(1, 7, E)
    torch.testing.assert_close(model(x).logits, model(torch.cat([x, x[:, :2]], dim=1)).logits)


def test_the_packages_mask_does_not_make_padding_harmless():
    torch.manual_seed(0)
    package = PackageNystrom(D, dim_head=K, heads=HEADS, num_landmarks=M, residual_conv_kernel=KERNEL).double().eval()
    x = seeded(1, 9, D)
    alone = package(x, mask=torch.ones(1, 9, dtype=torch.bool))
    padded = package(F.pad(x, (0, 0, 0, 5)), mask=torch.arange(14)[None] < 9)[:, :9]
    assert not torch.allclose(alone, padded, atol=1e-3)


def test_order_of_patches_matters():
    model, x = make().double().eval(), seeded(1, 9, E)
    assert not torch.allclose(model(x).logits, model(x.flip(1)).logits, atol=1e-4)


def test_dropout_in_training_only():
    checks.check_deterministic_in_evaluation_only(make(dropout=0.5))


@FILLS
def test_backward_reaches_every_parameter(fill):
    model = make(fill=fill, dropout=0.0).double()
    assert checks.silent_parameters(model, F.cross_entropy(model(seeded(2, 7, E)).logits, torch.tensor([0, 1]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(), lambda out, labels: F.cross_entropy(out.logits, labels), steps=20, lr=1e-2)


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make())


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    with pytest.raises(ValueError, match="fill"):
        make(fill="mirror")
