"""Gene files of other tools in, one matrix of cases and genes out (`read_expression`)."""

from gimp_ray.ingest.genes.matrix import GeneMatrix, join, read_expression
from gimp_ray.ingest.genes.options import GeneOptions

__all__ = ["GeneMatrix", "GeneOptions", "join", "read_expression"]
