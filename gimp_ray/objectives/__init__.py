"""Losses as functions of tensors: masked patch modelling and gene-induced triplet learning (GiMP, section 2.3)."""

from gimp_ray.objectives.masked_patch import masked_patch_loss
from gimp_ray.objectives.triplet import TripletResult, triplet_loss

__all__ = ["TripletResult", "masked_patch_loss", "triplet_loss"]
