"""What every joint model of patches and genes must hold, and the equations that several of them share, in numpy.

All in float64, with small widths. `G` is the number of genes; the rest is in `bag_checks`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bag_checks import E, in_a_batch, make_bags, seeded
from torch import Tensor, nn

G = 10
Numbers = np.ndarray


def seeded_genes(rows: int = 5) -> Tensor:
    return seeded(rows, G, seed=99)


def check_alone_equals_batched_and_padded(model: nn.Module, outputs: tuple[str, ...] = ("logits", "bag")) -> None:
    """Every output, and the gradients of a loss that is a sum over patients, in evaluation mode."""
    model.double().eval()
    bags, genes = make_bags(), seeded_genes()
    alone = [model(bag, genes_BG=genes[row : row + 1]) for row, bag in enumerate(bags)]
    model.zero_grad()
    torch.stack([sum(getattr(out, name).square().sum() for name in outputs) for out in alone]).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for width, holes in ((13, False), (31, False), (31, True)):
        batch, valid = in_a_batch(bags, width, holes)
        model.zero_grad()
        out = model(batch, valid, genes_BG=genes)
        sum(getattr(out, name).square().sum() for name in outputs).backward()
        for row, one in enumerate(alone):
            for name in outputs:
                torch.testing.assert_close(getattr(out, name)[row], getattr(one, name)[0], atol=1e-9, rtol=1e-9)
            found = out.attention[row]
            torch.testing.assert_close(found[valid[row]], one.attention[0], atol=1e-9, rtol=1e-9)
            assert (found[~valid[row]] == 0).all()
        assert wanted
        for name, p in model.named_parameters():
            if name in wanted:
                torch.testing.assert_close(p.grad, wanted[name], atol=1e-7, rtol=1e-7, msg=lambda m, n=name: f"{n} {m}")


def check_masks(model: nn.Module) -> None:
    """A mask of all is none, and a bag without patches gives finite numbers and harms nobody."""
    model.double().eval()
    x, genes, everything = seeded(2, 7, E), seeded_genes(2), torch.ones(2, 7, dtype=torch.bool)
    whole = model(x, genes_BG=genes)
    torch.testing.assert_close(model(x, everything, genes_BG=genes).logits, whole.logits, atol=1e-10, rtol=1e-10)
    x[1], everything[1] = torch.nan, False
    out = model(x, everything, genes_BG=genes)
    torch.testing.assert_close(out.logits[0], whole.logits[0], atol=1e-10, rtol=1e-10)
    assert torch.isfinite(out.logits).all()
    out.logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def check_deterministic_in_evaluation_only(model: nn.Module) -> None:
    model.double()
    x, genes = seeded(2, 7, E), seeded_genes(2)
    model.eval()
    assert torch.equal(model(x, genes_BG=genes).logits, model(x, genes_BG=genes).logits)
    model.train()
    assert not torch.equal(model(x, genes_BG=genes).logits, model(x, genes_BG=genes).logits)


def check_overfits(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], answers: tuple[str, ...] = ("logits",)
) -> None:
    """Six patients of noise are learned by heart."""
    model.double().train()
    x, valid = in_a_batch(make_bags((5, 9, 3, 7, 4, 8)), 9, holes=False)
    genes, labels = seeded_genes(6), torch.tensor([0, 1, 2, 2, 1, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(x, valid, genes_BG=genes), labels).backward()
        optimizer.step()
    model.eval()
    out = model(x, valid, genes_BG=genes)
    for answer in answers:
        assert getattr(out, answer).argmax(dim=1).tolist() == labels.tolist()


def check_both_modalities_count(model: nn.Module) -> None:
    model.double().eval()
    x, genes = seeded(1, 7, E), seeded_genes(1)
    here = model(x, genes_BG=genes).logits
    assert not torch.allclose(model(x.flip(-1), genes_BG=genes).logits, here)
    assert not torch.allclose(model(x, genes_BG=genes.flip(-1)).logits, here)


def check_half_precision_patches_are_cast(model: nn.Module) -> None:
    model.float().eval()
    x, genes = seeded(2, 7, E).half(), seeded_genes(2).float()
    torch.testing.assert_close(model(x, genes_BG=genes).logits, model(x.float(), genes_BG=genes).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x, torch.ones(2, 7, dtype=torch.bool), genes_BG=genes).logits
        with torch.no_grad():  # where torch has other kernels for some layers
            assert torch.isfinite(model(x, genes_BG=genes).logits).all()
    whole = model(x, genes_BG=genes).logits
    torch.testing.assert_close(logits.float(), whole, atol=0.1, rtol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(model(x, genes_BG=genes).logits, whole)


def check_bad_shapes_are_refused(model: nn.Module) -> None:
    model.double().eval()
    x, genes = seeded(2, 4, E), seeded_genes(2)
    with pytest.raises(ValueError, match="7 wide"):
        model(seeded(2, 4, E + 1), genes_BG=genes)
    with pytest.raises(ValueError, match=r"valid must be \(2, 4\) bool"):
        model(x, torch.ones(2, 5, dtype=torch.bool), genes_BG=genes)
    with pytest.raises(ValueError, match=f"{G + 1}"):
        model(x, genes_BG=seeded(2, G + 1))
    for rows in (1, 3):  # one row would broadcast
        with pytest.raises(ValueError):
            model(x, genes_BG=seeded_genes(rows))


class Weights:
    """A model's weights as numpy, and the layers that the equations name."""

    def __init__(self, model: nn.Module) -> None:
        self.w = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def linear(self, name: str, x: Numbers) -> Numbers:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def relu(self, name: str, x: Numbers) -> Numbers:
        return np.maximum(self.linear(name, x), 0)

    def snn(self, name: str, x: Numbers, blocks: int) -> Numbers:
        for block in range(blocks):
            x = elu(self.linear(f"{name}.blocks.{3 * block}", x))
        return x

    def gated_pool(self, name: str, tokens: list[Numbers]) -> tuple[Numbers, Numbers]:
        scores = [
            self.w[f"{name}.score.weight"][0]
            @ (np.tanh(self.linear(f"{name}.content.0", h)) * sigmoid(self.linear(f"{name}.gate.0", h)))
            for h in tokens
        ]
        weights = softmax(np.array(scores))
        return sum(a * h for a, h in zip(weights, tokens, strict=True)), weights

    def bag(self, name: str, patches: Numbers) -> tuple[Numbers, Numbers]:
        return self.gated_pool(f"{name}.pool", [self.relu(f"{name}.linear", x) for x in patches])

    def fused(
        self, name: str, a: Numbers, b: Numbers, gate: str, gates: tuple[bool, bool], skip: str | None
    ) -> Numbers:
        reduced = []
        for side, own, gated in (("first", a, gates[0]), ("second", b, gates[1])):
            h = self.relu(f"{name}.{side}.reduce.0", own)
            if gated and gate == "linear":
                h = h * sigmoid(self.linear(f"{name}.{side}.linear_gate", np.concatenate([a, b])))
            elif gated:
                map_ = f"{name}.{side}.bilinear_gate"
                z = [a @ matrix @ b for matrix in self.w[f"{map_}.weight"]]
                h = h * sigmoid(np.array(z) + self.w[f"{map_}.bias"])
            reduced.append(np.append(self.relu(f"{name}.{side}.out.0", h), 1.0))
        joint = self.relu(f"{name}.joint.0", np.kron(*reduced))
        beside = {None: [], "inputs": [a, b], "reduced": reduced}[skip]
        return self.relu(f"{name}.out.0", np.concatenate([joint, *beside]))


def sigmoid(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def softmax(x: Numbers) -> Numbers:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def elu(x: Numbers) -> Numbers:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
