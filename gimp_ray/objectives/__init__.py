"""Losses as functions of tensors: masked patches and gene-induced triplets (GiMP, section 2.3), mixup for genes; the
losses of compared methods (CLAM, DSMIL), of compared pre-training (InfoNCE, MGCA, BioViL, REFERS) and of survival.
"""

from gimp_ray.objectives.biovil import BioViLLoss, biovil_loss
from gimp_ray.objectives.clam import CLAMLoss, clam_instance_loss, clam_loss
from gimp_ray.objectives.dsmil import dsmil_loss
from gimp_ray.objectives.gather import gather_workers
from gimp_ray.objectives.infonce import InfoNCEResult, gather_rows, infonce
from gimp_ray.objectives.masked_patch import masked_patch_loss, patches_at
from gimp_ray.objectives.mgca import MGCALoss, mgca_loss
from gimp_ray.objectives.mixup import mixup
from gimp_ray.objectives.refers import REFERSLoss, refers_loss
from gimp_ray.objectives.survival import cox_loss, discrete_time_nll, discrete_time_risk, fit_time_edges, time_bin
from gimp_ray.objectives.triplet import TripletResult, triplet_loss

__all__ = [
    "BioViLLoss",
    "CLAMLoss",
    "InfoNCEResult",
    "MGCALoss",
    "REFERSLoss",
    "TripletResult",
    "biovil_loss",
    "clam_instance_loss",
    "clam_loss",
    "cox_loss",
    "discrete_time_nll",
    "discrete_time_risk",
    "dsmil_loss",
    "fit_time_edges",
    "gather_rows",
    "gather_workers",
    "infonce",
    "masked_patch_loss",
    "mgca_loss",
    "mixup",
    "patches_at",
    "refers_loss",
    "time_bin",
    "triplet_loss",
]
