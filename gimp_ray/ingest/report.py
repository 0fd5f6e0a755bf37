"""The plan and the report of an ingest: every case, slide and source file kept, or left out with its reason.

`str(report)` is for a person, `to_json()` is the store's ingest_report.json, which also lists what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gimp_ray.ingest.genes import GeneMatrix
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.store.dtypes import width
from gimp_ray.store.manifest import Manifest

_SHOWN = 8


@dataclass(frozen=True)
class Coverage:
    """Which cases of the case table have which modality, before anything is left out for lacking one.

    Args:
        cases: every case of the case table.
        slides: how many slides it has.
        having: modality -> the cases that have it; without a modality that was not given.
    """

    cases: frozenset[str] = field(repr=False)
    slides: int
    having: dict[str, set[str]] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        counts: dict[str, object] = {"cases": len(self.cases), "slides": self.slides}
        for name, have in self.having.items():
            counts |= {f"with_{name}": len(have), f"without_{name}": sorted(self.cases - have)}
        if len(self.having) > 1:
            counts["with_both"] = len(set.intersection(*self.having.values()))
        return counts

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"  in the case table   {len(self.cases):,} cases" + f", {self.slides:,} slides" * bool(self.slides)]
        for name, have in self.having.items():
            lack = sorted(self.cases - have)
            lines.append(f"  with {name:<15}{len(have):,} cases" + (f"; without: {_some(lack)}" if lack else ""))
        if len(self.having) > 1:
            lines.append(f"  with both           {len(set.intersection(*self.having.values())):,} cases")
        return lines


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest is about to do.

    Args:
        store: path or URI of the store.
        coverage: which cases have which modality.
        added: whether the store exists and is added to.
        slides_to_write, patches_to_write: what patch files will be read.
        slides_stored: slides the store has already.
        cases, new_cases: cases the store will have, and how many of them are new.
        left_out: what is left out so far; a patch file's values are read only when they are written.
        notes: what a user should know.
    """

    store: str
    coverage: Coverage
    added: bool
    slides_to_write: int
    patches_to_write: int
    slides_stored: int
    cases: int
    new_cases: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        what = "add to the store" if self.added else "make the store"
        lines = [f"Plan: {what} {self.store}", *self.coverage.lines()]
        lines.append(
            f"  to be stored        {self.cases:,} cases" + (f", {self.new_cases:,} new" if self.added else "")
        )
        if self.slides_to_write or self.slides_stored:
            already = f", {self.slides_stored:,} stored already" if self.added else ""
            lines.append(
                f"  to be written       {self.slides_to_write:,} slides, {self.patches_to_write:,} patches{already}"
            )
        lines += _left_out_lines(self.left_out)
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class IngestReport:
    """The result of `ingest_cohort`.

    Args:
        store: path of the store.
        manifest: its manifest.
        coverage: which cases have which modality.
        added: whether the store existed before.
        class_counts: cases of each class.
        split_schemes: stored split schemes and their folds.
        left_out: what is not in the store, with reasons.
        notes: what a user should know and nothing was left out for.
        kept: the details for ingest_report.json (cases, slides, files).
    """

    store: str
    manifest: Manifest
    coverage: Coverage
    added: bool
    class_counts: dict[str, int]
    split_schemes: dict[str, tuple[int, ...]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    options: dict[str, object]
    kept: dict[str, list[dict[str, object]]] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """The content of ingest_report.json."""
        return {
            "fingerprint": self.manifest.fingerprint,
            "options": self.options,
            "coverage": self.coverage.to_json(),
            "kept": self.kept,
            "left_out": [item.to_json() for item in self.left_out],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        m = self.manifest
        counts = ", ".join(f"{label} {count:,}" for label, count in self.class_counts.items())
        revision = f" (revision {m.revision})" if self.added else ""
        lines = [f"Store {self.store}{revision}", f"  cases     {m.num_cases:,} ({counts})"]
        if m.patches is not None:
            lines.append(f"  slides    {m.num_slides:,}")
            gigabytes = m.num_patches * (width(m.patches.dim, m.dtype) + 8) / 1e9
            packed = m.patches.compression
            lines.append(f"  patches   {m.num_patches:,} x {m.dim} {m.dtype}, {gigabytes:.3g} GB, compression {packed}")
            lines.append(f"  encoder   {m.encoder or 'not recorded in the files'}")
        if m.num_genes:
            lines.append(f"  genes     {m.num_genes:,}, unit {m.gene_unit}")
        schemes = "; ".join(f"{name}: {len(folds)} folds" for name, folds in self.split_schemes.items())
        lines.append(f"  splits    {schemes or 'none'}")
        lines.append(f"  contents  {m.fingerprint[:16]}")
        lines += _left_out_lines(self.left_out)
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)


def kept_of(roll: Roll, files: Mapping[str, Path], matrix: GeneMatrix | None) -> dict[str, list[dict[str, object]]]:
    """The cases and slides kept, each with the file or gene sample it came from."""
    cases: list[dict[str, object]] = []
    for case_id in sorted(roll.labels):
        has_genes = matrix is not None and case_id in matrix.row_of
        sample = {"gene_sample": matrix.source_ids[matrix.row_of[case_id]]} if matrix and has_genes else {}
        cases.append({"case_id": case_id, "label": roll.labels[case_id] or None, **sample})
    slides: list[dict[str, object]] = [
        {"slide_id": slide_id, "case_id": roll.slides[slide_id], "file": str(files.get(slide_id, "stored before"))}
        for slide_id in sorted(roll.slides)
    ]
    return {"cases": cases, "slides": slides}


def _left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in left_out:
        groups.setdefault((item.kind, item.reason), []).append(item.id)
    if not groups:
        return ["Left out: nothing"]
    lines = ["Left out (all of it in ingest_report.json):"]
    for (kind, reason), ids in groups.items():
        lines.append(f"  {len(ids):,} {kind}{'s' if len(ids) > 1 else ''}, {reason}: {_some(ids)}")
    return lines


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else "")
