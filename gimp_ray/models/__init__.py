"""Networks and nothing else: they know torch, and neither files, nor the cohort, nor Ray.

Source of the method: Jin et al., "Gene-Induced Multimodal Pre-training for Image-Omic Classification", MICCAI 2023.
What the paper leaves open is a named argument here, with the default of the docs.
"""

from gimp_ray.models.abmil import ABMIL
from gimp_ray.models.aggregator import PatchAggregator
from gimp_ray.models.attention_pool import AttentionBag, AttentionPool, BagOutput, PooledBag
from gimp_ray.models.bilinear_fusion import BilinearFusion
from gimp_ray.models.biovil import BioViL, BioViLOutput
from gimp_ray.models.clam import CLAM, CLAMOutput
from gimp_ray.models.concat_fusion import ConcatFusion
from gimp_ray.models.concat_mil import ConcatMIL
from gimp_ray.models.dsmil import DSMIL, DSMILOutput, dsmil_probabilities
from gimp_ray.models.freezing import KeepsFrozen, freeze, is_frozen
from gimp_ray.models.gene_encoder import GeneEncoder
from gimp_ray.models.gene_input import GeneInput
from gimp_ray.models.gene_targets import GroupTargets
from gimp_ray.models.gene_tokens import GeneTokens, across_groups, group_means, group_tokens, grouped_net
from gimp_ray.models.gimp import GiMP, GiMPClassifier, GiMPClassifierOutput, GiMPOutput
from gimp_ray.models.group_msa import GroupMSA, fit_fragments
from gimp_ray.models.late_fusion import LateFusion, LateFusionOutput, mean_probability
from gimp_ray.models.mcat import MCAT, CoAttention, GroupedSNN, MCATOutput
from gimp_ray.models.mean_pool import MeanPoolMLP
from gimp_ray.models.mgca import MGCA, MGCAOutput
from gimp_ray.models.mlp_head import MLPHead
from gimp_ray.models.nystrom import NystromAttention
from gimp_ray.models.pathomic import PathomicFusion, PathomicOutput
from gimp_ray.models.porpoise import Porpoise
from gimp_ray.models.refers import REFERS, REFERSOutput
from gimp_ray.models.regions import contiguous_views, region_means
from gimp_ray.models.snn import SNN
from gimp_ray.models.tangle import TANGLE, GeneMLP, TANGLEOutput
from gimp_ray.models.transmil import PPEG, TransMIL

__all__ = [
    "ABMIL",
    "CLAM",
    "DSMIL",
    "MCAT",
    "MGCA",
    "PPEG",
    "REFERS",
    "SNN",
    "TANGLE",
    "AttentionBag",
    "AttentionPool",
    "BagOutput",
    "BilinearFusion",
    "BioViL",
    "BioViLOutput",
    "CLAMOutput",
    "CoAttention",
    "ConcatFusion",
    "ConcatMIL",
    "DSMILOutput",
    "GeneEncoder",
    "GeneInput",
    "GeneMLP",
    "GeneTokens",
    "GiMP",
    "GiMPClassifier",
    "GiMPClassifierOutput",
    "GiMPOutput",
    "GroupMSA",
    "GroupTargets",
    "GroupedSNN",
    "KeepsFrozen",
    "LateFusion",
    "LateFusionOutput",
    "MCATOutput",
    "MGCAOutput",
    "MLPHead",
    "MeanPoolMLP",
    "NystromAttention",
    "PatchAggregator",
    "PathomicFusion",
    "PathomicOutput",
    "PooledBag",
    "Porpoise",
    "REFERSOutput",
    "TANGLEOutput",
    "TransMIL",
    "across_groups",
    "contiguous_views",
    "dsmil_probabilities",
    "fit_fragments",
    "freeze",
    "group_means",
    "group_tokens",
    "grouped_net",
    "is_frozen",
    "mean_probability",
    "region_means",
]
