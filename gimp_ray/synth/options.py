"""What a synthetic cohort is made of (`SynthOptions`) and what was written (`SynthResult`).

The defaults are measured, not guessed: `tests/cohort/test_synth_difficulty.py` holds the probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gimp_ray.options import Options

_Share = Annotated[float, Field(ge=0, le=1)]


class SynthOptions(Options):
    """Options of a synthetic cohort; the same options give the same files, byte for byte in their arrays."""

    cases: int = Field(24, ge=1)
    """patients"""
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("LUAD", "LUSC"), min_length=2)
    """labels; with a tile bank each must be one of its tissues, with a genes file one of its labels"""
    dim: int = Field(1024, ge=1)
    """width of a patch embedding; ignored with a tile bank, which has its own"""
    genes: int = Field(2000, ge=1)
    """genes of generated expression; ignored with a genes file"""
    seed: int = 0
    min_patches: int = Field(485, ge=1)
    """smallest slide, patches (the paper's cohort)"""
    max_patches: int = 148_569
    """largest slide, patches (the paper's cohort)"""
    median_patches: int = 12_000
    """median of the log-normal slide size, patches; with `size_sigma` the mean is about 15,000, as in the paper"""
    size_sigma: float = Field(0.668, ge=0)
    """standard deviation of the logarithm of the slide size; exp(0.668^2 / 2) = 1.25 = mean / median"""
    second_slide: _Share = 0.1
    """probability that a case has a second slide"""
    tumour_fraction: _Share | None = None
    """mean share of tumour patches; None: 0.1 for generated patches, 0.015 for a tile bank"""
    signal: float = Field(0.4, ge=0)
    """strength of the class in a generated tumour patch, in units of the spread between tissue types"""
    image_clarity: _Share = 0.85
    """share of cases whose generated tumour patches show their class at all"""
    gene_share: _Share = 0.05
    """share of generated genes whose expression depends on the class"""
    gene_effect: float = Field(1.2, ge=0)
    """their shift between classes, in standard deviations of the gene"""
    gene_clarity: _Share = 0.85
    """share of cases whose generated genes show their class; drawn apart from `image_clarity`: each modality helps"""
    sites: int = Field(8, ge=1)
    """hospitals; each has its own batch effect"""
    magnification: Literal[20, 40] = 20
    """of level 0: a patch of 256 pixels at 20x is 256 or 512 level-0 pixels wide"""
    dtype: Literal["float32", "float16"] = "float32"
    """of the written embeddings"""
    tile_bank: Path | None = None
    """HDF5 of real tile embeddings: features (n, D), tissue (n,), group (n,), attribute tissue_names"""
    genes_file: Path | None = None
    """HDF5 of real expression: expression (cases, genes), case_id, label, gene_id, attribute unit"""

    @model_validator(mode="after")
    def _fields_agree(self) -> SynthOptions:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: two or more different names, not {', '.join(self.classes)}")
        if not self.min_patches <= self.median_patches <= self.max_patches:
            bounds = f"from {self.min_patches} to {self.max_patches}"
            raise ValueError(f"median_patches: {bounds} (min_patches to max_patches), not {self.median_patches}")
        return self

    @property
    def mean_tumour_fraction(self) -> float:
        """The mean share of tumour patches in force; real tumour tiles are easier, so fewer are mixed in."""
        if self.tumour_fraction is not None:
            return self.tumour_fraction
        return 0.1 if self.tile_bank is None else 0.015

    @property
    def step(self) -> int:
        """Width of a patch, and so of a grid step, in level-0 pixels."""
        return 256 * self.magnification // 20


@dataclass(frozen=True, kw_only=True)
class SynthResult:
    """Where the source files are, and what is in them.

    Attributes:
        patches, genes, cases: the `--patches` (folder of CLAM's `h5_files`), `--genes` and `--cases` of ingest.
        splits: its `--splits` (scheme, fold, part, case_id); with a tile bank only.
        truth: HDF5, one group a slide: what every patch really is. For tests and heat maps, never for training.
        gene_unit: unit of the values in `genes`: FPKM (linear), or what the genes file records.
    """

    patches: Path
    genes: Path
    cases: Path
    splits: Path | None
    truth: Path
    gene_unit: str
    n_cases: int
    n_slides: int
    n_patches: int
    n_genes: int
    dim: int
