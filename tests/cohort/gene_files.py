"""Gene files of other tools, made small: GDC STAR and HTSeq, sample sheets, Xena, cBioPortal, AnnData."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

GENES = ("ENSG00000000003.15", "ENSG00000141510.18", "ENSG00000146648.18", "ENSG00000182378.15")
SYMBOLS = ("TSPAN6", "TP53", "EGFR", "PLCXD1")
STAR_COLUMNS = (
    *("unstranded", "stranded_first", "stranded_second"),
    *("tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded"),
)
SHEET_COLUMNS = (
    *("File ID", "File Name", "Data Category", "Data Type", "Project ID", "Case ID", "Sample ID", "Sample Type"),
)


def star_value(seed: int, gene: int, column: int) -> float:
    """Value of a gene in a column of a made STAR file; counts are whole."""
    return float(100 * seed + 10 * gene + column if column < 3 else 100 * seed + 10 * gene + column + 0.25)


def write_star(path: Path, seed: int = 1, genes: Sequence[str] = GENES, par_y: float | None = 0.0) -> Path:
    """A file of GDC's STAR counts; the last gene has a Y copy unless `par_y` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# gene-model: GENCODE v36", "\t".join(("gene_id", "gene_name", "gene_type", *STAR_COLUMNS))]
    for name in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"):
        lines.append(f"{name}\t\t\t3190842\t3190842\t3190842\t\t\t")
    for gene in genes:
        i = GENES.index(gene)
        values = [f"{star_value(seed, i, c):g}" for c in range(6)]
        lines.append("\t".join((gene, SYMBOLS[i], "protein_coding", *values)))
    if par_y is not None:
        lines.append("\t".join((f"{GENES[-1]}_PAR_Y", SYMBOLS[-1], "protein_coding", *[f"{par_y:g}"] * 6)))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_htseq(path: Path, values: Mapping[str, float], counts: bool = False) -> Path:
    """A file of GDC's HTSeq; counts end with the rows of reads that belong to no gene."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{gene}\t{value:g}" for gene, value in values.items()]
    if counts:
        lines += [f"__{name}\t12345" for name in ("no_feature", "ambiguous", "too_low_aQual", "not_aligned")]
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_sheet(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = SHEET_COLUMNS) -> Path:
    path.write_text("\n".join("\t".join(row) for row in [columns, *rows]) + "\n")
    return path


def sheet_row(path: Path, sample: str, kind: str = "Primary Tumor", case: str | None = None) -> list[str]:
    """The row of a file in GDC's sample sheet."""
    case = case or sample[:12]
    category = ["Transcriptome Profiling", "Gene Expression Quantification", "TCGA-LUAD"]
    return [path.parent.name, path.name, *category, case, sample, kind]


def write_manifest(path: Path, files: Sequence[Path], missing: Sequence[str] = ()) -> Path:
    lines = ["id\tfilename\tmd5\tsize\tstate"]
    for file in files:
        data = file.read_bytes()
        lines.append(f"{file.parent.name}\t{file.name}\t{hashlib.md5(data).hexdigest()}\t{len(data)}\treleased")
    lines += [f"gone\t{name}\t{'0' * 32}\t1\treleased" for name in missing]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_matrix(
    path: Path,
    samples: Mapping[str, Sequence[float]],
    genes: Sequence[str],
    corner: str = "gene",
    beside: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Genes by samples as TSV, `.gz` where the name says so, with text columns beside the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside or {}
    lines = ["\t".join((corner, *beside, *samples))]
    for i, gene in enumerate(genes):
        texts = [values[i] for values in beside.values()]
        lines.append("\t".join((gene, *texts, *(f"{values[i]:g}" for values in samples.values()))))
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def some_values(n: int, seed: int = 0) -> list[float]:
    """n values between 50 and 1,050 that float32 holds exactly."""
    return [float(v) for v in np.random.default_rng(seed).integers(200, 4200, n) / 4]
