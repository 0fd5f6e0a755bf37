"""The patches' part of an ingest: match slides with files, look at them, write the part files, make slides.parquet.

Left out: what one task does (`patch_tasks.py`) and how tasks are spread over processes (`work.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gimp_ray.cohort import patch_tasks
from gimp_ray.cohort.discover import PatchFiles
from gimp_ray.cohort.progress import Progress
from gimp_ray.cohort.readers import PatchSource
from gimp_ray.cohort.roll import LeftOut, Roll
from gimp_ray.cohort.schema import table_schema
from gimp_ray.cohort.work import WorkPool
from gimp_ray.errors import InputError


@dataclass(frozen=True)
class StoredPatches:
    """The slides as stored (slides.parquet without extra columns), the width, and what the report should say."""

    slides: pa.Table
    dim: int
    encoder: str | None
    notes: tuple[str, ...]


def join_files(roll: Roll, files: PatchFiles) -> None:
    """Leave out slides without a file, and files without a slide."""
    for slide_id in sorted(set(roll.slides) - set(files.by_slide)):
        fix = "extract its features, or remove its row"
        what, expected = "the slide has no patch file", f"a file named {slide_id}.h5 or {slide_id}.pt"
        error = InputError(what, file=files.folder, case=slide_id, expected=expected, found="no such file", fix=fix)
        roll.leave_out_slide(slide_id, error)
    for slide_id in sorted(set(files.by_slide) - set(roll.slide_row)):
        reason, file = "the patch file's slide is not in the case table", str(files.by_slide[slide_id])
        fix = "add a row for the slide, or remove the file"
        roll.left_out.append(LeftOut("patch file", slide_id, reason, file=file, fix=fix))
    for path, used in sorted(files.shadowed.items()):
        reason = f"the slide is read from {used.parent.name}/{used.name}"
        roll.left_out.append(LeftOut("patch file", path.name, reason, file=str(path), counts=False))
    for path in files.other:
        roll.left_out.append(LeftOut("patch file", path.name, "not a patch file", file=str(path), counts=False))


def store_patches(
    roll: Roll, files: PatchFiles, folder: Path, *, compression: str, workers: int, strict: bool, progress: bool
) -> StoredPatches:
    """Write the part files of all slides still on the roll into `folder/patches`.

    Raises:
        InputError: several widths or encoders, nothing left, or something to be left out when `strict`.
    """
    (folder / "patches").mkdir()
    with Progress(progress) as bar, WorkPool(workers, bar.advance) as pool:
        sources = _look_at(roll, files, pool, bar)
        _refuse_mixture(list(sources.values()))
        roll.refuse(strict)
        bar.start("writing patches", sum(source.n_patches for source in sources.values()))
        tasks = patch_tasks.part_tasks(list(sources.values()), folder, compression)
        results = pool.map(patch_tasks.write_part, tasks)
    for result in results:
        for slide_id, error in sorted(result.faults.items()):
            roll.leave_out_slide(slide_id, error)
    roll.refuse(strict)
    kept = [sources[slide_id] for slide_id in sorted(roll.slides)]
    encoder = next((s.attributes.encoder for s in kept if s.attributes.encoder is not None), None)
    return StoredPatches(_slides_table(sources, results, roll.slides), kept[0].dim, encoder, tuple(_notes(kept)))


def _look_at(roll: Roll, files: PatchFiles, pool: WorkPool, bar: Progress) -> dict[str, PatchSource]:
    """The sources of the slides on the roll, sorted by slide; those that cannot be used are left out."""
    names = sorted(roll.slides)
    bar.start("looking at slides", len(names))
    looked = pool.map(patch_tasks.inspect, patch_tasks.inspect_tasks(files.by_slide, names))
    sources = {}
    for slide_id, source in zip(names, (item for part in looked for item in part), strict=True):
        if isinstance(source, PatchSource):
            sources[slide_id] = source
        else:
            roll.leave_out_slide(slide_id, source)
    return sources


def _refuse_mixture(sources: Sequence[PatchSource]) -> None:
    """Refuse slides of several widths or encoders: their embeddings do not mean the same."""
    widths: dict[str, PatchSource] = {}
    encoders: dict[str, PatchSource] = {}
    for source in sources:
        widths.setdefault(str(source.dim), source)
        if source.attributes.encoder is not None:
            encoders.setdefault(source.attributes.encoder, source)
    for what, kinds, expected in (
        ("the slides' embeddings have several widths", widths, "one width in a cohort"),
        ("the slides were embedded by several encoders", encoders, "one encoder in a cohort"),
    ):
        if len(kinds) > 1:
            odd = list(kinds.values())[1]
            raise InputError(
                what,
                file=odd.path,
                case=odd.slide_id,
                expected=expected,
                found="; ".join(f"{kind}: {source.path.name}" for kind, source in kinds.items()),
                fix="extract all slides with one encoder, or ingest one cohort an encoder",
            )


def _slides_table(
    sources: Mapping[str, PatchSource], results: Sequence[patch_tasks.PartResult], case_of: Mapping[str, str]
) -> pa.Table:
    """slides.parquet without extra columns, sorted by slide."""
    rows = []
    for result in results:
        for record in result.records:
            source = sources[record.slide_id]
            known, attributes = source.has_coords, source.attributes
            rows.append(
                {
                    "slide_id": record.slide_id,
                    "case_id": case_of[record.slide_id],
                    "file": result.name,
                    "first_row_group": record.first_row_group,
                    "n_patches": record.n_patches,
                    "has_coords": known,
                    "coord_unit": attributes.coord_unit if known else None,
                    "x_min": record.x_min if known else None,
                    "y_min": record.y_min if known else None,
                    "x_max": record.x_max if known else None,
                    "y_max": record.y_max if known else None,
                    "patch_size": attributes.patch_size,
                    "patch_level": attributes.patch_level,
                    "patch_size_level0": attributes.patch_size_level0,
                    "magnification": attributes.magnification,
                    "level0_width": attributes.level0_width,
                    "level0_height": attributes.level0_height,
                    "encoder": attributes.encoder,
                    "sha256": record.sha256,
                }
            )
    rows.sort(key=lambda row: str(row["slide_id"]))
    return pa.Table.from_pylist(rows, schema=table_schema("slides").arrow())


def _notes(sources: Sequence[PatchSource]) -> list[str]:
    notes = []
    without = sum(not source.has_coords for source in sources)
    if without:
        notes.append(f"{without} of {len(sources)} slides have no coordinates; theirs are stored as -1")
    for name in ("magnification", "patch_size", "coord_unit"):
        values = sorted({str(v) for s in sources if (v := getattr(s.attributes, name)) is not None})
        if len(values) > 1:
            notes.append(f"the slides differ in {name}: {', '.join(values)}")
    return notes
