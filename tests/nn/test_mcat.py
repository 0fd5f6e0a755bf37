"""MCAT against its equations in numpy, its gene groups, and what every joint model must hold."""

import joint_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded, silent_parameters
from joint_checks import G, Weights, seeded_genes

from gimp_ray.methods.mcat import MCAT, GroupedSNN

GROUPS = [[0, 3, 9], [4], [1, 2, 3, 5, 8]]
D, HEADS = 8, 2


def make(**changes) -> MCAT:
    torch.manual_seed(0)
    return MCAT(E, G, **{"groups": GROUPS, "num_classes": C, "dim": D, "heads": HEADS, "ff_dim": 12} | changes)


def layer_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5)
    return scaled * w.w[f"{name}.weight"] + w.w[f"{name}.bias"]


def transformer_layer(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Post-norm: x = LN(x + attention(x)), x = LN(x + ff(x))."""
    qkv = x @ w.w[f"{name}.self_attn.in_proj_weight"].T + w.w[f"{name}.self_attn.in_proj_bias"]
    q, k, v = (part.reshape(len(x), HEADS, -1) for part in np.split(qkv, 3, axis=1))
    joined = np.empty_like(q)
    for head in range(HEADS):
        for token in range(len(x)):
            a = checks.softmax(k[:, head] @ q[token, head] / np.sqrt(q.shape[2]))
            joined[token, head] = a @ v[:, head]
    rows = [w.linear(f"{name}.self_attn.out_proj", row) for row in joined.reshape(len(x), -1)]
    x = layer_norm(w, f"{name}.norm1", x + rows)
    rows = [w.linear(f"{name}.linear2", w.relu(f"{name}.linear1", row)) for row in x]
    return layer_norm(w, f"{name}.norm2", x + rows)


def encoded(w: Weights, name: str, tokens: np.ndarray) -> np.ndarray:
    for layer in range(2):
        tokens = transformer_layer(w, f"{name}.layers.{layer}", tokens)
    return w.relu(f"{name}.out.0", w.gated_pool(f"{name}.pool", list(tokens))[0])


def gene_tokens(w: Weights, name: str, genes: np.ndarray) -> np.ndarray:
    tokens = []
    for t, group in enumerate(GROUPS):
        first = sum(genes[g] * w.w[f"{name}first_TSD"][t, s] for s, g in enumerate(group))
        first = checks.elu(first + w.w[f"{name}first_bias_TD"][t])
        tokens.append(checks.elu(first @ w.w[f"{name}second_TDD"][t] + w.w[f"{name}second_bias_TD"][t]))
    return np.stack(tokens)


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
def test_equals_the_equations(fusion):
    model = make(fusion=fusion).double().eval()
    w, x, genes = Weights(model), seeded(1, 11, E), seeded_genes(1)
    h = np.stack([w.relu("project", row) for row in x[0].numpy()])
    tokens = gene_tokens(w, "genes.", genes[0].numpy())
    images, weights = [], []
    for g in tokens:
        q = w.linear("coattention.to_q", g)
        a = checks.softmax(np.array([q @ w.linear("coattention.to_k", row) for row in h]) / np.sqrt(D))
        value = sum(a_n * w.linear("coattention.to_v", row) for a_n, row in zip(a, h, strict=True))
        images.append(w.linear("coattention.to_out", value))
        weights.append(a)
    z_v, z_g = encoded(w, "encode_image", np.stack(images)), encoded(w, "encode_genes", tokens)
    if fusion == "concat":
        fused = w.relu("fusion.layers.2", w.relu("fusion.layers.0", np.concatenate([z_v, z_g])))
    else:
        fused = w.fused("fusion", z_v, z_g, "linear", (True, True), "inputs")
    out = model(x, genes_BG=genes)
    np.testing.assert_allclose(out.coattention[0].detach(), np.stack(weights), atol=1e-12)
    np.testing.assert_allclose(out.attention[0].detach(), np.mean(weights, axis=0), atol=1e-12)
    np.testing.assert_allclose(out.bag[0].detach(), fused, atol=1e-9)
    np.testing.assert_allclose(out.logits[0].detach(), w.linear("classify", fused), atol=1e-9)


def test_genes_outside_the_groups_change_nothing_and_padding_stays_zero():
    model = make(dropout=0.0).double()
    genes, x = seeded_genes(2), seeded(2, 7, E)
    before = model(x, genes_BG=genes).logits
    genes[:, [6, 7]] = 1e9
    assert torch.equal(model(x, genes_BG=genes).logits, before)
    F.cross_entropy(before, torch.tensor([0, 1])).backward()
    padding = ~model.genes.filled
    assert padding.sum() == 6
    assert (model.genes.first_TSD[padding] == 0).all() and (model.genes.first_TSD.grad[padding] == 0).all()


def test_weights_of_a_group_start_as_if_it_were_alone():
    torch.manual_seed(0)
    net = GroupedSNN(400, [list(range(400)), [0, 1]], dim=256)
    assert net.first_TSD[0].std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert net.first_TSD[1, :2].std().item() == pytest.approx(2**-0.5, rel=0.1)


def test_alone_equals_batched_and_padded():
    checks.check_alone_equals_batched_and_padded(make())


def test_masks_dropout_and_types():
    checks.check_masks(make())
    checks.check_deterministic_in_evaluation_only(make())
    checks.check_both_modalities_count(make(dim=16))
    checks.check_half_precision_patches_are_cast(make())


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
def test_backward_reaches_every_parameter(fusion):
    model = make(dropout=0.0, dim=32, fusion=fusion).double()
    out = model(seeded(6, 7, E), genes_BG=seeded_genes(6))
    assert silent_parameters(model, F.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0, 1, 2]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(dropout=0.0, dim=32), lambda out, y: F.cross_entropy(out.logits, y))


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    for groups in ([], [[0], []], [[0, G]], [[0, 0]], [[-1]]):
        with pytest.raises(ValueError, match="group"):
            make(groups=groups)
    with pytest.raises(ValueError, match="heads"):
        make(heads=3)
    with pytest.raises(ValueError, match="fusion"):
        make(fusion="sum")
