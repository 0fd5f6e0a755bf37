"""MGCA's model: what its outputs are made of, masks, gradients, and that it can learn pairs by heart."""

import contrast_checks as checks
import pytest
import torch
import torch.nn.functional as F
from bag_checks import E, seeded
from contrast_checks import D, G, R

from gimp_ray.methods.mgca import MGCA, likeness, mgca_loss
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import SNN, GeneEncoder


def make(**changes) -> MGCA:
    torch.manual_seed(0)
    return MGCA(checks.aggregator(), checks.encoder(), **{"hidden": 12, "out_dim": 5, "prototypes": 4} | changes)


def own_sum(out) -> torch.Tensor:
    """A sum over cases alone, whatever the places of regions are."""
    weights = out.region_attention[..., None] * out.regions
    return out.image.pow(3).sum() + out.genes.pow(3).sum() + weights.pow(2).sum() + out.tokens.pow(3).sum()


def test_alone_equals_batched_and_padded():
    for regions in (4, 256):
        names = ("image", "genes", "tokens", "token_attention")
        checks.check_alone_equals_batched_and_padded(make(regions=regions), names, own_sum)


def test_heads_of_both_sides_are_what_is_said():
    model = make().double().eval()
    x, genes = seeded(2, 9, E), checks.seeded_genes(2)
    out = model(x, genes)
    cls, tokens = model.aggregator(x)

    def head(layers, y):
        y = F.relu(F.layer_norm(layers[0](y), (12,), layers[1].weight, layers[1].bias))
        return F.layer_norm(layers[3](y), (5,))

    torch.testing.assert_close(out.image, head(model.image_head, cls))
    torch.testing.assert_close(out.genes, head(model.gene_head, model.gene_encoder(genes)))
    torch.testing.assert_close(out.regions, head(model.region_head, tokens))  # 9 patches are 9 regions
    assert out.tokens.shape == (2, R, 5) and out.prototypes.shape == (4, 5) and out.real.all()


def test_regions_are_weighted_by_their_likeness_to_cls():
    cls, x = seeded(1, D), seeded(1, 4, D, seed=1)
    real = torch.tensor([[True, False, True, True]])
    weights = torch.exp(torch.tensor([float(F.cosine_similarity(cls[0], x[0, s], dim=0)) / 0.1 for s in (0, 2, 3)]))
    torch.testing.assert_close(likeness(cls, x, real)[0, [0, 2, 3]], weights / weights.sum(), atol=1e-5, rtol=1e-5)
    assert likeness(cls, x, real)[0, 1] == 0


def test_every_parameter_gets_a_gradient_and_still_prototypes_one_of_zeros():
    model = make().double().train()
    x, genes = seeded(4, 9, E), checks.seeded_genes(4)
    none, zeros = checks.silent_parameters(model, mgca_loss(**model(x, genes)._asdict()).loss)
    assert none == zeros == []
    none, zeros = checks.silent_parameters(model, mgca_loss(**model(x, genes, still=True)._asdict()).loss)
    assert none == [] and zeros == ["prototypes_KP"]


@pytest.mark.slow
def test_pairs_are_learned_by_heart():
    model = make().double().eval()  # without dropout
    x, genes = checks.pairs(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = mgca_loss(**model(x, genes)._asdict())
    for _ in range(40):
        optimizer.zero_grad()
        mgca_loss(**model(x, genes)._asdict()).loss.backward()
        optimizer.step()
    after = mgca_loss(**model(x, genes)._asdict())
    assert after.accuracy > before.accuracy
    assert after.ita < 0.8 * before.ita and after.cta < 0.8 * before.cta and after.cpa < before.cpa


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make(), "image")


def test_bad_input_is_refused():
    model = make().double()
    with pytest.raises(ValueError, match="7 wide"):
        model(seeded(2, 4, E + 1), checks.seeded_genes(2))
    with pytest.raises(ValueError, match=f"{G + 1}"):
        model(seeded(2, 4, E), seeded(2, G + 1))
    with pytest.raises(ValueError, match="GroupMSA"):
        MGCA(checks.aggregator(), GeneEncoder(GeneInput(G), SNN(G, D)))
    with pytest.raises(ValueError, match="prototypes"):
        make(prototypes=0)
