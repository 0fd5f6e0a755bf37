"""GiMP and its classifier: what goes in and out, the frozen gene side, and what learns."""

import copy

import pytest
import torch
from torch import nn

from gimp_ray.methods.gimp import GiMP, GiMPClassifier
from gimp_ray.nn.aggregator import PatchAggregator, freeze, is_frozen
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import SNN, GeneEncoder, GroupMSA

WIDTH, GENES, DIM = 12, 30, 16


def aggregator() -> PatchAggregator:
    return PatchAggregator(WIDTH, DIM, heads=2, dim_head=8, num_landmarks=4, residual_kernel=3)


def genes_side(net: nn.Module | None = None) -> GeneEncoder:
    values = torch.rand(20, GENES) * 9
    return GeneEncoder(GeneInput.fit(values, log=True), net or GroupMSA(GENES, DIM, 6, 2, heads=2, dropout=0.5))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    return (
        torch.randn(4, 9, WIDTH),
        torch.rand(4, GENES) * 9,
        torch.tensor([[0, 2, 8], [1, 3, 5], [0, 1, 2], [6, 7, 8]]),
    )


def test_pre_training_output(batch):
    patches, genes, masked = batch
    model = GiMP(aggregator(), freeze(genes_side()), WIDTH)
    out = model(patches, genes, masked=masked)
    assert out.cls_img.shape == out.cls_ge.shape == (4, DIM)
    assert torch.equal(out.cls_pat, torch.cat([out.cls_img, out.cls_ge], dim=1))
    assert out.reconstruction.shape == (4, 3, WIDTH)
    _, tokens = model.aggregator(patches, masked=masked, mask_token=model.mask_token)
    torch.testing.assert_close(out.reconstruction[1, 2], model.decoder(tokens[1, 5]))
    assert model(patches, genes).reconstruction is None


def test_images_alone(batch):
    patches, genes, masked = batch
    model = GiMP(aggregator(), None, WIDTH)
    out = model(patches, masked=masked)
    assert out.cls_ge is None and torch.equal(out.cls_pat, out.cls_img)
    with pytest.raises(ValueError, match="without a gene encoder"):
        model(patches, genes)


def test_precomputed_cls_ge_is_the_same(batch):
    patches, genes, _ = batch
    encoder = freeze(genes_side())
    model = GiMP(aggregator(), encoder, WIDTH).eval()
    expected = model(patches, genes)
    for again in (model, GiMP(model.aggregator, None, WIDTH).eval()):
        assert torch.equal(again(patches, cls_ge=encoder(genes)).cls_pat, expected.cls_pat)
    with pytest.raises(ValueError, match="not both"):
        model(patches, genes, cls_ge=expected.cls_ge)
    with pytest.raises(ValueError, match="give genes"):
        model(patches)


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_frozen_gene_encoder_neither_learns_nor_drifts(batch, classifier, wrapped):
    patches, genes, _ = batch
    encoder = genes_side(nn.Sequential(SNN(GENES, DIM, (8,), dropout=0.5), nn.BatchNorm1d(DIM)))
    freeze(encoder)
    before = copy.deepcopy(encoder.state_dict())
    model: nn.Module = (
        GiMPClassifier(aggregator(), encoder, 2, DIM) if classifier else GiMP(aggregator(), encoder, WIDTH)
    )
    outer = nn.Sequential(model) if wrapped else model  # as a distributed wrapper would hold it
    outer.train()
    assert model.training and model.aggregator.training and is_frozen(encoder)
    assert not any(m.training for m in encoder.modules())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == len(list(model.parameters())) - len(list(encoder.parameters()))
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    first = model(patches, genes)
    for _ in range(2):
        optimizer.zero_grad()
        model(patches, genes).cls_pat.square().sum().backward()
        optimizer.step()
    last = model(patches, genes)
    torch.testing.assert_close(encoder.state_dict(), before)
    assert torch.equal(first.cls_ge, last.cls_ge) and not torch.equal(first.cls_img, last.cls_img)
    assert all(p.grad is None for p in encoder.parameters())


def test_an_encoder_that_is_not_frozen_trains():
    model = GiMP(aggregator(), genes_side(), WIDTH).train()
    assert model.gene_encoder.net.training
    assert not model.eval().gene_encoder.net.training


def test_freezing_one_part_of_an_encoder():
    encoder = genes_side()
    freeze(encoder.net.intra)
    encoder.train()
    assert encoder.net.training and encoder.net.inter.training and not encoder.net.intra.feed_forward.training


def test_pre_training_reaches_every_parameter(batch):
    patches, genes, masked = batch
    model = GiMP(aggregator(), freeze(genes_side()), WIDTH)
    out = model(patches, genes, masked=masked)
    ((out.cls_img * torch.randn(DIM)).sum() + out.reconstruction.square().mean()).backward()
    assert _silent(model) == []


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_leaves_no_parameter_unused(batch, frozen):
    patches, genes, _ = batch
    encoder = genes_side()
    model = GiMPClassifier(aggregator(), freeze(encoder) if frozen else encoder, 3, DIM, hidden=(8,), dropout=0.0)
    out = model(patches, genes)
    assert out.logits.shape == (4, 3) and out.cls_pat.shape == (4, 2 * DIM)
    nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0])).backward()
    assert _silent(model) == []


def test_classifier_takes_images_alone_or_a_given_gene_token(batch):
    patches, genes, _ = batch
    assert GiMPClassifier(aggregator(), None, 2, DIM)(patches).logits.shape == (4, 2)
    assert GiMPClassifier(aggregator(), None, 2, DIM, gene_dim=5)(patches, cls_ge=torch.zeros(4, 5)).logits.shape == (
        4,
        2,
    )
    wide = genes_side(SNN(GENES, 24))
    assert GiMPClassifier(aggregator(), wide, 2, DIM, gene_dim=24)(patches, genes).cls_pat.shape == (4, DIM + 24)


def test_classifier_does_not_see_padding(batch):
    patches, genes, _ = batch
    model = GiMPClassifier(aggregator(), genes_side(), 2, DIM).eval()
    padded = torch.cat([patches, torch.full((4, 6, WIDTH), torch.nan)], dim=1)
    valid = torch.arange(15).expand(4, -1) < 9
    torch.testing.assert_close(
        model(padded, genes, valid=valid).logits, model(patches, genes).logits, atol=1e-5, rtol=1e-5
    )


def _silent(model: nn.Module) -> list[str]:
    wanted = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in wanted if p.grad is None or p.grad.abs().max() == 0]
