"""The compared methods by their names in `method.name`."""

from collections.abc import Mapping

from gimp_ray.learn.methods.base import Method, Phase, Sizes, answer
from gimp_ray.learn.methods.genes import GENE_METHODS
from gimp_ray.learn.methods.image import IMAGE_METHODS
from gimp_ray.learn.methods.joint import JOINT_METHODS

METHODS: Mapping[str, Method] = {**IMAGE_METHODS, **GENE_METHODS, **JOINT_METHODS}

__all__ = ["METHODS", "Method", "Phase", "Sizes", "answer"]
