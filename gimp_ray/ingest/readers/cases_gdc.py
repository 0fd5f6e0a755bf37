"""GDC's `clinical.tsv`: old names (`case_submitter_id`, `vital_status`) and new ones (`demographic.vital_status`).

One row a treatment or diagnosis, so several rows a case; `'--` and `--` for what is not there. Its `case_id` is a UUID:
the case is the submitter's id, such as a TCGA barcode. Overall survival: `days_to_death` of the dead, else the largest
`days_to_last_follow_up` of any row. Left out: `follow_up.tsv`, `exposure.tsv` and the other files of the download,
unless they are given beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from gimp_ray.ingest.readers.cases_survival import DAYS_A_MONTH, Endpoint, number_of

CASE_NAMES = ("cases.submitter_id", "case_submitter_id", "submitter_id")
DEFAULT_LABELS = ("project_id", "project.project_id")
_STATUS = ("vital_status", "demographic.vital_status", "diagnoses.vital_status")
_DEATH = ("days_to_death", "demographic.days_to_death", "diagnoses.days_to_death")
_FOLLOW_UP = (
    "days_to_last_follow_up",
    "diagnoses.days_to_last_follow_up",
    "days_to_follow_up",
    "follow_ups.days_to_follow_up",
)
# of several rows of a case the largest counts: each diagnosis has a follow-up of its own
LARGEST_COUNTS = _FOLLOW_UP


def recognises(names: Sequence[str], comments: Sequence[str]) -> bool:
    """Whether the header is one of GDC's: its case, and its project or one of its prefixes."""
    has_case = any(name in names for name in CASE_NAMES)
    return has_case and any(n in DEFAULT_LABELS or n.startswith(("demographic.", "diagnoses.")) for n in names)


def endpoints(table: pa.Table) -> dict[str, Endpoint]:
    """Overall survival by vital status and days."""
    status, death = (next((n for n in known if n in table.column_names), None) for known in (_STATUS, _DEATH))
    follow_up = [n for n in _FOLLOW_UP if n in table.column_names]
    if status is None or not (death or follow_up):
        return {}
    # a cohort in which nobody died has no days to death at all
    died = _largest(table, [death] if death else [])
    last = _largest(table, follow_up)
    words = [str(value).strip().lower() for value in table[status].to_pylist()]
    events = [{"dead": True, "alive": False}.get(word) for word in words]
    # nobody can say how long a person of unknown status lived
    days = [d if event else f if event is False else None for event, d, f in zip(events, died, last, strict=True)]
    months = [None if n is None else n / DAYS_A_MONTH for n in days]
    return {"OS": Endpoint((status, *([death] if death else []), *follow_up), months, events)}


def _largest(table: pa.Table, names: Sequence[str]) -> list[float | None]:
    """(rows,) largest number of the columns, None where there is none."""
    columns = [[number_of(value) for value in table[name].to_pylist()] for name in names]
    known = ([n for c in columns if (n := c[row]) is not None] for row in range(table.num_rows))
    return [max(numbers, default=None) for numbers in known]
