"""CLAM with an attention branch for each class."""

from gimp_ray.methods.clam import method

METHOD = method("CLAM-MB", multi_branch=True)
