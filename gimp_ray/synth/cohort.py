"""A synthetic cohort, written as the source files of other tools so that it walks through the real ingest.

    OUT/patches/h5_files/<slide_id>.h5   CLAM: features (N, D), coords (N, 2) level-0 pixels, with CLAM's attributes
    OUT/genes.tsv | genes.h5             generated FPKM, genes x cases | real expression, cases x genes
    OUT/cases.csv                        case_id, slide_id, label, age, site, survival_months, censorship[, split_group]
    OUT/splits.csv                       scheme, fold, part, case_id: with a tile bank only
    OUT/truth.h5                         what every patch is: tumour, tissue, group; for tests and heat maps

`OUT` appears whole or not at all. Every slide has its own random stream. Memory is bounded by a few thousand patches,
not by a slide.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from gimp_ray.errors import InputError
from gimp_ray.synth import genes as synth_genes
from gimp_ray.synth.options import SynthOptions, SynthResult
from gimp_ray.synth.patches import (
    BankPatches,
    Case,
    GeneratedPatches,
    SlideLayout,
    TileBank,
    kfold_rows,
    layout_slide,
)

__all__ = ["SynthOptions", "SynthResult", "write_synthetic_cohort"]

CLAM_CHUNK = 32  # rows a chunk, as CLAM writes features
GENERATED_UNIT = "FPKM"


def write_synthetic_cohort(
    out: Path, options: SynthOptions, progress: Callable[[int, int], None] | None = None
) -> SynthResult:
    """Write a synthetic cohort to `out`.

    Args:
        out: folder to make; it must not exist yet, or be empty.
        options: what to write.
        progress: called with (slides written, slides in all).

    Raises:
        InputError: `out` holds something, or the tile bank or genes file cannot be used.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the output folder is not empty", file=out, fix="choose another folder, or delete this one")
    real = None if options.genes_file is None else synth_genes.choose_real_cases(Path(options.genes_file), options)
    cases = _draw_cases(options, real)
    labels = [case.label for case in cases]
    painter: GeneratedPatches | BankPatches = (
        GeneratedPatches(options)
        if options.tile_bank is None
        else BankPatches(options, TileBank.open(Path(options.tile_bank)), labels)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        n_patches = _write_slides(aside, options, cases, painter, progress)
        genes_name = "genes.tsv" if real is None else "genes.h5"
        if real is None:
            synth_genes.write_generated(aside / genes_name, options, cases)
        else:
            synth_genes.write_real(aside / genes_name, real)
        _write_tables(aside, options, cases, painter)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return SynthResult(
        patches=out / "patches" / "h5_files",
        genes=out / genes_name,
        cases=out / "cases.csv",
        splits=out / "splits.csv" if isinstance(painter, BankPatches) else None,
        truth=out / "truth.h5",
        gene_unit=GENERATED_UNIT if real is None else real.unit,
        n_cases=len(cases),
        n_slides=sum(len(case.slide_sizes) for case in cases),
        n_patches=n_patches,
        n_genes=options.genes if real is None else real.n_genes,
        dim=painter.dim,
    )


def _draw_cases(options: SynthOptions, real: synth_genes.RealCases | None) -> list[Case]:
    if real is None:
        counts = synth_genes.even_counts(options.cases, len(options.classes))
        in_turn = np.repeat(np.arange(len(counts)), counts)
        labels = np.random.default_rng([options.seed, 5]).permutation(in_turn).tolist()
        case_ids = [f"SYN-{number:05d}" for number in range(1, options.cases + 1)]
    else:
        labels, case_ids = real.labels, real.case_ids
    return [
        _draw_case(options, index, case_id, label)
        for index, (case_id, label) in enumerate(zip(case_ids, labels, strict=True))
    ]


def _draw_case(options: SynthOptions, index: int, case_id: str, label: int) -> Case:
    rng = np.random.default_rng([options.seed, 6, index])
    slides = 1 + int(rng.random() < options.second_slide)
    sizes = options.median_patches * np.exp(options.size_sigma * rng.standard_normal(slides))
    # log-normal around the mean: a few cases have several times the usual share of tumour
    fraction = options.mean_tumour_fraction * float(np.exp(0.5 * rng.standard_normal() - 0.125))
    return Case(
        index=index,
        case_id=case_id,
        label=label,
        site=int(rng.integers(options.sites)),
        clear=bool(rng.random() < options.image_clarity),
        tumour_fraction=min(fraction, 1.0),
        slide_sizes=tuple(np.clip(np.rint(sizes), options.min_patches, options.max_patches).astype(int).tolist()),
        age=int(np.clip(rng.normal(66, 9), 30, 90)),
        survival_months=round(float(rng.exponential(38)) + 0.1, 1),
        censorship=int(rng.random() < 0.6),
    )


def _write_slides(
    folder: Path,
    options: SynthOptions,
    cases: Sequence[Case],
    painter: GeneratedPatches | BankPatches,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Writes all bags and the truth; returns the number of patches."""
    bags = folder / "patches" / "h5_files"
    bags.mkdir(parents=True)
    total = sum(len(case.slide_sizes) for case in cases)
    done = patches = 0
    with h5py.File(folder / "truth.h5", "w") as truth:
        for case in cases:
            for number, (slide_id, size) in enumerate(zip(case.slide_ids, case.slide_sizes, strict=True)):
                rng = np.random.default_rng([options.seed, 7, case.index, number])
                # a slide of a tumour patient shows some tumour, unless the user asked for none at all
                tumour = min(size, max(1, round(case.tumour_fraction * size))) if case.tumour_fraction else 0
                layout = layout_slide(rng, size, tumour, options.step)
                chunks, tissue, group = painter.paint(layout, case, rng)
                _write_bag(bags / f"{slide_id}.h5", options, layout, chunks, painter.dim)
                truth[f"{slide_id}/tumour"], truth[f"{slide_id}/tissue"] = layout.tumour, tissue
                truth[f"{slide_id}/group"] = group
                done, patches = done + 1, patches + size
                if progress is not None:
                    progress(done, total)
    return patches


def _write_bag(path: Path, options: SynthOptions, layout: SlideLayout, chunks: Iterable[np.ndarray], dim: int) -> None:
    n_patches = len(layout.coords)
    with h5py.File(path, "w") as file:
        rows = (min(CLAM_CHUNK, n_patches), dim)
        features = file.create_dataset("features", (n_patches, dim), options.dtype, chunks=rows, maxshape=(None, dim))
        start = 0
        for chunk in chunks:
            features[start : start + len(chunk)] = chunk
            start += len(chunk)
        coords = file.create_dataset("coords", data=layout.coords)
        level_dim = np.asarray(layout.level_dim)
        coords.attrs.update(
            {
                "patch_size": options.step,
                "patch_level": 0,
                "downsample": np.ones(2),
                "downsampled_level_dim": level_dim,
                "level_dim": level_dim,
                "name": path.stem,
            }
        )


def _write_tables(
    folder: Path, options: SynthOptions, cases: Sequence[Case], painter: GeneratedPatches | BankPatches
) -> None:
    header = ["case_id", "slide_id", "label", "age", "site", "survival_months", "censorship"]
    split_groups = painter.split_groups if isinstance(painter, BankPatches) else None
    rows: list[list[object]] = []
    for case in cases:
        for slide_id in case.slide_ids:
            label, site = options.classes[case.label], f"S{case.site + 1:02d}"
            row: list[object] = [case.case_id, slide_id, label, case.age, site, case.survival_months, case.censorship]
            rows.append(row if split_groups is None else [*row, int(split_groups[case.index])])
    if split_groups is not None:
        header.append("split_group")
        folds = kfold_rows([case.case_id for case in cases], split_groups)
        _write_csv(folder / "splits.csv", ["scheme", "fold", "part", "case_id"], folds)
    _write_csv(folder / "cases.csv", header, rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
