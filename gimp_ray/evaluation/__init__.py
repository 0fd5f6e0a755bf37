"""How good predictions are: metrics with patient-level 95 % confidence intervals, and two baselines to compare with.

For every kind of target: a class, several labels, survival. Arrays in, plain values out; files are the caller's job.
"""

from gimp_ray.evaluation.baselines import GENES_ALONE, MEAN_POOL, Baseline, genes_alone, mean_pool
from gimp_ray.evaluation.bootstrap import difference_of, intervals_of
from gimp_ray.evaluation.metrics import METRICS, Truth, classification_metrics, encode_labels
from gimp_ray.evaluation.survival import concordance_index, kaplan_meier

__all__ = [
    "GENES_ALONE",
    "MEAN_POOL",
    "METRICS",
    "Baseline",
    "Truth",
    "classification_metrics",
    "concordance_index",
    "difference_of",
    "encode_labels",
    "genes_alone",
    "intervals_of",
    "kaplan_meier",
    "mean_pool",
]
