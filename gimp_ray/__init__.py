"""gimp_ray: gene-induced multimodal pre-training (GiMP, MICCAI 2023) on Ray. Its packages are described in
docs/design.md.
"""

__version__ = "0.1.0"
