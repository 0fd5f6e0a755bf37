"""The patches' part of an ingest: match slides with files, look at them, write part files, make slides.parquet.

Left out: what one task does (`patch_tasks.py`) and how tasks are spread over processes (`work.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest import patch_tasks
from gimp_ray.ingest.discover import PatchFiles
from gimp_ray.ingest.progress import Progress
from gimp_ray.ingest.readers import PATCH_READERS, PatchSource
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.ingest.work import Work
from gimp_ray.store.schema import table_schema


def join_files(roll: Roll, files: PatchFiles) -> None:
    """Leave out slides without a file, and files without a slide."""
    for slide_id in sorted(set(roll.slides) - set(files.by_slide)):
        fix = "extract its features, or remove its row"
        what, expected = "the slide has no patch file", _expected_file(slide_id)
        error = InputError(what, file=files.folder, case=slide_id, expected=expected, found="no such file", fix=fix)
        roll.leave_out_slide(slide_id, error)
    for slide_id in sorted(set(files.by_slide) - set(roll.slide_row)):
        reason, file = "the patch file's slide is not in the case table", str(files.by_slide[slide_id])
        expected, fix = f"a row of slide {slide_id}", "add a row for the slide, or remove the file"
        roll.left_out.append(
            LeftOut("patch file", slide_id, reason, file=file, expected=expected, found="no such row", fix=fix)
        )
    for path, used in sorted(files.shadowed.items()):
        reason = f"the slide is read from {used.parent.name}/{used.name}"
        roll.left_out.append(LeftOut("patch file", path.name, reason, file=str(path), counts=False))
    for path, what in sorted(files.other.items()):
        kind = "folder" if os.path.isdir(path) else "patch file"  # noqa: PTH112 - false, not an error, without permission
        roll.left_out.append(LeftOut(kind, path.name, what, file=str(path), counts=False))


def look_at(
    files: Mapping[str, Path], names: Sequence[str], work: Work, bar: Progress
) -> dict[str, PatchSource | InputError]:
    """The headers of the slides' files, or why one cannot be used."""
    bar.start("looking at slides", len(names))
    looked = work.map(patch_tasks.inspect, patch_tasks.inspect_tasks(files, names))
    return dict(zip(names, (item for part in looked for item in part), strict=True))


def write_parts(
    roll: Roll,
    sources: Mapping[str, PatchSource],
    place: str,
    names: str,
    *,
    compression: str,
    dtype: str,
    work: Work,
    bar: Progress,
) -> list[patch_tasks.PartResult]:
    """Write the part files of the slides still on the roll; slides found bad on the way are left out of it."""
    wanted = [source for slide_id, source in sorted(sources.items()) if slide_id in roll.slides]
    bar.start("writing patches", sum(source.n_patches for source in wanted))
    results = work.map(patch_tasks.write_part, patch_tasks.part_tasks(wanted, place, names, compression, dtype))
    for result in results:
        for slide_id, error in sorted(result.faults.items()):
            roll.leave_out_slide(slide_id, error)
    return results


def slides_table(
    sources: Mapping[str, PatchSource],
    results: Sequence[patch_tasks.PartResult],
    case_of: Mapping[str, str],
    stored: pa.Table | None,
) -> pa.Table:
    """slides.parquet without extra columns: what was written and what was stored before, sorted by slide."""
    schema = table_schema("slides").arrow()
    written = _slides_table(sources, results, case_of)
    if stored is not None:
        written = pa.concat_tables([written, stored.select(schema.names).cast(schema)])
    return written.sort_by("slide_id").combine_chunks()


def common(slides: pa.Table, column: str) -> Any:
    """The one value of a column, None where no slide has one or several are stored."""
    values = [value for value in slides[column].unique().to_pylist() if value is not None]
    return values[0] if len(values) == 1 else None


def refuse_mixture(sources: Sequence[PatchSource], stored: pa.Table | None, dim: int | None) -> None:
    """Refuse slides that do not go together: among themselves, or with the slides a store has."""
    _refuse_mixture(sources)
    if stored is None or not stored.num_rows:
        return
    names = ("encoder", "magnification", "patch_size", "overlap", "coord_unit")
    has: dict[str, Any] = {"dim": dim, **{name: common(stored, name) for name in names}}
    for source in sources:
        found: dict[str, Any] = {"dim": source.dim, **{name: getattr(source.attributes, name) for name in names}}
        if found["magnification"] is None:  # a size at a pyramid level is no size at a magnification
            found["patch_size"] = None
        for name, value in has.items():
            if None not in (value, found[name]) and value != found[name]:
                raise InputError(
                    f"the new slides have another {name} than the store",
                    file=source.path,
                    case=source.slide_id,
                    expected=f"{name} {value}",
                    found=f"{name} {found[name]}",
                    fix="make a store of its own for them",
                )


