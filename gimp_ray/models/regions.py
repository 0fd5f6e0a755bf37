"""Patches as regions and as views: what stands for image regions and for several images in a slide's patch sequence.

A region is the mean of a contiguous run of patch tokens (patches are in scan order), a view a contiguous part of a
window. Left out: regions by coordinates.

Shape suffixes: B batch, L patches, E patch embedding width, D token width, S regions, V views, N patches of the largest
view.
"""

import torch
from torch import Tensor

from gimp_ray.models.nystrom import masked_segment_means, segment_means

REGIONS = 256


def region_means(x_BLD: Tensor, valid_BL: Tensor | None = None, most: int = REGIONS) -> tuple[Tensor, Tensor]:
    """Means of contiguous runs of ceil(n / most) of a sample's n real tokens, the incomplete run first.

    Args:
        x_BLD: (B, L, D).
        valid_BL: (B, L) bool, True = real; None = all.
        most: the largest S; a sample of fewer tokens has a region each.

    Returns:
        regions (B, S, D), zeros where there is none; (B, S) bool, True where there is one. A sample's regions stand at
        its last places, and do not depend on padding.

    Raises:
        ValueError: `most` below 1.
    """
    if most < 1:
        raise ValueError(f"the number of regions must be >= 1: found {most}")
    if valid_BL is not None:
        return masked_segment_means(x_BLD, valid_BL, most)
    means_BSD = segment_means(x_BLD, most)
    return means_BSD, torch.ones(means_BSD.shape[:2], dtype=torch.bool, device=means_BSD.device)


def contiguous_views(x_BLE: Tensor, valid_BL: Tensor | None, views: int = 3) -> tuple[Tensor, Tensor | None]:
    """Cut each sample's n real patches, in their order, into V contiguous views: v has floor(v n / V) and on.

    Returns:
        (B, V, N, E), zeros at padding; (B, V, N) bool, True = real, or None where all are.

    Raises:
        ValueError: `views` below 1.
    """
    if views < 1:
        raise ValueError(f"the number of views must be >= 1: found {views}")
    B, L, E = x_BLE.shape
    if valid_BL is None and L % views == 0:
        return x_BLE.view(B, views, L // views, E), None
    if valid_BL is None:
        valid_BL = torch.ones(B, L, dtype=torch.bool, device=x_BLE.device)
    edge_V = torch.arange(views + 1, device=x_BLE.device)
    edge_BV = edge_V * valid_BL.sum(dim=1)[:, None] // views
    place_N = torch.arange(-(-L // views), device=x_BLE.device)
    rank_BVN = edge_BV[:, :-1, None] + place_N
    real_BVN = rank_BVN < edge_BV[:, 1:, None]
    position_BL = torch.argsort((~valid_BL).to(torch.uint8), dim=1, stable=True)  # real patches first, in their order
    patch_BM = position_BL.gather(1, rank_BVN.clamp_max(L - 1).flatten(1))
    x_BVNE = x_BLE.gather(1, patch_BM[..., None].expand(-1, -1, E)).view(B, views, -1, E)
    return x_BVNE.masked_fill(~real_BVN[..., None], 0.0), real_BVN
