"""BioViL's model in both phases: what is masked is not seen, masks, gradients, and that it can learn pairs by heart."""

import contrast_checks as checks
import pytest
import torch
from bag_checks import E, seeded
from contrast_checks import D, G, R

from gimp_ray.methods.biovil import BioViL, biovil_loss
from gimp_ray.nn.genes import GroupTargets, group_means

MASKED = torch.tensor([[True, False, False], [False, True, False], [False, False, True], [True, False, False]])
HALF = torch.tensor([[True, False, False], [False, True, False], [False, True, False], [False, False, True]])
PATCHES = torch.tensor([[0, 3, 8], [1, 2, 4], [5, 6, 7], [0, 1, 2]])
# of 4 or more patches each, so that masked patches exist
INDEX = {"half_BR": HALF, "masked": PATCHES}


def make() -> BioViL:
    torch.manual_seed(0)
    side = checks.encoder()
    return BioViL(checks.aggregator(), side, checks.targets(side), out_dim=5)


def loss_of(model: BioViL, x, genes, temperature=0.5, **phase):
    out = model(x, genes, MASKED[: len(x)], **phase)
    patches = None
    if out.reconstruction is not None:
        patches = x.gather(1, phase["masked"][..., None].expand(-1, -1, E))
    result = biovil_loss(
        out.first,
        out.second,
        out.predicted,
        out.target,
        MASKED[: len(x)],
        out.reconstruction,
        patches,
        temperature=temperature,
    )
    return result.loss + out.idle, result


def test_alone_equals_batched_and_padded():
    per_case = {"masked_groups_BR": MASKED[[0, 1, 2, 3, 0]]}
    names = ("first", "second", "predicted", "target")

    def own_sum(out):
        return out.first.pow(3).sum() + out.second.pow(3).sum() + out.predicted.pow(3).sum()

    checks.check_alone_equals_batched_and_padded(make(), names, own_sum, per_case)


def test_the_image_is_half_cls_and_half_the_mean_region():
    model = make().double().eval()
    x, genes = seeded(2, 9, E), checks.seeded_genes(2)
    cls, tokens = model.aggregator(x)
    out = model(x, genes, MASKED[:2])
    expected = (model.image_head(cls) + torch.stack([model.image_head(tokens[:, s]) for s in range(9)]).mean(0)) / 2
    torch.testing.assert_close(out.first, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(out.second, model.gene_head(model.gene_encoder(genes)), atol=1e-10, rtol=1e-10)


def test_a_masked_group_is_predicted_without_its_genes():
    model = make().double().eval()
    x, genes = seeded(1, 5, E), checks.seeded_genes(1)
    other = genes.clone()
    other[:, :4] += 3.0  # group 0 has the first four genes
    here, there = (model(x, values, MASKED[:1]) for values in (genes, other))
    torch.testing.assert_close(here.predicted[0, 0], there.predicted[0, 0], atol=0, rtol=0)
    assert here.target[0, 0] != there.target[0, 0] and torch.equal(here.target[0, 1:], there.target[0, 1:])
    assert not torch.equal(here.second, there.second), "the contrast sees all groups"
    net = model.gene_encoder.net
    torch.testing.assert_close(here.target, model.targets.standardised(group_means(net, genes)))


def test_halves_see_their_own_groups_alone():
    model = make().double().eval()
    x, genes = seeded(1, 9, E), checks.seeded_genes(1)
    other = genes.clone()
    other[:, :4] += 3.0
    phase = {name: value[:1] for name, value in INDEX.items()}  # group 0 is the first half
    here, there = (model(x, values, MASKED[:1], **phase) for values in (genes, other))
    assert torch.equal(here.second, there.second) and not torch.equal(here.first, there.first)


def test_masked_patches_are_not_seen():
    model = make().double().eval()
    x, genes = seeded(1, 9, E), checks.seeded_genes(1)
    phase = {name: value[:1] for name, value in INDEX.items()}
    other = x.clone()
    other[:, PATCHES[0]] = 9.0
    here, there = (model(values, genes, MASKED[:1], **phase) for values in (x, other))
    assert here.reconstruction is not None and here.reconstruction.shape == (1, 3, E)
    assert torch.equal(here.reconstruction, there.reconstruction)


def test_every_parameter_gets_a_gradient_in_its_phase_and_zeros_in_the_other():
    model = make().double().train()
    x, genes = seeded(4, 9, E), checks.seeded_genes(4)
    none, zeros = checks.silent_parameters(model, loss_of(model, x, genes)[0])
    assert none == []
    assert zeros == ["mask_token", *(f"decoder.{name}" for name, _ in model.decoder.named_parameters())]
    none, zeros = checks.silent_parameters(model, loss_of(model, x, genes, **INDEX)[0])
    assert none == []
    image_head = [f"image_head.{name}" for name, _ in model.image_head.named_parameters()]
    assert zeros == ["aggregator.cls_norm.weight", "aggregator.cls_norm.bias", *image_head]


@pytest.mark.slow
def test_pairs_are_learned_by_heart_after_a_warm_up():
    model = make().double().eval()  # without dropout
    x, genes = checks.pairs(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for step in range(80):
        optimizer.zero_grad()
        loss, result = loss_of(model, x, genes, 0.1, **(INDEX if step < 20 else {}))
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), result.groups.item()))
    assert losses[19][0] < losses[0][0] and losses[79][0] < losses[20][0]
    assert losses[79][1] < 0.5 * losses[0][1]
    assert loss_of(model, x, genes)[1].accuracy == 1


def test_half_precision_patches_are_cast():
    checks.check_half_precision_patches_are_cast(make(), "first", masked_groups_BR=MASKED[:2])


def test_bad_input_is_refused():
    model = make().double()
    with pytest.raises(ValueError, match="both halves"):
        model(seeded(4, 9, E), checks.seeded_genes(4), MASKED, half_BR=HALF)
    with pytest.raises(ValueError, match=f"{G + 1}"):
        model(seeded(4, 9, E), seeded(4, G + 1), MASKED)
    with pytest.raises(ValueError, match="target of each"):
        BioViL(checks.aggregator(), checks.encoder(), GroupTargets(R + 1))
    with pytest.raises(ValueError, match="2 groups"):
        BioViL(checks.aggregator(), checks.encoder(num_groups=1), GroupTargets(1))
    assert model.aggregator.dim == D
