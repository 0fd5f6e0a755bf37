"""Expression of a synthetic cohort: generated, or real cases taken from a file.

Generated log2(FPKM + 1) of a gene = level + spread * (pathway factors + site + noise + class), where only a share of
the genes depends on the class and only a share of the cases shows it; written as linear FPKM, genes x cases, as GDC
does. Real expression keeps its values, unit and layout (cases x genes, HDF5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.synth.options import SynthOptions
from gimp_ray.synth.patches import Case

FACTORS = 12  # pathways shared by many genes
FACTOR_SPREAD, SITE_SPREAD, NOISE_SPREAD = 0.25, 0.25, 0.7
GENES_AT_ONCE = 4096  # bounds the memory at 60,000 genes
CASES_AT_ONCE = 64


@dataclass(frozen=True)
class RealCases:
    """Cases chosen from a file of real expression, in the file's order."""

    path: Path
    rows: NDArray[np.int64]
    case_ids: list[str]
    labels: list[int]
    n_genes: int
    unit: str


def write_generated(path: Path, options: SynthOptions, cases: Sequence[Case]) -> None:
    """Write `gene_id<TAB>case...` with linear FPKM to 4 decimals, one gene a line."""
    rng = np.random.default_rng([options.seed, 3])
    case_ids, labels, sites = zip(*((case.case_id, case.label, case.site) for case in cases), strict=True)
    factors_FB = rng.standard_normal((FACTORS, len(case_ids)))
    clear_B = rng.random(len(case_ids)) < options.gene_clarity
    informative = np.zeros(options.genes, bool)
    informative[rng.permutation(options.genes)[: round(options.gene_share * options.genes)]] = True
    schema = pa.schema([("gene_id", pa.string()), *((case_id, pa.float64()) for case_id in case_ids)])
    # Arrow quotes its header whatever it is told; other tools' matrices have a bare one
    layout = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file, pyarrow.csv.CSVWriter(file, schema, write_options=layout) as writer:
        file.write(("\t".join(schema.names) + "\n").encode())
        for start in range(0, options.genes, GENES_AT_ONCE):
            knows_g = informative[start : start + GENES_AT_ONCE]
            fpkm_gB = _generate(rng, options, knows_g, factors_FB, clear_B, labels, sites)
            names = [f"SYNG{number:06d}" for number in range(start, start + len(knows_g))]
            columns = [pa.array(names), *(pa.array(column) for column in np.round(fpkm_gB, 4).T)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def choose_real_cases(path: Path, options: SynthOptions) -> RealCases:
    """Choose `options.cases` cases, the classes as even as the number allows.

    Raises:
        InputError: the file is no expression file, or has too few cases of a class.
    """
    try:
        with h5py.File(path) as file:
            ids, labels = (file[name].asstr()[:] for name in ("case_id", "label"))
            shape = file["expression"].shape
            n_genes = len(file["gene_id"])
            unit = str(file.attrs.get("unit", "log2(FPKM + 1)"))
    except (OSError, KeyError, TypeError) as error:
        raise InputError(
            "the expression file cannot be read",
            file=path,
            expected="HDF5 with expression (cases, genes), case_id, label, gene_id",
            found=str(error),
        ) from error
    if shape != (len(ids), n_genes) or len(labels) != len(ids):
        raise InputError(
            "the expression file's arrays do not fit together",
            file=path,
            found=f"{shape}, {len(ids)} cases, {n_genes} genes",
        )
    rng = np.random.default_rng([options.seed, 4])
    chosen: list[int] = []
    for label, wanted in zip(options.classes, even_counts(options.cases, len(options.classes)), strict=True):
        rows = np.flatnonzero(labels == label)
        if len(rows) < wanted:
            raise InputError(
                f"the expression file has too few cases of class {label}",
                file=path,
                expected=f"{wanted} cases",
                found=f"{len(rows)}",
                fix=f"ask for at most {len(rows) * len(options.classes)} cases",
            )
        chosen += rng.choice(rows, wanted, replace=False).tolist()
    order = np.sort(np.asarray(chosen, np.int64))
    number = {label: index for index, label in enumerate(options.classes)}
    return RealCases(
        path, order, [str(ids[row]) for row in order], [number[labels[row]] for row in order], n_genes, unit
    )


def write_real(path: Path, real: RealCases) -> None:
    """Copy the chosen rows to `path`, in the layout of the source and without its labels, a few cases at a time."""
    with h5py.File(real.path) as source, h5py.File(path, "w") as out:
        out.create_dataset("case_id", data=real.case_ids, dtype=h5py.string_dtype())
        out.create_dataset("gene_id", data=list(source["gene_id"].asstr()[:]), dtype=h5py.string_dtype())
        out.attrs["unit"] = real.unit
        values = out.create_dataset("expression", (len(real.rows), real.n_genes), source["expression"].dtype)
        for start in range(0, len(real.rows), CASES_AT_ONCE):
            values[start : start + CASES_AT_ONCE] = source["expression"][real.rows[start : start + CASES_AT_ONCE]]


def even_counts(cases: int, classes: int) -> list[int]:
    """How many cases each class has: as even as possible, the first classes one more."""
    return [cases // classes + (index < cases % classes) for index in range(classes)]


def _generate(
    rng: np.random.Generator,
    options: SynthOptions,
    knows_g: NDArray[np.bool_],
    factors_FB: NDArray[np.float64],
    clear_B: NDArray[np.bool_],
    labels: Sequence[int],
    sites: Sequence[int],
) -> NDArray[np.float64]:
    count, cases = len(knows_g), len(labels)
    level_g = rng.gamma(1.5, 1.4, count)
    spread_g = rng.uniform(0.3, 0.8, count)
    loading_gF = FACTOR_SPREAD * rng.standard_normal((count, FACTORS))
    site_gS = SITE_SPREAD * rng.standard_normal((count, options.sites))
    sign_gC = np.where(rng.random((count, len(options.classes))) < 0.5, -1.0, 1.0)
    if len(options.classes) == 2:  # two random signs agree half of the time: such a gene would know nothing
        sign_gC[:, 1] = -sign_gC[:, 0]
    class_gB = 0.5 * options.gene_effect * sign_gC[:, list(labels)] * (knows_g[:, None] & clear_B[None, :])
    z_gB = (
        loading_gF @ factors_FB
        + site_gS[:, list(sites)]
        + class_gB
        + NOISE_SPREAD * rng.standard_normal((count, cases))
    )
    return np.exp2(np.maximum(level_g[:, None] + spread_g[:, None] * z_gB, 0)) - 1
