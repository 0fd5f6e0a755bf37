"""What every bag classifier must hold, whatever its method: the checks that the tests of each share.

All in float64, with small widths. `E` is the width of the patches, `C` the number of classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

E, C = 6, 3
LENGTHS = (13, 1, 6, 2, 9)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_bags(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    return [seeded(1, n, E, seed=n) for n in lengths]


def in_a_batch(bags: Sequence[Tensor], width: int, holes: bool) -> tuple[Tensor, Tensor]:
    """Bags at the first places or at any places of rows of NaN and huge numbers, and where they are."""
    generator = torch.Generator().manual_seed(7)
    batch = torch.full((len(bags), width, E), torch.nan, dtype=torch.float64)
    batch[:, ::2] = 1e30
    valid = torch.zeros(len(bags), width, dtype=torch.bool)
    for row, (real, bag) in enumerate(zip(valid, bags, strict=True)):
        n = bag.shape[1]
        at = torch.randperm(width, generator=generator)[:n].sort().values if holes else torch.arange(n)
        real[at] = True
        batch[row, at] = bag[0]
    return batch, valid


def check_alone_equals_batched_and_padded(
    model: nn.Module,
    per_bag: Sequence[str] = ("logits", "bag"),
    per_patch: Sequence[str] = (),
    loss: Callable[[Any], Tensor] = lambda out: out.logits.square().sum(),
) -> None:
    """Outputs, and the gradients of a loss that is a sum over bags, in evaluation mode."""
    model.double().eval()
    bags = make_bags()
    alone = [model(bag) for bag in bags]
    model.zero_grad()
    torch.stack([loss(out) for out in alone]).sum().backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    for width, holes in ((13, False), (31, False), (31, True)):
        batch, valid = in_a_batch(bags, width, holes)
        model.zero_grad()
        out = model(batch, valid)
        loss(out).backward()
        for row, one in enumerate(alone):
            for name in per_bag:
                torch.testing.assert_close(getattr(out, name)[row], getattr(one, name)[0], atol=1e-9, rtol=1e-9)
            for name in per_patch:
                found, expected = getattr(out, name)[row], getattr(one, name)[0]
                torch.testing.assert_close(found[..., valid[row]], expected, atol=1e-9, rtol=1e-9)
                assert (found[..., ~valid[row]] == 0).all()
        for (name, p), grad in zip(model.named_parameters(), wanted, strict=True):
            if grad is not None:
                torch.testing.assert_close(p.grad, grad, atol=1e-7, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def check_a_mask_of_all_equals_none(model: nn.Module) -> None:
    model.double().eval()
    x = seeded(2, 7, E)
    torch.testing.assert_close(
        model(x, torch.ones(2, 7, dtype=torch.bool)).logits, model(x).logits, atol=1e-10, rtol=1e-10
    )


def check_a_bag_without_patches_harms_nobody(model: nn.Module) -> None:
    model.double().eval()
    x = seeded(2, 7, E)
    x[1] = torch.nan
    valid = torch.tensor([[True] * 7, [False] * 7])
    out = model(x, valid)
    torch.testing.assert_close(out.logits[:1], model(x[:1]).logits, atol=1e-10, rtol=1e-10)
    assert torch.isfinite(out.logits).all()
    out.logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def check_deterministic_in_evaluation_only(model: nn.Module) -> None:
    model.double()
    x = seeded(2, 7, E)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)


def silent_parameters(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of the parameters that the loss gives no gradient."""
    model.zero_grad()
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def check_overfits(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], steps: int = 60, lr: float = 3e-3) -> None:
    """Six bags of noise of uneven lengths, padded, are learned by heart."""
    torch.manual_seed(0)
    model.double().train()
    x, valid = in_a_batch(make_bags((5, 9, 3, 7, 4, 8)), 9, holes=False)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x, valid), labels).backward()
        optimizer.step()
    model.eval()
    assert model(x, valid).logits.argmax(dim=1).tolist() == labels.tolist()


def check_half_precision_patches_are_cast(model: nn.Module) -> None:
    model.float().eval()
    x = seeded(2, 7, E).half()
    torch.testing.assert_close(model(x).logits, model(x.float()).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x, torch.ones(2, 7, dtype=torch.bool)).logits
    torch.testing.assert_close(logits.float(), model(x).logits, atol=0.1, rtol=0.1)


def check_bad_shapes_are_refused(model: nn.Module) -> None:
    model.double().eval()
    x = seeded(2, 4, E)
    with pytest.raises(ValueError, match="7 wide"):
        model(seeded(2, 4, E + 1))
    with pytest.raises(ValueError, match="must be"):
        model(x[0])
    with pytest.raises(ValueError, match="N >= 1"):
        model(x[:, :0])
    with pytest.raises(ValueError, match=r"valid must be \(2, 4\) bool"):
        model(x, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        model(x, torch.ones(2, 4))
