"""The slides of an ingest: matched with their files, checked to go together, and the table slides.parquet."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.patches import PATCH_READERS, PatchSource
from gimp_ray.ingest.patches.find import PatchFiles
from gimp_ray.ingest.patches.write import PartResult
from gimp_ray.ingest.roll import LeftOut, Roll
from gimp_ray.store.schema import table_schema

_ENCODER = "extract all slides with one encoder, or ingest one cohort an encoder"
_SCALE = "ingest one cohort a magnification, and one a patch size and overlap"
_TOOL = "ingest one cohort a tool"


def _attribute(name: str, shown: str, scaled: bool = False) -> Callable[[PatchSource], str | None]:
    """A slide's attribute as text, None where its file does not record it (`scaled`: or no magnification)."""

    def kind_of(source: PatchSource) -> str | None:
        value = getattr(source.attributes, name)
        unscaled = scaled and source.attributes.magnification is None
        return None if value is None or unscaled else shown.format(value)

    return kind_of


# what is refused, what a cohort must have, the kind of a slide (None where its file does not record it), and the fix
_MIXTURES: tuple[tuple[str, str, Callable[[PatchSource], str | None], str], ...] = (
    ("the slides' embeddings have several widths", "one width", lambda source: str(source.dim), _ENCODER),
    ("the slides were embedded by several encoders", "one encoder", _attribute("encoder", "{}"), _ENCODER),
    (
        "some slides have patches, some one vector of the slide",
        "one of the two",
        lambda source: "one vector" if source.slide_level else "patches",
        _TOOL,
    ),
    (
        "the slides were read at several magnifications",
        "one magnification",
        _attribute("magnification", "{:g}x"),
        _SCALE,
    ),
    ("the slides' patches have several sizes", "one patch size", _attribute("patch_size", "{} px", True), _SCALE),
    ("the slides' patches overlap differently", "one overlap", _attribute("overlap", "{} px"), _SCALE),
    ("the slides' coordinates have several units", "one unit", _attribute("coord_unit", "{}"), _TOOL),
)


def join_files(roll: Roll, files: PatchFiles) -> None:
    """Leave out slides without a file, and files without a slide."""
    first, *more = PATCH_READERS
    for slide_id in sorted(set(roll.slides) - set(files.by_slide)):
        error = InputError(
            "the slide has no patch file",
            file=files.folder,
            case=slide_id,
            expected=f"a file named {slide_id}{first} (or with the ending {', '.join(more)})",
            found="no such file",
            fix="extract its features, or remove its row",
        )
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


def common(slides: pa.Table, column: str) -> Any:
    """The one value of a column, None where no slide has one or several are stored."""
    values = [value for value in slides[column].unique().to_pylist() if value is not None]
    return values[0] if len(values) == 1 else None


def refuse_mixture(sources: Sequence[PatchSource], stored: pa.Table | None, dim: int | None) -> None:
    """Refuse slides whose embeddings do not mean the same: of several widths, encoders, magnifications and the like.

    A patch size means something at a magnification. CLAM's, at a pyramid level, may differ between slides scanned at
    20x and 40x whose patches show as much tissue, so it is noted only.

    Args:
        sources: the slides to write.
        stored: the slides of the store that is added to, which the new ones must match.
        dim: the width of those.
    """
    for what, expected, kind_of, fix in _MIXTURES:
        kinds: dict[str, PatchSource] = {}
        for source in sources:
            kind = kind_of(source)
            if kind is not None:
                kinds.setdefault(kind, source)
        if len(kinds) > 1:
            odd = list(kinds.values())[1]
            found = "; ".join(f"{kind}: {source.path.name}" for kind, source in kinds.items())
            raise InputError(
                what, file=odd.path, case=odd.slide_id, expected=f"{expected} in a cohort", found=found, fix=fix
            )
    if stored is None or not stored.num_rows:
        return
    names = ("encoder", "magnification", "patch_size", "overlap", "coord_unit")
    has: dict[str, Any] = {"dim": dim, **{name: common(stored, name) for name in names}}
    for source in sources:
        found_here: dict[str, Any] = {"dim": source.dim, **dataclasses.asdict(source.attributes)}
        if found_here["magnification"] is None:  # a size at a pyramid level is no size at a magnification
            found_here["patch_size"] = None
        for name, value in has.items():
            if None not in (value, found_here[name]) and value != found_here[name]:
                raise InputError(
                    f"the new slides have another {name} than the store",
                    file=source.path,
                    case=source.slide_id,
                    expected=f"{name} {value}",
                    found=f"{name} {found_here[name]}",
                    fix="make a store of its own for them",
                )


def slides_table(
    sources: Mapping[str, PatchSource],
    results: Sequence[PartResult],
    case_of: Mapping[str, str],
    stored: pa.Table | None,
) -> pa.Table:
    """slides.parquet without extra columns: what was written and what was stored before, sorted by slide."""
    schema, rows = table_schema("slides").arrow(), []
    for result in results:
        for record in result.records:
            source = sources[record.slide_id]
            row = dataclasses.asdict(source.attributes) | dataclasses.asdict(record)
            row |= {"case_id": case_of[record.slide_id], "file": result.name, "has_coords": source.has_coords}
            if not source.has_coords:
                row |= dict.fromkeys(("coord_unit", "x_min", "y_min", "x_max", "y_max"))
            rows.append({name: row[name] for name in schema.names})
    written = pa.Table.from_pylist(rows, schema=schema)
    if stored is not None:
        written = pa.concat_tables([written, stored.select(schema.names).cast(schema)])
    return written.sort_by("slide_id").combine_chunks()


def notes(sources: Sequence[PatchSource]) -> list[str]:
    """What a user should know of the slides that were written."""
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
