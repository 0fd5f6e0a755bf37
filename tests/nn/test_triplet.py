"""The triplet loss: Eq. 4 by hand, every mining against a plain triple loop, and batches without triplets."""

import math

import pytest
import torch

from gimp_ray.nn.losses import triplet_loss

MININGS = ["batch_all", "batch_hard", "semi_hard"]


def by_loop(x, labels, patients, margin, mining, average):
    """The same in plain Python: the loss, the number of triplets, the number of active ones."""
    n = len(x)
    d = [[sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) for j in range(n)] for i in range(n)]
    terms = []
    for a in range(n):
        positives = [p for p in range(n) if labels[p] == labels[a] and patients[p] != patients[a]]
        negatives = [q for q in range(n) if labels[q] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch_all":
            chosen = [(p, q) for p in positives for q in negatives]
        elif mining == "batch_hard":
            chosen = [(max(positives, key=lambda p: d[a][p]), min(negatives, key=lambda q: d[a][q]))]
        else:
            chosen = []
            for p in positives:
                outside = [q for q in negatives if d[a][q] > d[a][p]]
                q = min(outside, key=lambda q: d[a][q]) if outside else max(negatives, key=lambda q: d[a][q])
                chosen.append((p, q))
        terms += [max(d[a][p] + margin - d[a][q], 0.0) for p, q in chosen]
    active = sum(t > 0 for t in terms)
    count = active if average == "active" else len(terms)
    return (sum(terms) / count if count else 0.0), len(terms), active


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("average", ["active", "valid"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("same_patients", [False, True])
def test_equals_a_plain_loop(mining, average, normalize, same_patients):
    generator = torch.Generator().manual_seed(4)
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 1, 0, 1])
    centres = 2 * torch.eye(3).double()
    x = centres[labels] + torch.randn(9, 3, generator=generator).double() * 0.6
    patients = torch.tensor([0, 0, 1, 2, 3, 4, 1, 5, 6]) if same_patients else torch.arange(9)
    plain = torch.nn.functional.normalize(x, dim=1) if normalize else x
    loss, count, active = by_loop(plain.tolist(), labels.tolist(), patients.tolist(), 0.8, mining, average)
    result = triplet_loss(x, labels, 0.8, mining, normalize, patients if same_patients else None, average)
    assert 0 < active < count  # else the two averages and the clamp would go untested
    assert result.loss.item() == pytest.approx(loss, rel=1e-12)
    assert result.num_triplets.item() == count
    assert result.active_share.item() == pytest.approx(active / count)


# On a line: class 0 at 0 and 1, class 1 at 1.5 and 4. Squared distances: pairs of a class 1 and 6.25;
# across 0-1.5: 2.25, 0-4: 16, 1-1.5: 0.25, 1-4: 9.
POINTS, CLASSES = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("mining", "terms"),
    [
        # anchor 0: 1-2.25+.8<0, 1-16+.8<0; anchor 1: 1-.25+.8=1.55, 1-9+.8<0;
        # anchor 1.5: 6.25-2.25+.8=4.8, 6.25-.25+.8=6.8; anchor 4: 6.25-16+.8<0, 6.25-9+.8<0
        ("batch_all", [0, 0, 1.55, 0, 4.8, 6.8, 0, 0]),
        ("batch_hard", [0, 1.55, 6.8, 0]),
        # anchor 1: nearest negative beyond 1 is at 9; anchor 1.5: none beyond 6.25, the farthest is at 2.25
        ("semi_hard", [0, 0, 4.8, 0]),
    ],
)
def test_known_answers(mining, terms):
    active = [t for t in terms if t > 0]
    by_valid = triplet_loss(POINTS, CLASSES, 0.8, mining, normalize=False, average="valid")
    by_active = triplet_loss(POINTS, CLASSES, 0.8, mining, normalize=False)
    assert by_valid.loss.item() == pytest.approx(sum(terms) / len(terms))
    assert by_active.loss.item() == pytest.approx(sum(active) / len(active))
    assert by_active.num_triplets.item() == len(terms)
    assert by_active.active_share.item() == pytest.approx(len(active) / len(terms))
    assert by_active.mean_positive_distance.item() == pytest.approx((1 + 6.25) / 2)
    assert by_active.mean_negative_distance.item() == pytest.approx((2.25 + 16 + 0.25 + 9) / 4)


def test_normalised_distances_are_those_of_directions():
    x = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.1, 0.0]])
    result = triplet_loss(x, torch.tensor([0, 0, 1]), margin=0.8, average="valid")
    # anchors 0 and 1, one triplet each: 2 + .8 - 0 = 2.8 and 2 + .8 - 2 = 0.8
    assert result.loss.item() == pytest.approx(1.8)
    assert result.mean_positive_distance.item() == pytest.approx(2.0)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(
    ("labels", "patients"),
    [([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [0, 1, 2]), ([0, 0, 1], [7, 7, 8]), ([], [])],
    ids=["one class", "one row a class", "one patient a class", "no row, all labels being unknown"],
)
def test_a_batch_without_triplets_has_a_zero_loss_with_a_gradient(mining, labels, patients):
    x = torch.randn(len(labels), 4, requires_grad=True)
    known = (torch.tensor(ids, dtype=torch.int64) for ids in (labels, patients))
    result = triplet_loss(x, next(known), mining=mining, patients_B=next(known))
    assert result.loss.item() == 0 and result.num_triplets.item() == 0 and result.active_share.item() == 0
    result.loss.backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("mining", MININGS)
def test_gradients(mining):
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda x: triplet_loss(x, labels, mining=mining).loss, x)


@pytest.mark.parametrize("mining", MININGS)
def test_identical_embeddings_have_the_margin_as_loss_and_finite_gradients(mining):
    x = torch.ones(4, 3, requires_grad=True)
    result = triplet_loss(x, CLASSES, margin=0.8, mining=mining)
    assert result.loss.item() == pytest.approx(0.8)
    result.loss.backward()
    assert torch.isfinite(x.grad).all()


def test_a_satisfied_batch_has_no_loss():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]])
    result = triplet_loss(x, CLASSES)
    assert result.loss.item() == 0 and result.num_triplets.item() == 8 and result.active_share.item() == 0


def test_computed_in_float32_under_autocast():
    x = torch.randn(8, 512)
    labels = torch.arange(8) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = triplet_loss(x, labels)
    assert under.loss.dtype == torch.float32 and under.loss.item() == triplet_loss(x, labels).loss.item()
    assert triplet_loss(x.bfloat16(), labels).loss.dtype == torch.float32


def test_no_pairs_means_no_mean_distance():
    result = triplet_loss(torch.randn(2, 3), torch.tensor([0, 0]))
    assert math.isnan(result.mean_negative_distance.item()) and not math.isnan(result.mean_positive_distance.item())


def test_bad_settings_are_refused():
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="mining"):
        triplet_loss(x, CLASSES, mining="hardest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="average"):
        triplet_loss(x, CLASSES, average="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels_B must be"):
        triplet_loss(x, CLASSES[:3])
    with pytest.raises(ValueError, match="patients_B must be"):
        triplet_loss(x, CLASSES, patients_B=CLASSES[:3])
