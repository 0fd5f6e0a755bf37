"""InfoNCE against loops, and every contrastive loss on two workers against one."""

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gimp_ray.methods.biovil import biovil_loss
from gimp_ray.methods.mgca import mgca_loss
from gimp_ray.methods.refers import refers_loss
from gimp_ray.nn.losses import gather_rows, infonce

N, P = 6, 5


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(a: Tensor, b: Tensor, temperature: float) -> float:
    """Mean over rows of -log softmax of a row's own cosine."""
    total = 0.0
    for i in range(len(a)):
        cosines = [float(a[i] @ b[j] / (a[i].norm() * b[j].norm())) / temperature for j in range(len(b))]
        total += math.log(sum(math.exp(c) for c in cosines)) - cosines[i]
    return total / len(a)


@pytest.mark.parametrize("weight", [0.5, 0.75, 0.0])
def test_equals_the_equation(weight):
    a, b = seeded(N, P), seeded(N, P, seed=1)
    expected = weight * by_loops(a, b, 0.3) + (1 - weight) * by_loops(b, a, 0.3)
    assert infonce(a, b, 0.3, weight).loss.item() == pytest.approx(expected, abs=1e-12)


def test_length_does_not_count_and_sides_may_be_exchanged():
    a, b = seeded(N, P), seeded(N, P, seed=1)
    here = infonce(a, b, 0.1)
    longer = infonce(a * torch.arange(1, N + 1)[:, None], b * 7, 0.1)
    torch.testing.assert_close(longer.loss, here.loss)
    torch.testing.assert_close(infonce(b, a, 0.1).loss, here.loss)


def test_accuracy_counts_rows_that_find_their_own_in_both_directions():
    a = torch.eye(4, dtype=torch.float64)
    assert infonce(a, a).accuracy == 1
    # row 0 of a finds row 1 of b and the reverse; the others find their own
    assert infonce(a, a[[1, 0, 2, 3]]).accuracy == 0.5


def test_one_row_has_a_loss_of_zero_and_a_gradient():
    a = seeded(1, P).requires_grad_()
    loss = infonce(a, seeded(1, P, seed=1)).loss
    loss.backward()
    assert loss == 0 and a.grad is not None and (a.grad == 0).all()


def test_half_precision_is_computed_in_float32():
    a = seeded(N, P).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = infonce(a, a, 0.01)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, infonce(a.float(), a.float(), 0.01).loss)


def test_rows_that_do_not_count_are_left_out():
    a, b = seeded(N, P), seeded(N, P, seed=1)
    counted = torch.tensor([True, False, True, True, False, True])
    assert [x.tolist() for x in gather_rows(counted, a, b)] == [a[counted].tolist(), b[counted].tolist()]
    assert gather_rows(None, a, b)[0] is a


def test_bad_input_is_refused():
    a = seeded(N, P)
    for bad in (a[:3], a[:, :2], a[0]):
        with pytest.raises(ValueError, match="both sides"):
            infonce(a, bad)
    with pytest.raises(ValueError, match="N >= 1"):
        infonce(a[:0], a[:0])
    with pytest.raises(ValueError, match="temperature"):
        infonce(a, a, 0.0)
    with pytest.raises(ValueError, match="weight"):
        infonce(a, a, weight=1.5)
    with pytest.raises(ValueError, match="bool"):
        gather_rows(torch.ones(N), a)


# what two workers hold of eight cases: which cases, the factor of the loss, and whether they count
SHARED_OUT = {
    "alike": [(range(4), 1.0, True), (range(4, 8), 1.0, True)],
    "uneven": [(range(5), 1.25, True), (range(5, 8), 0.75, True)],
    "one has nothing left": [(range(8), 2.0, True), (range(1), 0.0, False)],
}
LOSSES = ("infonce", "mgca", "biovil", "refers")


def _network() -> nn.Module:
    """Everything the losses take, from one linear map of a case's numbers."""
    torch.manual_seed(3)
    return nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(6, 4), "c": nn.Linear(6, 12)}).double()


class _Sides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _network()
        self.prototypes = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.net["a"](x), self.net["b"](x), self.net["c"](x).view(-1, 3, 4), self.prototypes


def _loss(name: str, out: tuple[Tensor, ...], rows: Tensor, counted: Tensor) -> Tensor:
    a, b, tokens, prototypes = out
    # so that DDP waits for nothing, whichever loss it is
    none = 0 * (a.sum() + b.sum() + tokens.sum() + prototypes.sum())
    fixed = seeded(8, 3, seed=4)[rows]
    if name == "infonce":
        return infonce(*gather_rows(counted, a, b), 0.2).loss + none
    if name == "mgca":
        weights = fixed.abs()
        return mgca_loss(a, b, tokens, tokens.flip(2), weights, weights, prototypes, counted=counted).loss + none
    if name == "biovil":
        masked = torch.tensor([[True, False, True]]).expand(len(a), 3)
        return biovil_loss(a, b, tokens[..., 0], fixed, masked, counted=counted).loss + none
    return refers_loss(a, b, tokens, (fixed > 0).long(), counted=counted).loss + none


def _step(model: nn.Module, name: str, rows: range, factor: float, counts: bool) -> tuple[float, list[float]]:
    numbers = torch.tensor(list(rows))
    loss = _loss(name, model(seeded(8, 6, seed=2)[numbers]), numbers, torch.full((len(rows),), counts))
    (loss * factor).backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).tolist()


def _rank(rank: int, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {
        f"{name} {how}": _step(DistributedDataParallel(_Sides()), name, *parts[rank])
        for name in LOSSES
        for how, parts in SHARED_OUT.items()
    }
    Path(f"{out}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.ray  # the slow tier: two further processes import torch
def test_two_workers_have_the_gradient_of_one_with_the_whole_batch(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_rank, (port, str(tmp_path / "found")), nprocs=2, start_method="spawn")
    ranks: list[Any] = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    for name in LOSSES:
        loss, grads = _step(_Sides(), name, range(8), 1.0, True)
        assert any(abs(value) > 1e-3 for value in grads)
        for how in SHARED_OUT:
            for rank in ranks:
                found_loss, found_grads = rank[f"{name} {how}"]
                assert found_grads == pytest.approx(grads, rel=1e-9, abs=1e-12), (name, how)
                if name == "infonce":
                    assert found_loss == pytest.approx(loss, rel=1e-9)
