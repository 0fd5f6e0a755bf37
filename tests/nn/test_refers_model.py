"""REFERS' model: views, gates, causality of the decoder, masks, gradients, and that it can learn pairs by heart."""

import contrast_checks as checks
import numpy as np
import pytest
import torch
from bag_checks import E, seeded
from contrast_checks import D, G, R

from gimp_ray.methods.refers import REFERS, GroupDecoder, refers_loss
from gimp_ray.nn.genes import GroupTargets


def make(**changes) -> REFERS:
    torch.manual_seed(0)
    side = checks.encoder()
    return REFERS(checks.aggregator(), side, checks.targets(side), **{"heads": 2} | changes)


def own_sum(out) -> torch.Tensor:
    return out.image.pow(3).sum() + out.genes.pow(3).sum() + out.logits.pow(3).sum()


def test_alone_equals_batched_and_padded():
    for regions in (6, 256):
        checks.check_alone_equals_batched_and_padded(
            make(regions=regions), ("image", "genes", "logits", "bins"), own_sum
        )


def test_views_and_gates_are_what_is_said():
    model = make().double().eval()
    x, genes = seeded(1, 12, E), checks.seeded_genes(1)
    out = model(x, genes)
    w, b = model.gates.weight.detach().numpy(), model.gates.bias.detach().numpy()
    cls, tokens = [], []
    for v in range(3):
        c, t = model.aggregator(x[:, 4 * v : 4 * v + 4])
        cls.append(c[0].detach().numpy())
        tokens.append((t[0] + c).detach().numpy())
    memory = []
    for v in range(3):
        for s in range(4):
            beside = np.concatenate([tokens[i][s] for i in range(3)])
            memory.append(tokens[v][s] / (1 + np.exp(-(w[v] @ beside + b[v]))))
    np.testing.assert_allclose(out.image[0].detach(), np.concatenate(cls), atol=1e-10)
    expected = model.decoder(out.bins, torch.from_numpy(np.stack(memory))[None], torch.ones(1, 12, dtype=torch.bool))
    torch.testing.assert_close(out.logits, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(out.genes, model.gene_map(model.gene_encoder(genes)))


def decoder() -> GroupDecoder:
    torch.manual_seed(0)
    return GroupDecoder(D, num_groups=5, bins=4, heads=2).double().eval()


def test_a_group_is_told_from_the_groups_before_it_alone():
    told, memory, real = decoder(), seeded(1, 6, D), torch.ones(1, 6, dtype=torch.bool)
    bins = torch.tensor([[0, 1, 2, 3, 0]])
    here = told(bins, memory, real)
    for r in range(5):
        other = bins.clone()
        other[0, r] = (other[0, r] + 1) % 4
        moved = (told(other, memory, real) - here).abs().amax(dim=-1)[0] > 0
        assert moved.tolist() == [False] * (r + 1) + [True] * (4 - r)


def test_the_decoder_tells_from_what_is_real_of_the_memory():
    told, memory, bins = decoder(), seeded(1, 6, D), torch.tensor([[0, 1, 2, 3, 0]])
    real = torch.tensor([[True, True, False, True, False, False]])
    other = memory.clone()
    other[:, ~real[0]] = 50.0
    assert torch.equal(told(bins, other, real), told(bins, memory, real))
    alone = told(bins, memory[:, real[0]], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(told(bins, memory, real), alone, atol=1e-10, rtol=1e-10)
    assert torch.isfinite(told(bins, memory, torch.zeros_like(real))).all()


def test_every_parameter_gets_a_gradient():
    model = make().double().train()
    out = model(seeded(4, 9, E), checks.seeded_genes(4))
    none, zeros = checks.silent_parameters(model, refers_loss(*out).loss)
    assert none == zeros == []


@pytest.mark.slow
def test_pairs_are_learned_by_heart_and_the_genes_are_told():
    model = make(dropout=0.0).double().eval()  # without dropout
    x, genes = checks.pairs(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        refers_loss(*model(x, genes)).loss.backward()
        optimizer.step()
    out = model(x, genes)
    assert refers_loss(*out).accuracy == 1
    assert (out.logits.argmax(dim=-1) == out.bins).double().mean() > 0.9


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make(), "image")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=f"{G + 1}"):
        make().double()(seeded(2, 9, E), seeded(2, G + 1))
    with pytest.raises(ValueError, match="target of each"):
        REFERS(checks.aggregator(), checks.encoder(), GroupTargets(R + 1))
    with pytest.raises(ValueError, match="a region of each"):
        make(regions=2)
    with pytest.raises(ValueError, match="divide"):
        make(heads=3)
