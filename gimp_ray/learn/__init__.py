"""What is trained, and work over a whole cohort: gene pre-training, GiMP pre-training, fine-tuning, compared methods,
embedding.

A task joins a plan, a model, an objective and its evaluation. Each is made by an importable function from plain
arguments (`config`, `run`), so that any process of a cluster can make it again. None of them knows Ray.
"""

from gimp_ray.learn.contrastive import ContrastivePretraining
from gimp_ray.learn.embed import CohortEmbedding
from gimp_ray.learn.finetune import Finetuning
from gimp_ray.learn.genes import GenePretraining
from gimp_ray.learn.predict import CohortPrediction, cohort_work
from gimp_ray.learn.pretrain import GimpPretraining
from gimp_ray.learn.supervised import Supervised

__all__ = [
    "CohortEmbedding",
    "CohortPrediction",
    "ContrastivePretraining",
    "Finetuning",
    "GenePretraining",
    "GimpPretraining",
    "Supervised",
    "cohort_work",
]
