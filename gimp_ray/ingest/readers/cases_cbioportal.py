"""cBioPortal's clinical files: `data_clinical_patient.txt`, `data_clinical_sample.txt`, and the download of its site.

Four lines of # (names, descriptions, types, priorities), then attributes in capitals. One row a patient or a sample;
`OS_MONTHS` with `OS_STATUS` such as `1:DECEASED` or `LIVING`, and the like for DSS, DFS and PFS; the table that the
site offers for download has words instead (`Overall Survival (Months)`). The TCGA clinical data resource (`OS` 0 or 1
with `OS.time` in days) and Xena's survival files have the same endpoints under other names. Left out: the timelines.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from gimp_ray.ingest.readers.cases_survival import DAYS_A_MONTH, Endpoint, flag_of, number_of

CASE_NAMES = ("PATIENT_ID", "Patient ID")
# as the site's own download of a study writes them
_DOWNLOADED = {
    "OS": ("Overall Survival (Months)", "Overall Survival Status"),
    "DSS": ("Months of disease-specific survival", "Disease-specific Survival status"),
    "DFI": ("Disease Free (Months)", "Disease Free Status"),
    "PFI": ("Progress Free Survival (Months)", "Progression Free Status"),
}
_NAMES = {"OS": "OS", "DSS": "DSS", "DFI": "DFI", "DFS": "DFI", "PFI": "PFI", "PFS": "PFI"}
_EVENTS = ("deceased", "dead", "dead with tumor", "recurred/progressed", "recurred", "progressed", "progression")
_NO_EVENTS = (
    "living",
    "alive",
    "alive or dead tumor free",
    "diseasefree",
    "disease free",
    "censored",
    "no progression",
)


def recognises(names: Sequence[str], comments: Sequence[str]) -> bool:
    """Whether the header is one of cBioPortal's."""
    if "Patient ID" in names and "Sample ID" in names:
        return True
    return "PATIENT_ID" in names and (bool(comments) or "SAMPLE_ID" in names or "OS_STATUS" in names)


def endpoints(table: pa.Table) -> dict[str, Endpoint]:
    """Survival by X_MONTHS and X_STATUS, or by X.time (days) and X (0 or 1)."""
    known = [(name, time, status, 1.0) for name, (time, status) in _DOWNLOADED.items()]
    for written, name in _NAMES.items():
        known.append((name, f"{written}_MONTHS", f"{written}_STATUS", 1.0))
        known.append((name, f"{written}.time", written, DAYS_A_MONTH))
    found: dict[str, Endpoint] = {}
    for name, time, status, unit in known:
        if time in table.column_names and status in table.column_names and name not in found:
            numbers = [number_of(value) for value in table[time].to_pylist()]
            months = [None if n is None else n / unit for n in numbers]
            found[name] = Endpoint((time, status), months, [event_of(v) for v in table[status].to_pylist()])
    return found


def event_of(value: object) -> bool | None:
    """Whether a status is an event: `1:DECEASED`, `LIVING`, 0, ...; None where it says neither."""
    flag = flag_of(value)
    if flag is not None or not isinstance(value, str):
        return flag
    number, colon, text = value.strip().lower().partition(":")
    if colon and number in ("0", "1"):
        return number == "1"
    word = text if colon else number
    return True if word in _EVENTS else False if word in _NO_EVENTS else None
