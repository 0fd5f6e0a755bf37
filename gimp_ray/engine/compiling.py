"""torch.compile of a stage's model, in place.

The module keeps its class and the names of its weights, so checkpoints and model files of a compiled run and of a plain
one are the same. Left out: losses, which are small beside the model, and modes of the compiler.
"""

from __future__ import annotations

from torch import nn

# of torch.compile; Inductor needs a C++ compiler on a CPU, and Triton on a GPU
BACKEND = "inductor"


def compile_model(model: nn.Module) -> None:
    """Have calls of `model` compiled at their first use, and again where train or eval mode or shapes change."""
    model.compile(backend=BACKEND)
