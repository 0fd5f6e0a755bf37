"""Which column of a case table is the case, the slide, the label: said by an option, or recognised by its name.

The project's own names (`case_id`, `slide_id`, `label`) count first, then the usual names of other tools; two of those
are never chosen between. Left out: recognising a column by its values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from gimp_ray.errors import InputError

# role -> own name, then the usual ones; compared in lower case with _ for blanks and dashes
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "case": (
        "case_id",
        "case",
        "patient",
        "patient_id",
        "bcr_patient_barcode",
        "case_submitter_id",
        "cases.submitter_id",
        "submitter_id",
    ),
    "slide": ("slide_id", "slide", "slide_name", "filename", "file_name"),
    "label": (
        "label",
        "oncotree_code",
        "class",
        "subtype",
        "cancer_type",
        "cancer_type_detailed",
        "cancer_type_acronym",
        "molecular_subtype",
    ),
}
# read as text: `05` is a code, not the number 5
TEXT_NAMES = frozenset({"site", "patient_id", "sample_id", "tissue_source_site"})


def candidates(role: str, names: Sequence[str]) -> list[str]:
    """The columns that could have a role: the own name alone where it is there, else every usual name."""
    own, *usual = USUAL_NAMES[role]
    if own in names:
        return [own]
    return [name for name in names if plain_name(name) in (own, *usual)]


def one_of(role: str, found: Sequence[str], path: Path) -> str | None:
    """The only candidate, None where there is none; InputError where there are several."""
    if len(found) > 1:
        raise InputError(
            f"several columns could be the {role}",
            file=path,
            expected=f"one, or the option {role}_column",
            found=", ".join(found),
            fix=f"say which: {' or '.join(f'{role}_column={name}' for name in found[:4])}",
        )
    return found[0] if found else None


def no_column(role: str, names: Sequence[str], path: Path) -> InputError:
    """The refusal of a table without a column that has the role."""
    own = USUAL_NAMES[role][0]
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
    fix = f"name the column that holds the {'class' if role == 'label' else role} {own!r}, or say {role}_column=NAME"
    if len(names) == 1 and ";" in names[0]:
        fix = "separate the columns by commas or tabs, not by ;"
    return InputError(
        f"the case table has no {own} column",
        file=path,
        expected=f"one of {', '.join(USUAL_NAMES[role])}, or the option {role}_column",
        found=shown or "no columns",
        fix=fix,
    )


def plain_name(name: str) -> str:
    """A column's name in lower case, _ for blanks and dashes."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def unused_name(name: str, names: Collection[str]) -> str:
    """`name`, or with _ behind it until no column has that name."""
    while name in names:
        name += "_"
    return name
