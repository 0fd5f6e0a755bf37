"""Real expression, its labels and the folds of the gene benchmarks: what is read, and which case is in which part.

Left out: training (`_gene_fits.py`) and tables (`_tables.py`). Shape suffixes: N cases, G genes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from gimp_ray.errors import GimpError

FOLDS = 5
SUBTYPE_FILE = "rna/tcga_nsclc_log2fpkm.h5"
LUAD_FILE = "rna/tcga_luad_log2fpkm_60483.h5"
MUTATION_FILE = "clinical/tcga_luad_mutations.csv"


@dataclass(frozen=True)
class GeneCohort:
    """Expression as log2(FPKM + 1), with one label a case."""

    case_ids: list[str]
    classes: tuple[str, str]
    expression: Tensor  # (N, G)
    labels: Tensor  # (N,) 0 or 1


@dataclass(frozen=True)
class Fold:
    """Places of the cases of each part; parts share no case, and a case is one row."""

    index: int
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def subtype_cohort(data: Path) -> GeneCohort:
    """LUAD against LUSC, 964 cases.

    Raises:
        GimpError: the file is absent.
    """
    with h5py.File(_present(data / SUBTYPE_FILE)) as file:
        labels = file["label"].asstr()[:]
        values = torch.from_numpy(file["expression"][:])
        cases = file["case_id"].asstr()[:].tolist()
    return GeneCohort(cases, ("LUAD", "LUSC"), values, torch.from_numpy((labels == "LUSC").astype(np.int64)))


def mutation_cohort(data: Path, gene: str) -> GeneCohort:
    """LUAD cases with a known mutation status of `gene`, and their expression.

    Raises:
        GimpError: a file is absent.
    """
    table = pd.read_csv(_present(data / MUTATION_FILE)).set_index("case_id")[gene].dropna()
    with h5py.File(_present(data / LUAD_FILE)) as file:
        cases = file["case_id"].asstr()[:]
        rows = np.flatnonzero(np.isin(cases, table.index))
        values = torch.from_numpy(file["expression"][:][rows])
    labels = table.loc[cases[rows]].to_numpy().astype(np.int64)
    return GeneCohort(cases[rows].tolist(), ("wild type", f"{gene} mutated"), values, torch.from_numpy(labels))


def folds(labels_N: Tensor, seed: int = 0) -> Iterator[Fold]:
    """Five stratified folds: fold i tests on part i, validates on part i + 1 and trains on the rest."""
    labels = labels_N.numpy()
    parts = [part for _, part in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)]
    for i in range(FOLDS):
        test, val = parts[i], parts[(i + 1) % FOLDS]
        yield Fold(i, np.setdiff1d(np.arange(len(labels)), np.concatenate([test, val])), val, test)


def _present(file: Path) -> Path:
    if not file.is_file():
        raise GimpError(
            "the real data of this benchmark are absent",
            file=file,
            expected="the folder described in its README, with rna/ and clinical/",
            fix="say where it is with --data DIR; the data are not part of the project",
        )
    return file
