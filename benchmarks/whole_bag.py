"""Peak memory and CPU seconds of whole bags through the fine-tuning model, by length.

    python -m benchmarks.whole_bag [--lengths 6000 148569] [--models this package] [--out FILE.json]

Each measurement is a process of its own on one thread: a forward pass in evaluation mode, or a forward and a backward
pass, of one float16 bag through float32 weights; `package` has the attention of `nystrom-attention` in the same layers.
The peak is over that of model and bag. A measurement that needs more than `--limit` bytes is reported as such. Linux
only. Prints a Markdown table.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks._speed_models import Sizes, Where, classifiers
from benchmarks.common import Found, forget_peak, machine, memory_of, parser, run_alone, table, write_json

NAMES = {"this": "this package", "package": "`nystrom-attention`"}


def make_bag(patches: int) -> torch.Tensor:
    """(1, N, E) float16, made in pieces so that nothing larger is ever in memory."""
    generator = torch.Generator().manual_seed(0)
    bag = torch.empty(1, patches, Sizes.in_dim, dtype=torch.float16)
    for piece in bag[0].split(1024):
        piece.copy_(torch.randn(piece.shape, generator=generator))
    return bag


def measure(model: str, patches: int, backward: bool, limit: int) -> Found:
    """Peak bytes over those of model and bag in one step, and its seconds; `failed` where `limit` bytes did not do."""
    torch.set_num_threads(1)
    ours, reference = classifiers(Sizes(), Where(torch.device("cpu")))
    net = (ours if model == "this" else reference).train(backward)

    def step(bag: torch.Tensor) -> None:
        with torch.set_grad_enabled(backward):
            logits = ours(bag).logits if model == "this" else reference(bag.float())
        if backward:
            F.cross_entropy(logits, torch.tensor([1])).backward()

    step(make_bag(600))  # libraries start their threads and take their workspaces
    net.zero_grad(set_to_none=True)
    bag = make_bag(patches)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + limit, size + limit))
    before, started = forget_peak(), time.process_time()
    try:
        step(bag)
    except RuntimeError as problem:
        if "alloc" not in str(problem):
            raise
        return {"failed": str(problem).splitlines()[0]}
    return {
        "bytes": memory_of("VmHWM") - before,
        "cpu_seconds": time.process_time() - started,
        "bag_bytes": bag.nbytes,
    }


def as_table(rows: list[Found], models: list[str], limit: float) -> str:
    """The measurements as Markdown, a line for each length and kind of pass."""
    head = [f"{NAMES[name]}, {unit}" for unit in ("MB", "CPU s") for name in models]
    lines = []
    for patches, passes in dict.fromkeys((row["patches"], row["passes"]) for row in rows):
        of = {row["model"]: row for row in rows if (row["patches"], row["passes"]) == (patches, passes)}
        bag = next((f"{row['bag_bytes'] / 1e6:,.0f}" for row in of.values() if "bag_bytes" in row), "")
        memory = [f"{of[n]['bytes'] / 1e6:,.0f}" if "bytes" in of[n] else f"over {limit / 1e6:,.0f}" for n in models]
        seconds = [f"{of[n]['cpu_seconds']:.1f}" if "bytes" in of[n] else "" for n in models]
        lines.append([f"{patches:,}", bag, passes, *memory, *seconds])
    return table(["patches", "bag, MB", "passes", *head], lines)


def main() -> None:
    asks = parser(__doc__, "out")
    asks.add_argument("--lengths", type=int, nargs="+", default=[6000, 15_000, 50_000, 148_569])
    asks.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES))
    asks.add_argument("--limit", type=float, default=9e9, help="bytes a measurement may have over model and bag")
    options = asks.parse_args()
    rows = []
    for patches in options.lengths:
        for passes in ("forward", "forward, backward"):
            for model in options.models:
                asked = {"model": model, "patches": patches, "backward": passes != "forward"}
                asked |= {"limit": int(options.limit)}
                found = run_alone("benchmarks.whole_bag", asked, {"OMP_NUM_THREADS": "1"})
                rows.append({"passes": passes} | asked | found)
                print(rows[-1], file=sys.stderr, flush=True)
    if options.out:
        write_json(options.out, {"machine": machine(), "rows": rows})
    print(as_table(rows, options.models, options.limit))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # as `run_alone` starts it
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
    else:
        main()
