"""How good predictions are: metrics, patient-level intervals, and the two reference rows that keep a reader honest.

Of every kind of target: a class, several labels, survival. Left out: calibration, and files (who calls this room reads
and writes them).
"""

from gimp_ray.evaluation.by_kind import METRICS, Truth, difference_of, intervals_of
from gimp_ray.evaluation.cox_ridge import genes_alone_survival, mean_pool_survival
from gimp_ray.evaluation.intervals import bootstrap_intervals, paired_difference
from gimp_ray.evaluation.label_intervals import label_difference, label_intervals
from gimp_ray.evaluation.label_rows import genes_alone_labels, mean_pool_labels
from gimp_ray.evaluation.metrics import classification_metrics, encode_labels
from gimp_ray.evaluation.reference_rows import GENES_ALONE, MEAN_POOL_MLP, ReferenceRow, genes_alone, mean_pool_mlp
from gimp_ray.evaluation.survival import concordance_index
from gimp_ray.evaluation.survival_curves import kaplan_meier
from gimp_ray.evaluation.survival_intervals import survival_difference, survival_intervals

__all__ = [
    "GENES_ALONE",
    "MEAN_POOL_MLP",
    "METRICS",
    "ReferenceRow",
    "Truth",
    "bootstrap_intervals",
    "classification_metrics",
    "concordance_index",
    "difference_of",
    "encode_labels",
    "genes_alone",
    "genes_alone_labels",
    "genes_alone_survival",
    "intervals_of",
    "kaplan_meier",
    "label_difference",
    "label_intervals",
    "mean_pool_labels",
    "mean_pool_mlp",
    "mean_pool_survival",
    "paired_difference",
    "survival_difference",
    "survival_intervals",
]
