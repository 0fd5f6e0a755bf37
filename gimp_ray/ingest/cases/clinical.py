"""Clinical columns under one name and type, made from whatever the case table has.

    survival_months   float, months (days / 30.4375) to the event or the last follow-up; null where unknown or negative
    event             bool, whether the event (death, for overall survival) was observed
    age               float, years
    sex               female or male
    site              text, tissue source site: the two characters after TCGA- in a TCGA barcode

A column stays under its own name; where it has one of these names and its values had to change, as NAME_as_given. A
value that means nothing here (negative survival, a status of unknown spelling) is null, and a note counts the cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import InputError

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


def plain_name(name: str) -> str:
    """A column's name in lower case, _ for blanks and dashes."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def unused_name(name: str, names: Collection[str]) -> str:
    """`name`, or with _ behind it until no column has that name."""
    while name in names:
        name += "_"
    return name


_MOLECULAR = re.compile(r".+_(mut|cnv|rnaseq)$")
# a few such columns may be the labels of a study; PORPOISE has thousands
_FEWEST_MOLECULAR = 50


def molecular_columns(names: Sequence[str]) -> list[str]:
    """The columns that hold genes rather than clinical data, as PORPOISE's tables have; none if fewer than 50."""
    found = [name for name in names if _MOLECULAR.match(name)]
    return found if len(found) >= _FEWEST_MOLECULAR else []


def _uncensored(value: object) -> bool | None:
    """Whether the event was observed, from CLAM's `censorship` (1 = censored)."""
    flag = flag_of(value)
    return None if flag is None else not flag


_EVENTS = ("deceased", "dead", "dead with tumor", "recurred/progressed", "recurred", "progressed", "progression")
_NO_EVENTS = ("living", "alive", "alive or dead tumor free", "diseasefree", "disease free", "censored",
              "no progression")  # fmt: skip


def _event_of(value: object) -> bool | None:
    """Whether a status is an event: `1:DECEASED`, `LIVING`, 0, ...; None where it says neither."""
    flag = flag_of(value)
    if flag is not None or not isinstance(value, str):
        return flag
    number, colon, text = value.strip().lower().partition(":")
    if colon and number in ("0", "1"):
        return number == "1"
    word = text if colon else number
    return True if word in _EVENTS else False if word in _NO_EVENTS else None


# endpoint, columns of time and status, units of time a month, how a status is read; the first that a table has counts
_COLUMNS: tuple[tuple[str, str, str, float, Callable[[object], bool | None]], ...] = (
    ("OS", "survival_months", "event", 1, flag_of),
    # CLAM, PORPOISE, SurvPath
    ("OS", "survival_months", "censorship", 1, _uncensored),
    *((end, f"survival_months_{name.lower()}", f"censorship_{name.lower()}", 1, _uncensored)
      for name, end in ENDPOINTS.items()),
    # cBioPortal: the download of its site, the files of a study; the TCGA clinical data resource and Xena (days)
    ("OS", "Overall Survival (Months)", "Overall Survival Status", 1, _event_of),
    ("DSS", "Months of disease-specific survival", "Disease-specific Survival status", 1, _event_of),
    ("DFI", "Disease Free (Months)", "Disease Free Status", 1, _event_of),
    ("PFI", "Progress Free Survival (Months)", "Progression Free Status", 1, _event_of),
    *(row for name, end in ENDPOINTS.items()
      for row in ((end, f"{name}_MONTHS", f"{name}_STATUS", 1, _event_of),
                  (end, f"{name}.time", name, DAYS_A_MONTH, _event_of))),
)  # fmt: skip
_STATUS = ("vital_status", "demographic.vital_status", "diagnoses.vital_status")
_DEATH = ("days_to_death", "demographic.days_to_death", "diagnoses.days_to_death")
_FOLLOW_UP = ("days_to_last_follow_up", "diagnoses.days_to_last_follow_up", "days_to_follow_up",
              "follow_ups.days_to_follow_up")  # fmt: skip


@dataclass(frozen=True)
class CaseFormat:
    """A portal's file: which header it has, where its case is, and what is a label where nothing else is one.

    Attributes:
        largest_counts: columns of which the largest counts where a case has several rows.
    """

    recognises: Callable[[Sequence[str], Sequence[str]], bool]
    case_names: tuple[str, ...]
    default_labels: tuple[str, ...] = ()
    largest_counts: tuple[str, ...] = ()


def _is_gdc(names: Sequence[str], comments: Sequence[str]) -> bool:
    """GDC's `clinical.tsv`: its case, and its project or one of its prefixes."""
    has_case = any(name in names for name in _GDC_CASES)
    return has_case and any(n in _GDC_LABELS or n.startswith(("demographic.", "diagnoses.")) for n in names)


def _is_cbioportal(names: Sequence[str], comments: Sequence[str]) -> bool:
    """cBioPortal's `data_clinical_patient.txt`, `data_clinical_sample.txt`, or the table its site offers."""
    if "Patient ID" in names and "Sample ID" in names:
        return True
    return "PATIENT_ID" in names and (bool(comments) or "SAMPLE_ID" in names or "OS_STATUS" in names)


