"""How far a pre-training step is from what the machine can do, where its time goes, and what memory it takes.

The limit is the number of floating-point operations that the step needs over the rate at which the machine multiplies
large matrices, measured in the same run; that of reading is in `python -m benchmarks.store`. Run as a program it
measures `memory`, and prints it.
"""

import json
import sys
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._speed_models import Sizes, Where, make_batch, our_loss, pretraining, stepping, their_loss
from benchmarks.common import Found, alternate, forget_peak, memory_of, spread

PROFILED = ("reference", "direct path", "as taken")


def limits(length: int, size: int, sizes: Sizes, rounds: int, where: Where) -> Found:
    """Operations of a step, its seconds, the machine's matmul rate, and the share of it that the step reaches."""
    ours, _ = pretraining(sizes, where)
    batch = make_batch(size, length, sizes, where, "stored")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others it does not count on a CPU
        with where.autocast():
            loss = our_loss(ours, batch)
        loss.backward()  # type: ignore[no-untyped-call]
    ours.zero_grad(set_to_none=True)
    operations = counter.get_total_flops()
    n = 8192 if where.device.type == "cuda" else 2048
    a = torch.randn(n, n, device=where.device, dtype=torch.bfloat16 if where.bf16 else torch.float32)

    def multiply(_: int) -> None:
        for _ in range(4):
            a @ a
        where.wait()

    seconds = alternate({"step": stepping(ours, lambda: our_loss(ours, batch), where), "matmul": multiply}, rounds)
    rates = [4 * 2 * n**3 / value for value in seconds["matmul"]]
    reached = [operations / value / rate for value, rate in zip(seconds["step"], rates, strict=True)]
    return {
        "gflop": operations / 1e9,
        "seconds": spread(seconds["step"]),
        "matmul_gflops": spread(rates, 1e-9),
        "share": spread(reached),
    }


def profiled(length: int, size: int, sizes: Sizes, where: Where, who: str, rows: int = 10) -> list[Found]:
    """Operators of a step by their own time, the longest first: share, milliseconds, calls. `who`: see `PROFILED`."""
    ours, theirs = pretraining(sizes, where)
    batch = make_batch(size, length, sizes, where, "loaded" if who == "reference" else "stored")
    if who == "reference":
        step = stepping(theirs, lambda: their_loss(theirs, batch), where)
    else:
        step = stepping(ours, lambda: our_loss(ours, batch, who == "direct path"), where)
    step(0)
    on_gpu = where.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        step(0)
    events = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in seen.key_averages()
    ]
    total = sum(time for _, time, _ in events)
    events.sort(key=lambda event: -event[1])
    return [{"operator": key, "share": time / total, "ms": time / 1e3, "calls": n} for key, time, n in events[:rows]]


def memory(who: str, device: str, bf16: bool, length: int, size: int, sizes: Found) -> Found:
    """MB at the peak of a pre-training step over model and optimiser, the batch as the trainer has it included."""
    where, of = Where(torch.device(device), bf16), Sizes(**sizes)
    ours, theirs = pretraining(of, where)
    mine = who == "gimp_ray"

    def step_on(batch: Any) -> Any:
        if mine:
            return stepping(ours, lambda: our_loss(ours, batch), where)
        return stepping(theirs, lambda: their_loss(theirs, batch), where)

    step_on(make_batch(size, 64, of, where))(0)  # libraries start their threads and take their workspaces
    whole = make_batch(size, length, of, where, "stored" if mine else "loaded")
    own = whole.stored.nbytes + whole.loaded.nbytes
    if where.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step_on(whole)(0)
        return {"mb": (torch.cuda.max_memory_allocated() - before + own) / 1e6}
    before = forget_peak()
    step_on(whole)(0)
    return {"mb": (memory_of("VmHWM") - before + own) / 1e6}


if __name__ == "__main__":
    print(json.dumps(memory(**json.loads(sys.argv[1]))))
