"""Regions and views of a patch sequence: what they hold, and that padding does not move them."""

import numpy as np
import pytest
import torch
from bag_checks import E, in_a_batch, make_bags, seeded

from gimp_ray.nn.attention import contiguous_views, region_means


def by_runs(bag: np.ndarray, most: int) -> list[np.ndarray]:
    """Runs of ceil(n / most) patches from the end on, so that the first is the incomplete one."""
    length = -(-len(bag) // most)
    ends = range(len(bag), 0, -length)
    return [bag[max(end - length, 0) : end].mean(axis=0) for end in ends][::-1]


@pytest.mark.parametrize("most", [1, 3, 4, 20])
def test_regions_are_means_of_contiguous_runs(most):
    bag = seeded(1, 13, E)
    regions, real = region_means(bag, None, most)
    assert real.all() and regions.shape[1] <= most
    np.testing.assert_allclose(regions[0], by_runs(bag[0].numpy(), most), atol=1e-12)


@pytest.mark.parametrize("most", [3, 20])
def test_regions_of_a_padded_batch_are_those_alone(most):
    bags = make_bags()
    for width, holes in ((13, False), (31, True)):
        batch, valid = in_a_batch(bags, width, holes)
        regions, real = region_means(batch, valid, most)
        for row, bag in enumerate(bags):
            alone = region_means(bag, None, most)[0][0]
            torch.testing.assert_close(regions[row][real[row]], alone, atol=1e-12, rtol=1e-12)
            assert real[row, -len(alone) :].all(), "they stand at the last places"


def test_views_are_contiguous_disjoint_and_hold_every_patch():
    bags = make_bags((13, 1, 6, 2, 9))
    batch, valid = in_a_batch(bags, 31, holes=True)
    views, real = contiguous_views(batch, valid, 3)
    assert real is not None and torch.isfinite(views).all()
    for row, bag in enumerate(bags):
        parts = [views[row, v][real[row, v]] for v in range(3)]
        assert torch.equal(torch.cat(parts), bag[0])
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_views_of_a_whole_window_need_no_mask():
    x = seeded(2, 12, E)
    views, real = contiguous_views(x, None, 3)
    assert real is None and torch.equal(views.flatten(1, 2), x)
    masked, where = contiguous_views(x, torch.ones(2, 12, dtype=torch.bool), 3)
    assert torch.equal(masked, views) and where is not None and where.all()
    odd, where = contiguous_views(x[:, :11], None, 3)
    assert where is not None and torch.equal(odd[where], x[:, :11].flatten(0, 1))


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="regions"):
        region_means(seeded(1, 4, E), None, 0)
    with pytest.raises(ValueError, match="views"):
        contiguous_views(seeded(1, 4, E), None, 0)
