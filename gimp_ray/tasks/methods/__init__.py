"""The compared methods by their names in `method.name`."""

from collections.abc import Mapping

from gimp_ray.tasks.methods.base import Method, Phase, Sizes, answer
from gimp_ray.tasks.methods.genes import GENE_METHODS
from gimp_ray.tasks.methods.image import IMAGE_METHODS
from gimp_ray.tasks.methods.joint import JOINT_METHODS

METHODS: Mapping[str, Method] = {**IMAGE_METHODS, **GENE_METHODS, **JOINT_METHODS}

__all__ = ["METHODS", "Method", "Phase", "Sizes", "answer"]
