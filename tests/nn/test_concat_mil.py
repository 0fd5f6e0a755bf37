"""concat(ABMIL, SNN) against its equations in numpy, and what every joint model must hold."""

import joint_checks as checks
import numpy as np
import torch
import torch.nn.functional as F
from bag_checks import C, E, seeded, silent_parameters
from joint_checks import G, Weights, seeded_genes

from gimp_ray.methods.concat import ConcatMIL


def make(**changes) -> ConcatMIL:
    torch.manual_seed(0)
    return ConcatMIL(E, G, C, **{"dim": 8, "attention_dim": 5, "joint_dim": 6} | changes)


def test_equals_the_equations():
    model = make().double().eval()
    w, x, genes = Weights(model), seeded(1, 11, E), seeded_genes(1)
    bag, attention = w.bag("trunk", x[0].numpy())
    joint = np.concatenate([w.relu("image.0", bag), w.snn("genes", genes[0].numpy(), 2)])
    joint = w.relu("fusion.layers.2", w.relu("fusion.layers.0", joint))
    out = model(x, genes_BG=genes)
    np.testing.assert_allclose(out.attention[0].detach(), attention, atol=1e-12)
    np.testing.assert_allclose(out.bag[0].detach(), joint, atol=1e-12)
    np.testing.assert_allclose(out.logits[0].detach(), w.linear("classify", joint), atol=1e-12)


def test_alone_equals_batched_and_padded():
    checks.check_alone_equals_batched_and_padded(make())


def test_masks_dropout_and_types():
    checks.check_masks(make())
    checks.check_deterministic_in_evaluation_only(make(joint_dim=32))
    checks.check_both_modalities_count(make(joint_dim=16))
    checks.check_half_precision_patches_are_cast(make())


def test_backward_reaches_every_parameter():
    model = make(dropout=0.0, joint_dim=12).double()
    out = model(seeded(6, 7, E), genes_BG=seeded_genes(6))
    assert silent_parameters(model, F.cross_entropy(out.logits, torch.tensor([0, 1, 2, 0, 1, 2]))) == []


def test_overfits_a_tiny_set():
    checks.check_overfits(make(dropout=0.0, dim=32, joint_dim=32), lambda out, y: F.cross_entropy(out.logits, y))


def test_bad_input_is_refused():
    checks.check_bad_shapes_are_refused(make())
