"""Pathomic Fusion against its equations in numpy, its stages, and what every joint model must hold."""

import joint_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded, silent_parameters
from joint_checks import G, Weights, seeded_genes

from gimp_ray.methods.pathomic import PathomicFusion

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
ALONE, GENES, JOINT = {"image", "classify_genes"}, {"genes"}, {"reduce_image", "fusion", "classify"}


def make(stage="unimodal", **changes) -> PathomicFusion:
    torch.manual_seed(0)
    model = PathomicFusion(
        E, G, C, **{"dim": 8, "attention_dim": 5, "gene_widths": (9, 7, 4), "joint_dim": 6} | changes
    )
    model.set_stage(stage)
    return model


def loss(model, out, labels=LABELS):
    if model.stage == "unimodal":
        return F.cross_entropy(out.image_logits, labels) + F.cross_entropy(out.genes_logits, labels)
    return F.cross_entropy(out.logits, labels)


@pytest.mark.parametrize(("gates", "skip"), [((True, True), False), ((True, False), True)])
def test_equals_the_equations(gates, skip):
    model = make(gate_image=gates[0], gate_genes=gates[1], skip=skip).double().eval()
    w, x, genes = Weights(model), seeded(1, 11, E), seeded_genes(1)
    bag, attention = w.bag("image.trunk", x[0].numpy())
    of_genes = w.snn("genes", genes[0].numpy(), 3)
    fused = w.fused("fusion", w.linear("reduce_image", bag), of_genes, "bilinear", gates, "reduced" if skip else None)
    out = model(x, genes_BG=genes)
    np.testing.assert_allclose(out.attention[0].detach(), attention, atol=1e-12)
    np.testing.assert_allclose(out.logits[0].detach(), w.linear("classify", fused), atol=1e-12)
    np.testing.assert_allclose(out.image_logits[0].detach(), w.linear("image.classify", bag), atol=1e-12)
    np.testing.assert_allclose(out.genes_logits[0].detach(), w.linear("classify_genes", of_genes), atol=1e-12)


def test_defaults_are_the_papers():
    model = PathomicFusion(1024, 50, 2)
    assert [m.out_features for m in model.genes.blocks if isinstance(m, torch.nn.Linear)] == [64, 48, 32, 32]
    assert model.fusion.joint[0].in_features == 33 * 33 and model.classify.in_features == 64


@pytest.mark.parametrize(
    ("stage", "learning"), [("unimodal", ALONE | GENES), ("fusion", JOINT), ("fusion_genes", JOINT | GENES)]
)
def test_a_stage_trains_its_parts_and_no_other(stage, learning):
    model = make(stage, dropout=0.0, joint_dim=12, gene_widths=(9, 8)).double()
    out = model(seeded(6, 7, E), genes_BG=seeded_genes(6))
    silent = silent_parameters(model, loss(model, out))
    assert {name.split(".")[0] for name in silent} == (ALONE | GENES | JOINT) - learning
    assert all(p.requires_grad == (name.split(".")[0] in learning) for name, p in model.named_parameters())
    assert not [name for name in silent if name.split(".")[0] in learning]


def test_what_is_frozen_drops_nothing_and_forgets_old_gradients():
    model = make(dropout=0.5).double().train()
    x, genes = seeded(6, 7, E), seeded_genes(6)
    loss(model, model(x, genes_BG=genes)).backward()
    model.set_stage("fusion")
    model.train()
    assert all(p.grad is None for p in model.image.parameters())
    assert not model.image.training and not model.genes.training and model.fusion.training
    assert torch.equal(model(x, genes_BG=genes).image_logits, model(x, genes_BG=genes).image_logits)
    model.set_stage("fusion_genes")
    assert model.genes.training and not model.image.training
    assert not any(m.training for m in model.eval().modules())


def test_alone_equals_batched_and_padded():
    outputs = ("logits", "bag", "image_logits", "genes_logits")
    checks.check_alone_equals_batched_and_padded(make("fusion_genes"), outputs)
    checks.check_alone_equals_batched_and_padded(make("unimodal"), outputs)


def test_masks_dropout_and_types():
    checks.check_masks(make("fusion"))
    checks.check_deterministic_in_evaluation_only(make("fusion", joint_dim=32))
    checks.check_both_modalities_count(make())
    checks.check_half_precision_patches_are_cast(make())


def test_stages_one_after_the_other_overfit_a_tiny_set():
    model = make(dropout=0.0, dim=32, joint_dim=32, gene_widths=(32, 16))
    for stage, answers in (("unimodal", ("image_logits", "genes_logits")), ("fusion", ("logits",))):
        model.set_stage(stage)
        checks.check_overfits(model, lambda out, y: loss(model, out, y), answers)


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
    with pytest.raises(ValueError, match="stage"):
        make("both")
    with pytest.raises(ValueError, match="width"):
        make(gene_widths=())
