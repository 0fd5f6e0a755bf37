"""What reading and writing a store costs, beside what peers do: `python -m benchmarks.store [--quick] [--out FILE]`.

Windows against torch.load, HDF5 as CLAM and TRIDENT write it and a plain memory-map; over bags of many sizes; ingest
against only reading the same files; object storage against plain requests; number formats and compression. Contestants
take turns in one run, so that what else the machine does falls on all of them. Writes JSON, prints the tables, and with
`--docs` puts them into docs/performance.md. Left out: a million slides (`benchmarks/manifest.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _store_formats
import _store_ingest
import _store_s3
import _store_windows
from _store_files import FULL, LAYOUTS, QUICK, Scale, make_store, write_cohort
from _store_tables import sections
from _store_timing import machine
from _tables import replace_section, write_json

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
PARTS = ("windows", "sizes", "ingest", "stages", "ingest_memory", "s3", "formats")


def run(scale: Scale, folder: Path) -> dict[str, Any]:
    """All measurements, made in `folder`; about 3 GB of space are needed there."""
    started = time.perf_counter()
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "scale": dataclasses.asdict(scale),
    }
    cohorts = {}
    for layout, chunk in LAYOUTS.items():
        cohorts[layout] = write_cohort(folder / f"layout-{chunk}", scale, chunk)
    one = cohorts["CLAM, 32 patches a chunk"]
    store = make_store(one, folder / "store")
    result["windows"] = _done("windows", _store_windows.against_peers(folder, cohorts, store, scale))
    result["sizes"] = _done("sizes", _store_windows.over_sizes(folder, scale))
    result["ingest"] = _done("ingest", _store_ingest.against_reading(cohorts, folder, scale))
    result["stages"] = _done("stages", _store_ingest.stages(one, folder, scale))
    result["ingest_memory"] = _done("ingest memory", _store_ingest.memory(folder, scale))
    result["s3"] = _done("object storage", _store_s3.measure(one, folder, scale))
    result["formats"] = _done("formats", _store_formats.measure(one, folder, scale))
    result["seconds"] = time.perf_counter() - started
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and soon done: shows that it works, not how fast")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="store-benchmark-") as folder:
        result = run(QUICK if options.quick else FULL, Path(folder))
    if options.out is not None:
        write_json(options.out, result)
    command = "python -m benchmarks.store" + (" --quick" if options.quick else "")
    for name, text in sections(result, command).items():
        print(f"\n## {name}\n\n{text}")
        if options.docs:
            replace_section(DOCS, name, text)


def _done(what: str, result: Any) -> Any:
    print(f"{what}: done", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
