"""train.compile: the model is really compiled, and its checkpoints are those of a plain run, both ways.

The compiler's own backend takes minutes on a small machine. Here graphs are captured as it would get them, and run as
they are; such graphs draw dropout anew where a checkpointed layer is computed again, so there is no such layer here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine import compiling
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the graphs that were compiled."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    torch._dynamo.reset()
    yield sizes
    torch._dynamo.reset()


def losses(run: RunFolder) -> list[float]:
    return [line["loss"] for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


def test_runs_go_on_compiled_or_plain_from_each_others_checkpoints(
    tiny: Config, tmp_path: Path, graphs: list[int]
) -> None:
    base = changed(tiny, genes__encoder="none", train__epochs=2, model__layers=1)

    def run_of(name: str, first: bool, second: bool) -> tuple[RunFolder, list[int]]:
        """One epoch each way; and how many graphs each made."""
        made = []
        for compiled, stop in ((first, 1), (second, None)):
            torch._dynamo.reset()  # else the graph of the run before serves this one too
            before = len(graphs)
            run = pipeline.pretrain(
                changed(base, run=str(tmp_path / name), train__compile=compiled, train__stop_after=stop)
            )
            made.append(len(graphs) - before)
        return run, made

    plain, made = run_of("plain", False, False)
    assert made == [0, 0]
    weights = load_weights(plain.model_file("pretrain"))
    for name, first, second in (("compiled-first", True, False), ("compiled-second", False, True)):
        run, made = run_of(name, first, second)
        assert [count > 0 for count in made] == [first, second]
        found = load_weights(run.model_file("pretrain"))
        assert found.keys() == weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
        assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    # attention and all that is around it, not some leaf of it
    assert max(graphs) > 50


def test_whole_bags_of_many_lengths_stay_compiled(graphs: list[int]) -> None:
    """Validation gives one bag at a time, each of its own length."""
    from gimp_ray.methods.gimp import GiMPClassifier
    from gimp_ray.nn.aggregator import PatchAggregator

    torch.manual_seed(0)
    model = GiMPClassifier(PatchAggregator(12, 16, 2, 8, 4, residual_kernel=3, layers=1), None, 2, 16).eval()
    names = list(model.state_dict())
    bags = [torch.randn(1, length, 12) for length in (40, 41, 57, 63, 80, 33)]
    with torch.no_grad():
        expected = [model(bag).logits for bag in bags]
        compiling.compile_model(model)
        found = [model(bag).logits for bag in bags]
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two)
    assert list(model.state_dict()) == names
    assert 0 < len(graphs) <= 4, "lengths become symbols after the second"
