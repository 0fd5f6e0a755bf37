"""Generated patch embeddings: what a synthetic patch looks like to an encoder.

    x = relu(tissue type + [tumour: signal * class] + site + slide + smooth in space + noise - threshold)

A tissue type is a fixed direction; the class is a second, weaker one that only tumour patches carry. Site and slide
shifts are the same for all patches of a slide: averaging a bag leaves them whole while it thins the class by the tumour
fraction, which is what keeps a mean-pool classifier from the ceiling. About half of the values are zero, as in pooled
ReLU features. Left out: stain, scanner and focus as separate causes; pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimp_ray.synth.geometry import SlideLayout, smooth_fields
from gimp_ray.synth.options import SynthOptions

NORMAL_TYPES = 5  # stroma, alveoli, lymphocytes, necrosis, blood: names do not matter, their number does
TUMOUR_TYPE = NORMAL_TYPES
SMOOTH_COMPONENTS = 8
TYPE_SIGMA, SMOOTH_SIGMA = 5.0, 3.0  # grid steps
TYPE_SPREAD, SITE_SPREAD, SLIDE_SPREAD, SMOOTH_SPREAD, NOISE_SPREAD = 0.6, 0.2, 0.25, 0.15, 0.4
THRESHOLD = 0.05
ROWS_AT_ONCE = 4096  # bounds the memory of a slide of any size


@dataclass(frozen=True)
class PaintedSlide:
    """Embeddings of one slide, made as they are read, and what every patch is."""

    chunks: Iterator[NDArray[np.float32]]
    """(<= ROWS_AT_ONCE, D) float32, in scan order"""
    tissue: NDArray[np.int8]
    """(N,) tissue type; the tile bank's own code with a tile bank"""
    group: NDArray[np.int32]
    """(N,) tile group with a tile bank, else -1"""


@dataclass(frozen=True)
class SlideSubject:
    """Whose slide it is."""

    case_index: int
    label: int
    site: int
    clear: bool
    """whether this case's tumour shows its class"""


class GeneratedPatches:
    """Paints slides from directions that are fixed for a cohort."""

    def __init__(self, options: SynthOptions) -> None:
        rng = np.random.default_rng([options.seed, 1])
        self.dim = options.dim
        self._signal = options.signal
        self._types_KD = TYPE_SPREAD * _normal(rng, NORMAL_TYPES + 1, self.dim)
        classes_CD = _normal(rng, len(options.classes), self.dim)
        self._classes_CD = TYPE_SPREAD * (classes_CD - classes_CD.mean(axis=0))
        self._sites_SD = SITE_SPREAD * _normal(rng, options.sites, self.dim)
        self._smooth_MD = SMOOTH_SPREAD * _normal(rng, SMOOTH_COMPONENTS, self.dim)

    def paint(self, layout: SlideLayout, subject: SlideSubject, rng: np.random.Generator) -> PaintedSlide:
        """Embeddings for the patches of `layout`; `rng` belongs to this slide alone."""
        types = smooth_fields(rng, NORMAL_TYPES, layout.shape, TYPE_SIGMA).reshape(NORMAL_TYPES, -1)[:, layout.cells]
        # every slide has its own mixture of tissues
        types += rng.normal(0, 0.7, NORMAL_TYPES).astype(np.float32)[:, None]
        tissue_N = types.argmax(axis=0).astype(np.int8)
        tissue_N[layout.tumour] = TUMOUR_TYPE
        smooth = smooth_fields(rng, SMOOTH_COMPONENTS, layout.shape, SMOOTH_SIGMA)
        smooth_NM = smooth.reshape(SMOOTH_COMPONENTS, -1)[:, layout.cells].T
        slide_D = SLIDE_SPREAD * _normal(rng, 1, self.dim)[0] + self._sites_SD[subject.site] - THRESHOLD
        class_D = self._signal * self._classes_CD[subject.label] if subject.clear else np.zeros(self.dim, np.float32)
        types_KD = self._types_KD + slide_D
        types_KD[TUMOUR_TYPE] += class_D
        group_N = np.full(tissue_N.shape, -1, np.int32)
        return PaintedSlide(self._chunks(tissue_N, smooth_NM, types_KD, rng), tissue_N, group_N)

    def _chunks(
        self,
        tissue_N: NDArray[np.int8],
        smooth_NM: NDArray[np.float32],
        types_KD: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(tissue_N), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            x_nD = _normal(rng, len(tissue_N[rows]), self.dim)
            x_nD *= NOISE_SPREAD
            x_nD += smooth_NM[rows] @ self._smooth_MD
            x_nD += types_KD[tissue_N[rows]]
            yield np.maximum(x_nD, 0, out=x_nD)


def _normal(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return rng.standard_normal((rows, columns), dtype=np.float32)