# GDC's case_id is a UUID: the case is the submitter's id, such as a TCGA barcode
_GDC_CASES = ("cases.submitter_id", "case_submitter_id", "submitter_id")
_GDC_LABELS = ("project_id", "project.project_id")
FORMATS = (
    # one row a treatment or diagnosis, each diagnosis with a follow-up of its own
    CaseFormat(_is_gdc, _GDC_CASES, _GDC_LABELS, largest_counts=_FOLLOW_UP),
    CaseFormat(_is_cbioportal, ("PATIENT_ID", "Patient ID")),
)


def _endpoints(table: pa.Table) -> dict[str, Endpoint]:
    """Every endpoint the columns hold; columns under this project's own names come first, GDC's last."""
    found: dict[str, Endpoint] = {}
    for name, time, status, unit, event_of in _COLUMNS:
        if time in table.column_names and status in table.column_names and name not in found:
            numbers = [number_of(value) for value in table[time].to_pylist()]
            months = [None if n is None else n / unit for n in numbers]
            found[name] = Endpoint((time, status), months, [event_of(v) for v in table[status].to_pylist()])
    gdc = _gdc_survival(table)
    return found if gdc is None else {"OS": gdc, **found}


def _gdc_survival(table: pa.Table) -> Endpoint | None:
    """GDC's overall survival: `days_to_death` of the dead, else the largest `days_to_last_follow_up` of any row."""
    status, death = (next((n for n in known if n in table.column_names), None) for known in (_STATUS, _DEATH))
    follow_up = [n for n in _FOLLOW_UP if n in table.column_names]
    if status is None or not (death or follow_up):
        return None
    # a cohort without deaths has no days to death at all
    died = _largest(table, [death] if death else [])
    last = _largest(table, follow_up)
    words = [str(value).strip().lower() for value in table[status].to_pylist()]
    events = [{"dead": True, "alive": False}.get(word) for word in words]
    # survival is unknown where the status is
    days = [d if event else f if event is False else None for event, d, f in zip(events, died, last, strict=True)]
    months = [None if n is None else n / DAYS_A_MONTH for n in days]
    return Endpoint((status, *([death] if death else []), *follow_up), months, events)


def _largest(table: pa.Table, names: Sequence[str]) -> list[float | None]:
    """(rows,) largest number of the columns, None where there is none."""
    columns = [[number_of(value) for value in table[name].to_pylist()] for name in names]
    known = ([n for c in columns if (n := c[row]) is not None] for row in range(table.num_rows))
    return [max(numbers, default=None) for numbers in known]


_TCGA_SITE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?=$|[-_.])", re.IGNORECASE)
_AGES = ("age", "age_at_index", "demographic.age_at_index", "age_at_initial_pathologic_diagnosis",
    "diagnosis_age", "age_at_diagnosis",
         "diagnoses.age_at_diagnosis")  # fmt: skip
_SEXES = ("sex", "is_female", "gender", "sex_at_birth", "demographic.sex_at_birth", "demographic.gender")
_SEX_WORDS = {"female": "female", "f": "female", "male": "male", "m": "male"}
_NO_SEX = ("unknown", "not reported", "unspecified", "not specified")
# years; a larger number is days, as GDC writes it
_OLDEST = 150
_SHOWN = 8


class _Table:
    """The columns so far, and the notes about them."""

    def __init__(self, table: pa.Table, case_ids: Sequence[str | None]) -> None:
        self.table, self.case_ids = table, case_ids
        self.sources: list[str] = []
        self.notes: list[str] = []

    def find(self, names: Iterable[str]) -> str | None:
        """The first column of one of the names; names are compared in lower case."""
        by_name: dict[str, str] = {}
        for name in self.table.column_names:
            by_name.setdefault(plain_name(name), name)
        return next((by_name[name] for name in names if name in by_name), None)

    def put(self, name: str, values: Sequence[object], kind: pa.DataType, read: Callable[[object], object]) -> None:
        """Set a column; what it had under that name before is kept where `read` of it is not the same."""
        column = pa.array(values, kind)
        if name in self.table.column_names:
            given = self.table[name]
            place = self.table.column_names.index(name)
            if given.null_count == column.null_count and [read(v) for v in given.to_pylist()] == list(values):
                self.table = self.table.set_column(place, name, column)
                return
            kept = unused_name(f"{name}_as_given", self.table.column_names)
            self.table = self.table.set_column(place, kept, given)
            self.notes.append(f"the case table's own {name} is kept as {kept}")
        self.table = self.table.append_column(name, column)

    def count(self, what: str, rows: Iterable[bool]) -> None:
        """A note on the cases of the rows that are true, if any is."""
        found = sorted({case_id or "" for case_id, bad in zip(self.case_ids, rows, strict=True) if bad})
        if found:
            more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
            self.notes.append(f"{what} in {len(found):,} cases: {', '.join(found[:_SHOWN])}{more}")


