"""What survival is in a case table: time in months and whether the event was seen, and how cells are read as such.

Left out: which columns hold it, which each format's file says (`cases_clam.py`, `cases_cbioportal.py`, `cases_gdc.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# 365.25 days a year, 12 months
DAYS_A_MONTH = 30.4375
DAYS_A_YEAR = 365.25
# as an option says it -> as a table is asked for it: disease-free interval or survival, progression-free interval or
# survival are one endpoint under two names
ENDPOINTS = {"OS": "OS", "DSS": "DSS", "DFI": "DFI", "DFS": "DFI", "PFI": "PFI", "PFS": "PFI"}


@dataclass(frozen=True)
class Endpoint:
    """One endpoint of a table.

    Args:
        columns: where it comes from.
        months: (rows,) time to event or to the last follow-up, None where unknown.
        events: (rows,) whether the event was seen, None where unknown.
    """

    columns: tuple[str, ...]
    months: list[float | None]
    events: list[bool | None]


def number_of(value: object) -> float | None:
    """A cell as a finite number; None where it is none."""
    try:
        number = float(str(value).strip()) if value is not None and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def flag_of(value: object) -> bool | None:
    """A cell that is 0 or 1, true or false; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}.get(value.lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None
