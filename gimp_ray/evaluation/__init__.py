"""How good a classifier is: metrics, patient-level intervals, and the two reference rows that keep a reader honest.

Survival has Harrell's C-index. Left out: calibration, and files (who calls this room reads and writes them).
"""

from gimp_ray.evaluation.intervals import bootstrap_intervals, paired_difference
from gimp_ray.evaluation.metrics import classification_metrics, encode_labels
from gimp_ray.evaluation.reference_rows import GENES_ALONE, MEAN_POOL_MLP, ReferenceRow, genes_alone, mean_pool_mlp
from gimp_ray.evaluation.survival import concordance_index

__all__ = [
    "GENES_ALONE",
    "MEAN_POOL_MLP",
    "ReferenceRow",
    "bootstrap_intervals",
    "classification_metrics",
    "concordance_index",
    "encode_labels",
    "genes_alone",
    "mean_pool_mlp",
    "paired_difference",
]
