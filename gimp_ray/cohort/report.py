"""What an ingest did: every case, slide and source file kept, or left out with its reason.

`str(report)` is for a person, `to_json()` is the store's ingest_report.json, which also lists what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gimp_ray.cohort.manifest import Manifest
from gimp_ray.cohort.readers.matrix import GeneMatrix
from gimp_ray.cohort.roll import LeftOut, Roll

_SHOWN = 8


@dataclass(frozen=True)
class IngestReport:
    """The result of `ingest_cohort`.

    Args:
        store: path of the store.
        manifest: its manifest.
        class_counts: cases of each class.
        split_schemes: stored split schemes and their folds.
        left_out: what is not in the store, with reasons.
        notes: what a user should know and nothing was left out for.
        kept: the details for ingest_report.json (cases, slides, files).
    """

    store: str
    manifest: Manifest
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
            "kept": self.kept,
            "left_out": [item.to_json() for item in self.left_out],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        m = self.manifest
        counts = ", ".join(f"{label} {count:,}" for label, count in self.class_counts.items())
        lines = [f"Store {self.store}", f"  cases     {m.num_cases:,} ({counts})"]
        if m.dim is not None:
            lines.append(f"  slides    {m.num_slides:,}")
            gigabytes = m.num_patches * (2 * m.dim + 8) / 1e9
            lines.append(
                f"  patches   {m.num_patches:,} x {m.dim} {m.dtype}, {gigabytes:.3g} GB, compression {m.compression}"
            )
            lines.append(f"  encoder   {m.encoder or 'not named by the files'}")
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
        sample = {} if matrix is None else {"gene_sample": matrix.source_ids[matrix.row_of[case_id]]}
        cases.append({"case_id": case_id, "label": roll.labels[case_id], **sample})
    slides: list[dict[str, object]] = [
        {"slide_id": slide_id, "case_id": roll.slides[slide_id], "file": str(files[slide_id])}
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
        more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
        lines.append(f"  {len(ids):,} {kind}{'s' if len(ids) > 1 else ''}, {reason}: {', '.join(ids[:_SHOWN])}{more}")
    return lines
