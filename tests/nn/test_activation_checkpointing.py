"""Activation checkpointing: the same bits with and without it, dropout and padding included, and less kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.learn.supervise import Supervised
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.runs.model import load_weights
from tests.conftest import changed


def make(checkpointing: bool, **changes) -> PatchAggregator:
    torch.manual_seed(0)
    settings = {"dim": 16, "heads": 2, "dim_head": 8, "num_landmarks": 4, "residual_kernel": 3} | changes
    return PatchAggregator(12, **settings, activation_checkpointing=checkpointing)


def gradients(aggregator: PatchAggregator, valid: Tensor | None, precision: torch.dtype) -> list[Tensor]:
    """Outputs, the next random number, and all gradients of one seeded step."""
    x = torch.randn(2, 13, 12, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        cls, tokens = aggregator(x, valid)
        loss = cls.square().sum() + tokens.square().sum()
    loss.backward()
    grads = [parameter.grad for parameter in aggregator.parameters()]
    return [cls, tokens, torch.rand(1), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_the_same_bits(dropout: float, padded: bool, precision: torch.dtype) -> None:
    valid = torch.arange(13) < torch.tensor([[13], [6]]) if padded else None
    plain = gradients(make(False, dropout=dropout), valid, precision)
    again = gradients(make(True, dropout=dropout), valid, precision)
    assert len(plain) == len(again) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def kept_values(checkpointing: bool, layers: int, length: int = 400) -> int:
    """How many values the forward pass keeps for the backward pass, weights and inputs aside."""
    aggregator = make(checkpointing, layers=layers)
    weights = {parameter.data_ptr() for parameter in aggregator.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        aggregator(torch.randn(1, length, 12))
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


def test_a_layer_keeps_its_input_alone() -> None:
    tokens = 401 * 16
    each = (kept_values(True, layers=4) - kept_values(True, layers=2)) / 2
    assert tokens <= each < 1.2 * tokens, "one token matrix a layer"
    assert (kept_values(False, layers=4) - kept_values(False, layers=2)) / 2 > 5 * tokens


def test_nothing_is_computed_twice_where_no_gradient_is_asked_for() -> None:
    aggregator = make(True).eval()
    calls = []
    aggregator.attentions[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        aggregator(torch.randn(1, 9, 12))
    assert len(calls) == 1
    aggregator(torch.randn(1, 9, 12))[0].sum().backward()
    assert len(calls) == 3, "once forward, once again in the backward pass"


@pytest.mark.slow
def test_a_stage_has_the_same_weights_and_may_be_continued_with_it(tiny: Config, tmp_path: Path) -> None:
    base = changed(tiny, genes__encoder="none", triplet__weight=0, train__epochs=2, model__dropout=0.3)
    plain = pipeline.pretrain(changed(base, run=str(tmp_path / "plain")))
    stopped = changed(base, run=str(tmp_path / "other"), train__stop_after=1)
    pipeline.pretrain(stopped)
    other = pipeline.pretrain(changed(stopped, train__stop_after=None, model__activation_checkpointing=True))
    one, two = load_weights(plain.model_file("pretrain")), load_weights(other.model_file("pretrain"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    # fine-tuning goes by its own config, not by the pre-trained model's
    init = str(other.model_file("pretrain"))
    for asked in (False, True):
        task = Supervised(
            changed(base, finetune__init=init, model__activation_checkpointing=asked).model_dump(), str(other.path)
        )
        assert task.build(torch.device("cpu")).get_submodule("aggregator").activation_checkpointing is asked
