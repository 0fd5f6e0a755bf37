"""The columns a study asks for under one name and type, made from whatever the case table has.

    survival_months   float, months (days / 30.4375) to the event or the last follow-up; null where unknown or negative
    event             bool, whether the event (death, for overall survival) was seen
    age               float, years
    sex               female or male
    site              text, tissue source site: the two characters after TCGA- in a TCGA barcode

A column stays under its own name; where it has one of these names and its values had to change, as NAME_as_given. A
value that means nothing here (negative survival, a status of unknown spelling) is null, and a note counts the cases.
Left out: stage and grade, whose systems differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers import cases_cbioportal, cases_clam, cases_gdc
from gimp_ray.ingest.readers.cases_columns import plain_name, unused_name
from gimp_ray.ingest.readers.cases_survival import DAYS_A_YEAR, ENDPOINTS, Endpoint, flag_of, number_of

_TCGA_SITE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?=$|[-_.])", re.IGNORECASE)
_AGES = ("age", "age_at_index", "demographic.age_at_index", "age_at_initial_pathologic_diagnosis",
    "diagnosis_age", "age_at_diagnosis",
         "diagnoses.age_at_diagnosis")  # fmt: skip
_SEXES = ("sex", "is_female", "gender", "sex_at_birth", "demographic.sex_at_birth", "demographic.gender")
_SEX_WORDS = {"female": "female", "f": "female", "male": "male", "m": "male"}
_NO_SEX = ("unknown", "not reported", "unspecified", "not specified")
# nobody is older: a larger number is days, as GDC writes it
_OLDEST = 150
_SHOWN = 5


class _Table:
    """The columns so far, and what was said about them."""

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
    """What is said where there is no overall survival; times without an event are numbers all the same."""
    if found:
        table.notes.append(f"no overall survival; the option survival can take {', '.join(sorted(found))}")
    elif "survival_months" in table.table.column_names:
        months = [number_of(value) for value in table.table["survival_months"].to_pylist()]
        table.put("survival_months", months, pa.float64(), number_of)
        table.notes.append("survival_months has no censorship or event beside it")


def _endpoints(table: pa.Table) -> dict[str, Endpoint]:
    """Every endpoint the columns tell; columns under this project's own names come first."""
    found: dict[str, Endpoint] = {}
    if "survival_months" in table.column_names and "event" in table.column_names:
        months = [number_of(value) for value in table["survival_months"].to_pylist()]
        events = [flag_of(value) for value in table["event"].to_pylist()]
        found["OS"] = Endpoint(("survival_months", "event"), months, events)
    for module in (cases_clam, cases_cbioportal, cases_gdc):
        for name, endpoint in module.endpoints(table).items():
            found.setdefault(name, endpoint)
    return found


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