def derive(extra: pa.Table, case_ids: Sequence[str | None], survival: str, path: Path) -> tuple[pa.Table, list[str]]:
    """The further columns of a case table with those of this module, as far as the table tells; and notes.

    Raises:
        InputError: `survival` names an endpoint other than OS that the table does not have.
    """
    table = _Table(extra, case_ids)
    _survival(table, survival, path)
    _age(table)
    _sex(table)
    _site(table)
    if table.sources:
        table.notes.insert(0, f"columns made from the case table: {'; '.join(table.sources)}")
    return table.table, table.notes


def _survival(table: _Table, survival: str, path: Path) -> None:
    wanted, found = ENDPOINTS[survival], _endpoints(table.table)
    if wanted not in found:
        if survival != "OS":
            raise InputError(
                f"the case table has no endpoint {survival}",
                file=path,
                expected="columns such as survival_months_dss and censorship_dss, DSS_MONTHS and DSS_STATUS",
                found=", ".join(sorted(found)) or "no survival at all",
                fix="choose another endpoint by the option survival",
            )
        _without_endpoint(table, found)
        return
    endpoint = found[wanted]
    negative = [months is not None and months < 0 for months in endpoint.months]
    months = [None if bad else value for bad, value in zip(negative, endpoint.months, strict=True)]
    table.put("survival_months", months, pa.float64(), number_of)
    table.put("event", endpoint.events, pa.bool_(), flag_of)
    table.sources.append(f"survival_months and event ({wanted}) from {', '.join(endpoint.columns)}")
    pairs = list(zip(months, endpoint.events, strict=True))
    table.count("survival_months is null, for it is negative,", negative)
    lost = [m is None and e is not None and not bad for (m, e), bad in zip(pairs, negative, strict=True)]
    table.count("the event is known without a time", lost)
    table.count("the time is known without an event", [m is not None and e is None for m, e in pairs])


def _without_endpoint(table: _Table, found: Collection[str]) -> None:
    """Notes where there is no overall survival; times without an event are numbers all the same."""
    if found:
        table.notes.append(f"no overall survival; the option survival can take {', '.join(sorted(found))}")
    elif "survival_months" in table.table.column_names:
        months = [number_of(value) for value in table.table["survival_months"].to_pylist()]
        table.put("survival_months", months, pa.float64(), number_of)
        table.notes.append("survival_months has no censorship or event beside it")


def _age(table: _Table) -> None:
    name = table.find(_AGES)
    if name is None:
        return
    given = table.table[name].to_pylist()
    numbers = [number_of(value) for value in given]
    in_days = name != "age" and _median(numbers) > _OLDEST
    years = [None if n is None else n / DAYS_A_YEAR if in_days else n for n in numbers]
    impossible = [n is not None and not 0 <= n <= _OLDEST for n in years]
    table.put("age", [None if bad else n for bad, n in zip(impossible, years, strict=True)], pa.float64(), number_of)
    table.count(
        "age is null, for it is no number,", [v is not None and n is None for v, n in zip(given, numbers, strict=True)]
    )
    table.count(f"age is null, for it is not between 0 and {_OLDEST},", impossible)
    if name != "age":
        table.sources.append(f"age from {name}" + (" (days / 365.25)" if in_days else ""))


def _median(numbers: Sequence[float | None]) -> float:
    known = sorted(n for n in numbers if n is not None)
    return known[len(known) // 2] if known else 0.0


def _sex(table: _Table) -> None:
    name = table.find(_SEXES)
    if name is None:
        return
    given = table.table[name].to_pylist()
    if plain_name(name) == "is_female":
        flags = [flag_of(value) for value in given]
        words = [None if flag is None else "female" if flag else "male" for flag in flags]
    else:
        words = [_SEX_WORDS.get(str(value).strip().lower()) for value in given]
    if not any(words):
        kinds = sorted({str(v) for v in given if v is not None})
        if kinds:
            table.notes.append(f"no sex was taken from {name}: {', '.join(kinds[:_SHOWN])} is neither female nor male")
        return
    table.put("sex", words, pa.string(), lambda value: _SEX_WORDS.get(str(value).strip().lower()))
    pairs = zip(given, words, strict=True)
    odd = [w is None and v is not None and str(v).strip().lower() not in _NO_SEX for v, w in pairs]
    table.count(f"sex is null, for {name} is neither female nor male,", odd)
    if name != "sex":
        table.sources.append(f"sex from {name}")


def _site(table: _Table) -> None:
    if "site" in table.table.column_names:
        return
    matches = [None if case_id is None else _TCGA_SITE.match(case_id) for case_id in table.case_ids]
    if any(matches):
        sites = [match[1].upper() if match else None for match in matches]
        table.put("site", sites, pa.string(), lambda value: value)
        table.sources.append("site from the TCGA barcodes")
