"""Networks and nothing else: they know torch, and neither files, nor the cohort, nor Ray.

Source of the method: Jin et al., "Gene-Induced Multimodal Pre-training for Image-Omic Classification", MICCAI 2023.
What the paper leaves open is a named argument here, with the default of the docs.
"""

from gimp_ray.models.abmil import ABMIL
from gimp_ray.models.aggregator import PatchAggregator
from gimp_ray.models.attention_pool import AttentionBag, AttentionPool, BagOutput, PooledBag
from gimp_ray.models.clam import CLAM, CLAMOutput
from gimp_ray.models.dsmil import DSMIL, DSMILOutput, dsmil_probabilities
from gimp_ray.models.freezing import KeepsFrozen, freeze, is_frozen
from gimp_ray.models.gene_encoder import GeneEncoder
from gimp_ray.models.gene_input import GeneInput
from gimp_ray.models.gimp import GiMP, GiMPClassifier, GiMPClassifierOutput, GiMPOutput
from gimp_ray.models.group_msa import GroupMSA, fit_fragments
from gimp_ray.models.mean_pool import MeanPoolMLP
from gimp_ray.models.mlp_head import MLPHead
from gimp_ray.models.nystrom import NystromAttention
from gimp_ray.models.snn import SNN
from gimp_ray.models.transmil import PPEG, TransMIL

__all__ = [
    "ABMIL",
    "CLAM",
    "DSMIL",
    "PPEG",
    "SNN",
    "AttentionBag",
    "AttentionPool",
    "BagOutput",
    "CLAMOutput",
    "DSMILOutput",
    "GeneEncoder",
    "GeneInput",
    "GiMP",
    "GiMPClassifier",
    "GiMPClassifierOutput",
    "GiMPOutput",
    "GroupMSA",
    "KeepsFrozen",
    "MLPHead",
    "MeanPoolMLP",
    "NystromAttention",
    "PatchAggregator",
    "PooledBag",
    "TransMIL",
    "dsmil_probabilities",
    "fit_fragments",
    "freeze",
    "is_frozen",
]