def _refuse_mixture(sources: Sequence[PatchSource]) -> None:
    """Refuse slides whose embeddings do not mean the same: of several widths, encoders, magnifications and the like.

    A patch size means something at a magnification. CLAM's, at a pyramid level, may differ between slides scanned at
    20x and 40x whose patches show as much tissue, so it is noted only.
    """
    scaled = [source for source in sources if source.attributes.magnification is not None]
    encoder = "extract all slides with one encoder, or ingest one cohort an encoder"
    scale = "ingest one cohort a magnification, and one a patch size and overlap"
    tool = "ingest one cohort a tool"
    for what, expected, kinds, fix in (
        ("the slides' embeddings have several widths", "one width", _kinds(sources, _width), encoder),
        ("the slides were embedded by several encoders", "one encoder", _kinds(sources, _encoder), encoder),
        ("some slides have patches, some one vector of the slide", "one of the two", _kinds(sources, _level), tool),
        ("the slides were read at several magnifications", "one magnification", _kinds(scaled, _magnification), scale),
        ("the slides' patches have several sizes", "one patch size", _kinds(scaled, _patch_size), scale),
        ("the slides' patches overlap differently", "one overlap", _kinds(sources, _overlap), scale),
        ("the slides' coordinates have several units", "one unit", _kinds(sources, _coord_unit), tool),
    ):
        if len(kinds) > 1:
            odd = list(kinds.values())[1]
            raise InputError(
                what,
                file=odd.path,
                case=odd.slide_id,
                expected=f"{expected} in a cohort",
                found="; ".join(f"{kind}: {source.path.name}" for kind, source in kinds.items()),
                fix=fix,
            )


def _kinds(sources: Sequence[PatchSource], kind_of: Callable[[PatchSource], str | None]) -> dict[str, PatchSource]:
    """The first slide of each kind; a slide that does not say its kind is of none."""
    kinds: dict[str, PatchSource] = {}
    for source in sources:
        kind = kind_of(source)
        if kind is not None:
            kinds.setdefault(kind, source)
    return kinds


def _width(source: PatchSource) -> str:
    return str(source.dim)


def _encoder(source: PatchSource) -> str | None:
    return source.attributes.encoder


def _level(source: PatchSource) -> str:
    return "one vector" if source.slide_level else "patches"


def _magnification(source: PatchSource) -> str:
    return f"{source.attributes.magnification:g}x"


def _patch_size(source: PatchSource) -> str | None:
    size = source.attributes.patch_size
    return None if size is None else f"{size} px"


def _overlap(source: PatchSource) -> str | None:
    overlap = source.attributes.overlap
    return None if overlap is None else f"{overlap} px"


def _coord_unit(source: PatchSource) -> str | None:
    return source.attributes.coord_unit


def _expected_file(slide_id: str) -> str:
    first, *more = PATCH_READERS
    return f"a file named {slide_id}{first} (or with the ending {', '.join(more)})"


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
                    "overlap": attributes.overlap,
                    "level0_width": attributes.level0_width,
                    "level0_height": attributes.level0_height,
                    "encoder": attributes.encoder,
                    "sha256": record.sha256,
                }
            )
    rows.sort(key=lambda row: str(row["slide_id"]))
    return pa.Table.from_pylist(rows, schema=table_schema("slides").arrow())


def notes(sources: Sequence[PatchSource]) -> list[str]:
    notes = []
    without = sum(not source.has_coords for source in sources)
    if without:
        notes.append(f"{without} of {len(sources)} slides have no coordinates; theirs are stored as -1")
    vectors = sum(source.slide_level for source in sources)
    if vectors:
        notes.append(f"{vectors} of {len(sources)} slides are one vector of the slide each: a bag of one patch")
    sizes = sorted({str(size) for source in sources if (size := source.attributes.patch_size) is not None})
    if len(sizes) > 1:
        notes.append(f"the slides differ in patch_size: {', '.join(sizes)}")
    return notes
