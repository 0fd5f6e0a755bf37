"""CLAM with a single attention branch."""

from gimp_ray.methods.clam import method

METHOD = method("CLAM-SB", multi_branch=False)
