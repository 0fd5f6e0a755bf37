"""The case table: cases, labels, slides and any further columns, from one file or several joined by case.

CSV or TSV, also in a zip or gz: plain tables, CLAM's and PORPOISE's dataset CSV (`cases_clam.py`), cBioPortal's
clinical files (`cases_cbioportal.py`), GDC's clinical.tsv (`cases_gdc.py`). Ids and labels are text, whatever they look
like. One row a slide, or one row a case where there are no slides. Left out: which of them are kept (`roll.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.readers.cases_columns import USUAL_NAMES, candidates, no_column
from gimp_ray.ingest.readers.cases_derived import derive
from gimp_ray.ingest.readers.cases_join import join_parts
from gimp_ray.ingest.readers.cases_part import CasePart, format_of, read_part
from gimp_ray.ingest.readers.cases_survival import ENDPOINTS
from gimp_ray.ingest.readers.cases_text import TextFile, open_text, read_csv, stripped
from gimp_ray.ingest.slide_rule import SLIDE_RULES

SLIDE_ENDINGS = (
    ".svs",
    ".h5",
    ".hdf5",
    ".pt",
    ".npy",
    ".npz",
    ".parquet",
    ".zarr",
    ".ndpi",
    ".tif",
    ".tiff",
    ".mrxs",
    ".scn",
    ".vms",
    ".bif",
    ".czi",
    ".dcm",
)


@dataclass(frozen=True)
class CaseOptions:
    """Choices on the case table.

    Args:
        case_column: the column of cases; None: recognised by its name, as it is in a file that does not have this one.
        slide_column: the column of slides; None: recognised. A file that does not have this one has no slides.
        label_column: the column of labels; None: recognised. A file that does not have this one has no labels.
        labels: label as the table has it -> label to store, None to leave its cases out; others stay as they are.
        slides: which slides of a case are kept: `all`, `DX` (TCGA's diagnostic slides), `DX1` (the first of them),
            `largest` (the one with most patches).
        survival: which endpoint `survival_months` and `event` are of: OS, DSS, DFI (or DFS), PFI (or PFS).
    """

    case_column: str | None = None
    slide_column: str | None = None
    label_column: str | None = None
    labels: Mapping[str, str | None] | None = None
    slides: str = "all"
    survival: str = "OS"

    def __post_init__(self) -> None:
        for name, known in (("slides", SLIDE_RULES), ("survival", tuple(ENDPOINTS))):
            value = getattr(self, name)
            if value not in known:
                fix = "choose one of these"
                raise ConfigError(f"{name} has an unknown value", expected=", ".join(known), found=repr(value), fix=fix)
        for old, new in (self.labels or {}).items():
            if not isinstance(old, str) or not (new is None or (isinstance(new, str) and new.strip())):
                expected = "label: label, or label: null to leave its cases out; numbers in quotes"
                what, found = "labels has an unusable entry", f"{old!r}: {new!r}"
                raise ConfigError(what, expected=expected, found=found, fix="write labels and their names as text")


@dataclass(frozen=True)
class CaseTable:
    """The rows of a case table.

    Ids and labels are stripped, None where missing; `slide_ids` are stems, None without that column.

    Attributes:
        path: the file that says which cases there are.
        extra: further columns, one value a row.
        notes: what a user should know.
        dropped: case -> label that the user's option `labels` leaves out; those cases have no label.
    """

    path: Path
    case_ids: list[str | None]
    labels: list[str | None]
    slide_ids: list[str | None] | None
    extra: pa.Table
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)


def read_cases(paths: Sequence[Path], options: CaseOptions = CaseOptions()) -> CaseTable:
    """Read one case table, or several that are joined by case.

    Args:
        paths: the files. The first with slides says which cases there are; without one, the first with labels.
        options: see `CaseOptions`.

    Raises:
        ConfigError: no path.
        InputError: no such file, not a table, no column of cases or labels, or several that could be one; a column
            twice, no rows, no case in common, a label in `labels` that no case has.
    """
    if not paths:
        expected, fix = "the path of a CSV or TSV file", "give the case table"
        raise ConfigError("no case table was given", expected=expected, found="nothing", fix=fix)
    files = [open_text(Path(path), "case table") for path in paths]
    for role in ("case", "slide", "label"):
        _check_said(files, role, getattr(options, f"{role}_column"))
    label_of = _label_columns(files, options.label_column)
    renamed = {old.strip(): None if new is None else new.strip() for old, new in (options.labels or {}).items()}
    parts = [
        read_part(file, options.case_column, options.slide_column, label_of.get(file.path), renamed) for file in files
    ]
    _check_renamed(parts, label_of, renamed)
    whole = join_parts(parts)
    extra, notes = derive(whole.extra, whole.case_ids, options.survival, whole.path)
    unlabelled: list[str | None] = [None] * len(whole.case_ids)
    return CaseTable(
        path=whole.path,
        case_ids=whole.case_ids,
        labels=unlabelled if whole.labels is None else whole.labels,
        slide_ids=None if whole.slide_ids is None else [None if s is None else slide_stem(s) for s in whole.slide_ids],
        extra=extra,
        notes=(*whole.notes, *notes),
        dropped=_dropped(whole),
    )


def read_case_table(path: Path) -> CaseTable:
    """Read a table with the columns case_id, label and perhaps slide_id, its further columns as they are.

    Raises:
        InputError: no such file, not a table, no case_id or label column, a column twice, no rows.
    """
    table = read_csv(path, "case table", ("case_id", "slide_id", "label"))
    for role in ("case", "label"):
        if USUAL_NAMES[role][0] not in table.column_names:
            raise no_column(role, table.column_names, path)
    slides = None
    if "slide_id" in table.column_names:
        slides = [None if s is None else slide_stem(s) for s in stripped(table["slide_id"])]
    known = [name for name in ("case_id", "slide_id", "label") if name in table.column_names]
    return CaseTable(path, stripped(table["case_id"]), stripped(table["label"]), slides, table.drop_columns(known))


def slide_stem(name: str) -> str:
    """A slide's name without the endings of slide and feature files (`A.svs`, `A.svs.h5` -> `A`)."""
    for ending in SLIDE_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return slide_stem(name[: -len(ending)])
    return name


def _check_said(files: Sequence[TextFile], role: str, name: str | None) -> None:
    if name is not None and not any(name in file.names for file in files):
        names = list(dict.fromkeys(n for file in files for n in file.names if n))
        shown = ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
        raise InputError(
            f"the case table has no column {name}, which {role}_column names",
            file=", ".join(str(file.path) for file in files),
            expected=f"a column {name}",
            found=shown,
            fix=f"correct {role}_column",
        )


def _label_columns(files: Sequence[TextFile], said: str | None) -> dict[Path, str]:
    """The column of labels in each file that has it.

    It has one name in all files: what the user said, or the only name that could be one, or what a portal's file has
    instead.
    """
    if said is not None:
        return {file.path: said for file in files if said in file.names}
    own = USUAL_NAMES["label"][0]
    found = {file.path: candidates("label", file.names) for file in files}
    if any(own in names for names in found.values()):
        return {path: own for path, names in found.items() if own in names}
    names = sorted({name for names in found.values() for name in names})
    if len(names) > 1:
        places = "; ".join(f"{path.name}: {', '.join(of)}" for path, of in found.items() if of)
        raise InputError(
            "several columns could be the label",
            file=", ".join(str(file.path) for file in files),
            expected="one, or the option label_column",
            found=places,
            fix=f"say which: {' or '.join(f'label_column={name}' for name in names[:4])}",
        )
    if names:
        return {path: names[0] for path, of in found.items() if of}
    for file in files:
        known = format_of(file)
        for name in () if known is None else known.default_labels:
            if name in file.names:
                return {file.path: name}
    raise no_column("label", list(dict.fromkeys(n for f in files for n in f.names if n)), files[0].path)


def _check_renamed(parts: Sequence[CasePart], label_of: Mapping[Path, str], renamed: Mapping[str, str | None]) -> None:
    """Refuse an entry of `labels` that no case has: a misspelt one would change nothing, silently."""
    if not renamed:
        return
    written = {label for part in parts if part.path in label_of for label in part.written}
    for old in renamed:
        if old not in written:
            raise InputError(
                "the option labels names a label that no case has",
                file=next(iter(label_of)),
                expected=", ".join(sorted(written)[:20]),
                found=old,
                fix="write the label as the table has it",
            )


def _dropped(part: CasePart) -> dict[str, str]:
    """Case -> dropped label, of the cases that have no other one."""
    if part.dropped is None or part.labels is None:
        return {}
    labelled = {case_id for case_id, label in zip(part.case_ids, part.labels, strict=True) if label is not None}
    return {
        case_id: label
        for case_id, label in zip(part.case_ids, part.dropped, strict=True)
        if case_id is not None and label is not None and case_id not in labelled
    }
