"""MGCA's three alignments against loops over patients, tokens and prototypes, in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gimp_ray.methods.mgca import clipped_weights, mgca_loss, prototype_alignment, sinkhorn, token_alignment
from gimp_ray.nn.losses import infonce

B, S, R, K, P = 3, 5, 4, 6, 7


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def length_one(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def one_patient(x: np.ndarray, y: np.ndarray, attention: np.ndarray, t: float = 0.1) -> float:
    """CTA of one patient, x asking y: both directions of InfoNCE between tokens and their answers."""
    x, y = [length_one(row) for row in x], [length_one(row) for row in y]
    answers = []
    for token in x:
        a = softmax(np.array([token @ other for other in y]) / t)
        answers.append(length_one(sum(w * other for w, other in zip(a, y, strict=True))))
    clipped = np.clip(attention, np.quantile(attention, 0.1), np.quantile(attention, 0.9))
    total = 0.0
    for i in range(len(x)):
        to_answers = softmax(np.array([x[i] @ answer for answer in answers]) / t)[i]
        to_tokens = softmax(np.array([token @ answers[i] for token in x]) / t)[i]
        total -= clipped[i] / clipped.sum() * (np.log(to_answers) + np.log(to_tokens)) / 2
    return total


def test_tokens_of_each_patient_against_loops():
    x, y, attention = seeded(B, R, P), seeded(B, S, P, seed=1), seeded(B, R, seed=2).abs()
    found = token_alignment(x, y, attention)
    expected = [one_patient(*(part[b].numpy() for part in (x, y, attention))) for b in range(B)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_patient_with_padding_is_the_patient_without():
    x, y, attention = seeded(1, S, P), seeded(1, R, P, seed=1), seeded(1, S, seed=2).abs()
    alone = token_alignment(x, y, attention)
    wide_x, wide_y, wide_attention = 1e3 * seeded(1, 9, P), -1e3 * seeded(1, 8, P), torch.zeros(1, 9).double()
    at_x, at_y = [1, 2, 4, 5, 8], [0, 3, 4, 7]
    wide_x[:, at_x], wide_y[:, at_y], wide_attention[:, at_x] = x, y, attention
    real_x, real_y = torch.zeros(1, 9, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool)
    real_x[:, at_x], real_y[:, at_y] = True, True
    wide_x.requires_grad_()
    found = token_alignment(wide_x, wide_y, wide_attention, real_x, real_y)
    torch.testing.assert_close(found, alone, atol=1e-12, rtol=1e-12)
    found.sum().backward()
    assert wide_x.grad is not None and torch.isfinite(wide_x.grad).all()
    assert (wide_x.grad[~real_x] == 0).all() and (wide_x.grad[real_x] != 0).any()


def test_weights_are_clipped_at_their_quantiles_over_what_is_real():
    attention = torch.tensor([[0.9, 0.01, 0.02, 0.03, 0.04, 5.0]])
    real = torch.tensor([[True, True, True, True, True, False]])
    values = attention[0, :5].numpy().astype(np.float64)
    expected = np.clip(values, np.quantile(values, 0.1), np.quantile(values, 0.9))
    np.testing.assert_allclose(clipped_weights(attention, real)[0, :5], expected / expected.sum(), rtol=1e-5)
    assert clipped_weights(attention, real)[0, 5] == 0
    # without attention all weigh alike; without a real token nothing weighs
    assert clipped_weights(torch.zeros(1, 6), real)[0].tolist() == pytest.approx([0.2] * 5 + [0])
    assert (clipped_weights(attention, torch.zeros_like(real)) == 0).all()


def balanced(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for n in range(q.shape[0]):
            q[n] /= q[n].sum() * q.shape[0]
    return q * q.shape[0]


def test_sinkhorn_against_loops_and_its_marginals():
    scores = seeded(8, K).tanh() / 2
    codes = sinkhorn(scores)
    np.testing.assert_allclose(codes, balanced(scores.numpy(), 0.05, 3), atol=1e-10)
    np.testing.assert_allclose(codes.sum(dim=1), 1, atol=1e-12)
    many = sinkhorn(scores, iterations=200)
    np.testing.assert_allclose(many.sum(dim=0), 8 / K, atol=1e-3)
    # nothing overflows where exp(scores / epsilon) would
    assert torch.isfinite(sinkhorn(1e3 * scores.float())).all()


def test_prototypes_against_loops():
    image, genes, prototypes = seeded(B, P), seeded(B, P, seed=1), seeded(K, P, seed=2)
    scores = [
        np.array([[length_one(row) @ length_one(c) for c in prototypes.numpy()] for row in side.numpy()])
        for side in (image, genes)
    ]
    codes = [balanced(score, 0.05, 3) for score in scores]
    total = 0.0
    for n in range(B):
        for asked, told in ((0, 1), (1, 0)):
            p = softmax(scores[told][n] / 0.2)
            total -= sum(codes[asked][n, k] * np.log(p[k]) for k in range(K)) / (2 * B)
    assert prototype_alignment(image, genes, prototypes).item() == pytest.approx(total, abs=1e-12)


def test_codes_are_targets_and_give_no_gradient():
    image, genes, prototypes = seeded(B, P).requires_grad_(), seeded(B, P, seed=1), seeded(K, P, seed=2)
    prototype_alignment(image, genes, prototypes).backward()
    c = torch.nn.functional.normalize(prototypes, dim=-1)
    u = torch.nn.functional.normalize(image.detach(), dim=-1)
    p = (u @ c.T / 0.2).softmax(1)
    codes = sinkhorn(torch.nn.functional.normalize(genes, dim=-1) @ c.T)
    along = (p - codes) @ c / 0.2 / (2 * B)
    expected = (along - (along * u).sum(1, keepdim=True) * u) / image.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(image.grad, expected, atol=1e-12, rtol=1e-9)


def everything(**changes):
    given = {
        "image": seeded(B, P),
        "genes": seeded(B, P, seed=1),
        "regions": seeded(B, S, P, seed=2),
        "tokens": seeded(B, R, P, seed=3),
        "region_attention": seeded(B, S, seed=4).abs(),
        "token_attention": seeded(B, R, seed=5).abs(),
        "prototypes": seeded(K, P, seed=6),
    }
    return given | changes


def test_the_loss_is_the_weighted_sum_of_the_three():
    given = everything()
    result = mgca_loss(**given)
    words = token_alignment(given["tokens"], given["regions"], given["token_attention"]).mean()
    parts = token_alignment(given["regions"], given["tokens"], given["region_attention"]).mean()
    torch.testing.assert_close(result.ita, infonce(given["image"], given["genes"], 0.07).loss)
    torch.testing.assert_close(result.cta, (words + parts) / 2)
    torch.testing.assert_close(result.cpa, prototype_alignment(given["image"], given["genes"], given["prototypes"]))
    torch.testing.assert_close(result.loss, result.ita + 0.7 * result.cta + 0.5 * result.cpa)
    assert mgca_loss(**given, weights=(0, 0, 2)).loss == 2 * result.cpa


def test_half_precision_is_computed_in_float32():
    given = {name: value.bfloat16() for name, value in everything().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mgca_loss(**given)
    expected = mgca_loss(**{name: value.float() for name, value in given.items()})
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss)


def test_bad_input_is_refused():
    x = seeded(B, R, P)
    with pytest.raises(ValueError, match="attention"):
        token_alignment(x, x, seeded(B, R + 1))
    with pytest.raises(ValueError, match="tokens"):
        token_alignment(x, x[..., :2], seeded(B, R))
    with pytest.raises(ValueError, match="temperature"):
        token_alignment(x, x, seeded(B, R), temperature=0)
    with pytest.raises(ValueError, match="prototypes"):
        prototype_alignment(seeded(B, P), seeded(B, P), seeded(K, P + 1))
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(seeded(B, K), epsilon=0)
