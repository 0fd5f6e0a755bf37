"""CLAM's and PORPOISE's dataset CSV: one row a slide, `survival_months`, `censorship` (1 = censored), gene columns.

PORPOISE puts the molecular data of every case beside its clinical data: thousands of columns such as `TP53_mut`,
`EGFR_cnv`, `ALK_rnaseq`. Those are no clinical columns, and are left out; the genes are ingested as a gene matrix.
SurvPath adds `survival_months_dss`, `censorship_dss` and so on for other endpoints. Left out: PORPOISE's signatures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from gimp_ray.ingest.readers.cases_survival import Endpoint, flag_of, number_of

_MOLECULAR = re.compile(r".+_(mut|cnv|rnaseq)$")
# a few such columns may be the labels of a study; PORPOISE has thousands
_FEWEST_MOLECULAR = 50
_SUFFIXES = {"": "OS", "_os": "OS", "_dss": "DSS", "_dfi": "DFI", "_dfs": "DFI", "_pfi": "PFI", "_pfs": "PFI"}


def molecular_columns(names: Sequence[str]) -> list[str]:
    """The columns that hold genes rather than clinical data; none unless there are at least 50."""
    found = [name for name in names if _MOLECULAR.match(name)]
    return found if len(found) >= _FEWEST_MOLECULAR else []


def endpoints(table: pa.Table) -> dict[str, Endpoint]:
    """Survival in months with `censorship`, 1 for censored."""
    found: dict[str, Endpoint] = {}
    for suffix, name in _SUFFIXES.items():
        time, status = f"survival_months{suffix}", f"censorship{suffix}"
        if time in table.column_names and status in table.column_names and name not in found:
            censored = [flag_of(value) for value in table[status].to_pylist()]
            months = [number_of(value) for value in table[time].to_pylist()]
            events = [None if c is None else not c for c in censored]
            found[name] = Endpoint((time, status), months, events)
    return found
