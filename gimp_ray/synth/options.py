"""What a synthetic cohort is made of (`SynthOptions`) and what was written (`SynthResult`).

The defaults are measured, not guessed: `tests/cohort/test_synth_difficulty.py` holds the probes. Left out: reading
these options from a file or a command line (`gimp_ray/cli/commands.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gimp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SynthOptions:
    """Options of a synthetic cohort; the same options give the same files, byte for byte in their arrays.

    Raises:
        ConfigError: a value is impossible; the message names the field.
    """

    cases: int = 24
    """patients"""
    classes: tuple[str, ...] = ("LUAD", "LUSC")
    """labels; with a tile bank each must be one of its tissues, with a genes file one of its labels"""
    dim: int = 1024
    """width of a patch embedding; ignored with a tile bank, which has its own"""
    genes: int = 2000
    """genes of generated expression; ignored with a genes file"""
    seed: int = 0
    min_patches: int = 485
    """smallest slide, patches (the paper's cohort)"""
    max_patches: int = 148_569
    """largest slide, patches (the paper's cohort)"""
    median_patches: int = 12_000
    """median of the log-normal slide size, patches; with `size_sigma` the mean is about 15,000, as in the paper"""
    size_sigma: float = 0.668
    """standard deviation of the logarithm of the slide size; exp(0.668^2 / 2) = 1.25 = mean / median"""
    second_slide: float = 0.1
    """probability that a case has a second slide"""
    tumour_fraction: float | None = None
    """mean share of tumour patches; None: 0.1 for generated patches, 0.015 for a tile bank"""
    signal: float = 0.4
    """strength of the class in a generated tumour patch, in units of the spread between tissue types"""
    image_clarity: float = 0.85
    """share of cases whose generated tumour patches show their class at all"""
    gene_share: float = 0.05
    """share of generated genes that know the class"""
    gene_effect: float = 1.2
    """their shift between classes, in standard deviations of the gene"""
    gene_clarity: float = 0.85
    """share of cases whose generated genes show their class; drawn apart from `image_clarity`: each modality helps"""
    sites: int = 8
    """hospitals; each has its own batch effect"""
    magnification: int = 20
    """of level 0, 20 or 40: a patch of 256 pixels at 20x is 256 or 512 level-0 pixels wide"""
    dtype: str = "float32"
    """of the written embeddings: float32 or float16"""
    tile_bank: Path | None = None
    """HDF5 of real tile embeddings: features (n, D), tissue (n,), group (n,), attribute tissue_names"""
    genes_file: Path | None = None
    """HDF5 of real expression: expression (cases, genes), case_id, label, gene_id, attribute unit"""

    def __post_init__(self) -> None:
        _require(self.cases >= 1, "cases", self.cases, "at least 1")
        unique = len(set(self.classes)) == len(self.classes) and all(self.classes)
        _require(len(self.classes) >= 2 and unique, "classes", self.classes, "two or more different names")
        for name in ("dim", "genes", "sites", "min_patches"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        ordered = self.min_patches <= self.median_patches <= self.max_patches
        _require(ordered, "median_patches", self.median_patches, f"from {self.min_patches} to {self.max_patches}")
        for name in ("second_slide", "image_clarity", "gene_share", "gene_clarity"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        fraction = self.tumour_fraction
        _require(fraction is None or 0 <= fraction <= 1, "tumour_fraction", fraction, "a share from 0 to 1")
        for name in ("signal", "gene_effect", "size_sigma"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "a number of at least 0")
        _require(self.magnification in (20, 40), "magnification", self.magnification, "20 or 40")
        _require(self.dtype in ("float32", "float16"), "dtype", self.dtype, "float32 or float16")

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
    """Where the source files are, and what is in them."""

    patches: Path
    """folder of CLAM's `h5_files`; the `--patches` of ingest"""
    genes: Path
    """gene matrix; the `--genes` of ingest"""
    cases: Path
    """case table; the `--cases` of ingest"""
    splits: Path | None
    """split table (scheme, fold, part, case_id), with a tile bank only; the `--splits` of ingest"""
    truth: Path
    """HDF5, one group a slide: what every patch really is. For tests and heat maps, never for training"""
    gene_unit: str
    """unit of the values in `genes`: FPKM (linear) or what the genes file says"""
    n_cases: int
    n_slides: int
    n_patches: int
    n_genes: int
    dim: int


def _require(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"synth option `{name}` is impossible", expected=expected, found=str(found))
