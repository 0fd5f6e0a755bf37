"""REFERS' losses against loops."""

import math

import pytest
import torch
from torch import Tensor

from gimp_ray.methods.refers import refers_loss
from gimp_ray.nn.losses import infonce

B, F, R, K = 3, 6, 4, 5


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BINS = torch.tensor([[0, 4, 2, 2], [1, 1, 3, 0], [4, 0, 0, 1]])


def test_equals_the_equations():
    image, genes, logits = seeded(B, F), seeded(B, F, seed=1), seeded(B, R, K, seed=2)
    caption = 0.0
    for b in range(B):
        for r in range(R):
            scores = logits[b, r].tolist()
            caption += math.log(sum(math.exp(s) for s in scores)) - scores[BINS[b, r]]
    caption /= B * R
    to_genes, to_image = (infonce(image, genes, 0.1, weight).loss.item() for weight in (1.0, 0.0))
    result = refers_loss(image, genes, logits, BINS)
    assert result.caption.item() == pytest.approx(caption, abs=1e-12)
    assert result.contrast.item() == pytest.approx(0.75 * to_genes + 0.25 * to_image, abs=1e-12)
    assert result.loss.item() == pytest.approx(caption + 0.75 * to_genes + 0.25 * to_image, abs=1e-12)
    assert refers_loss(image, genes, logits, BINS, caption_weight=0).loss == result.contrast


def test_both_directions_of_the_contrast_give_a_gradient():
    for image_weight in (0.0, 1.0):
        image, genes = seeded(B, F).requires_grad_(), seeded(B, F, seed=1).requires_grad_()
        refers_loss(image, genes, seeded(B, R, K), BINS, image_weight=image_weight, caption_weight=0).loss.backward()
        assert image.grad is not None and genes.grad is not None
        assert (image.grad != 0).any() and (genes.grad != 0).any()


def test_half_precision_is_computed_in_float32():
    image, logits = seeded(B, F).bfloat16(), seeded(B, R, K).bfloat16()
    assert refers_loss(image, image, logits, BINS).loss.dtype == torch.float32


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="logits"):
        refers_loss(seeded(B, F), seeded(B, F), seeded(B, R + 1, K), BINS)
    with pytest.raises(ValueError, match="logits"):
        refers_loss(seeded(B + 1, F), seeded(B + 1, F), seeded(B, R, K), BINS)
