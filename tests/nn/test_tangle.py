"""TANGLE's model with either image side: masks, gradients, and that it can learn pairs by heart."""

import contrast_checks as checks
import pytest
import torch
import torch.nn.functional as F
from bag_checks import E, seeded
from contrast_checks import D, G

from gimp_ray.methods.tangle import TANGLE, GeneMLP
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import GeneEncoder
from gimp_ray.nn.losses import infonce
from gimp_ray.nn.pooling import AttentionBag

SIDES = ("aggregator", "abmil")


def make(side: str) -> TANGLE:
    torch.manual_seed(0)
    if side == "aggregator":
        return TANGLE(checks.aggregator(), checks.encoder(), D, out_dim=5)
    genes = GeneEncoder(GeneInput(G), GeneMLP(G, dim=7))
    return TANGLE(AttentionBag(E, 6, attention_dim=4), genes, 7, out_dim=5)


@pytest.mark.parametrize("side", SIDES)
def test_alone_equals_batched_and_padded(side):
    checks.check_alone_equals_batched_and_padded(
        make(side),
        ("image", "genes"),
        lambda out: out.image.pow(3).sum() + out.genes.pow(3).sum(),
        holes=side == "abmil",
    )


def test_the_gene_network_is_two_blocks_as_wide_as_there_are_genes_and_a_linear():
    net = GeneMLP(G, dim=4).double().eval()
    x, w = checks.seeded_genes(3), dict(net.named_parameters())
    for at in (0, 4):
        x = F.linear(x, w[f"blocks.{at}.weight"], w[f"blocks.{at}.bias"])
        x = F.relu(F.layer_norm(x, (G,), w[f"blocks.{at + 1}.weight"], w[f"blocks.{at + 1}.bias"]))
    x = F.linear(x, w["blocks.8.weight"], w["blocks.8.bias"])
    torch.testing.assert_close(net(checks.seeded_genes(3)), x)
    assert net.train()(checks.seeded_genes(3)).shape == (3, 4)


@pytest.mark.parametrize("side", SIDES)
def test_every_parameter_gets_a_gradient(side):
    model = make(side).double().train()
    out = model(seeded(4, 9, E), checks.seeded_genes(4))
    none, zeros = checks.silent_parameters(model, infonce(*out, 0.01).loss)
    assert none == zeros == []


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_pairs_are_learned_by_heart(side):
    model = make(side).double().eval()  # without dropout
    x, genes = checks.pairs(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    before = infonce(*model(x, genes), 0.1).loss
    for _ in range(80):
        optimizer.zero_grad()
        infonce(*model(x, genes), 0.1).loss.backward()
        optimizer.step()
    after = infonce(*model(x, genes), 0.1)
    assert after.accuracy == 1 and after.loss < 0.5 * before


@pytest.mark.parametrize("side", SIDES)
def test_half_precision_patches_are_cast(side):
    checks.check_half_precision_patches_are_cast(make(side), "image")


def test_bad_input_is_refused():
    for side in SIDES:
        with pytest.raises(ValueError, match="7 wide"):
            make(side).double()(seeded(2, 4, E + 1), checks.seeded_genes(2))
        with pytest.raises(ValueError, match=f"{G + 1}"):
            make(side).double()(seeded(2, 4, E), seeded(2, G + 1))
