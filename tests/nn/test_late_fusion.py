"""Late fusion: the mean of two probabilities, and two models that do not touch each other."""

import joint_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded, silent_parameters
from joint_checks import G, Weights, seeded_genes

from gimp_ray.methods.abmil import ABMIL
from gimp_ray.methods.late_fusion import LateFusion, mean_probability


def make(**changes) -> LateFusion:
    torch.manual_seed(0)
    return LateFusion(E, G, C, **{"dim": 8, "attention_dim": 5, "gene_widths": (7, 6)} | changes)


def loss(out, labels):
    return F.cross_entropy(out.image_logits, labels) + F.cross_entropy(out.genes_logits, labels)


def test_mean_of_probabilities_by_hand():
    logits = mean_probability(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log() + 5)
    torch.testing.assert_close(logits.softmax(dim=1), torch.tensor([[0.55, 0.45]]))
    torch.testing.assert_close(logits.exp(), torch.tensor([[0.55, 0.45]]))
    with pytest.raises(ValueError, match="one shape"):
        mean_probability(torch.zeros(1, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="one shape"):
        mean_probability()


def test_equals_the_equations():
    model = make().double().eval()
    w, x, genes = Weights(model), seeded(1, 11, E), seeded_genes(1)
    bag, attention = w.bag("image.trunk", x[0].numpy())
    of_image = checks.softmax(w.linear("image.classify", bag))
    of_genes = checks.softmax(w.linear("classify_genes", w.snn("genes", genes[0].numpy(), 2)))
    out = model(x, genes_BG=genes)
    np.testing.assert_allclose(out.attention[0].detach(), attention, atol=1e-12)
    np.testing.assert_allclose(out.logits[0].softmax(0).detach(), (of_image + of_genes) / 2, atol=1e-12)
    np.testing.assert_allclose(out.genes_logits[0].softmax(0).detach(), of_genes, atol=1e-12)


def test_a_step_of_both_is_a_step_of_the_image_model_alone():
    model = make(dropout=0.0).double()
    alone = ABMIL(E, C, dim=8, attention_dim=5, dropout=0.0).double()
    alone.load_state_dict(model.image.state_dict())
    x, labels = seeded(4, 7, E), torch.tensor([0, 1, 2, 0])
    loss(model(x, genes_BG=seeded_genes(4)), labels).backward()
    F.cross_entropy(alone(x).logits, labels).backward()
    for ours, theirs in zip(model.image.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_alone_equals_batched_and_padded():
    checks.check_alone_equals_batched_and_padded(make(), ("logits", "bag", "image_logits", "genes_logits"))


def test_masks_dropout_and_types():
    checks.check_masks(make())
    checks.check_deterministic_in_evaluation_only(make())
    checks.check_both_modalities_count(make())
    checks.check_half_precision_patches_are_cast(make())


def test_backward_reaches_every_parameter():
    model = make(dropout=0.0).double()
    out = model(seeded(6, 7, E), genes_BG=seeded_genes(6))
    assert silent_parameters(model, loss(out, torch.tensor([0, 1, 2, 0, 1, 2]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(dropout=0.0, dim=32, gene_widths=(32, 32)), loss)


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    with pytest.raises(ValueError, match="width"):
        make(gene_widths=())
