"""Which cases and slides an ingest includes, and what it leaves out with the reason.

An inconsistent case table raises an error. A bad case or slide is excluded and reported; excluding a case also excludes
its slides, and excluding the last slide of a case excludes the case.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.cases import CaseTable

SLIDE_RULES = ("all", "DX", "DX1", "largest")
_DIAGNOSTIC = re.compile(r"-DX(\d+|[A-Z])(?=$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """Something of the sources that is not in the store.

    Args:
        kind: row, case, slide, patch file, gene sample or split.
        id: which one.
        reason: why, one sentence.
        follows: it went with something else that was left out (a slide with its case).
        counts: it makes a strict ingest fail.
    """

    kind: str
    id: str
    reason: str
    case_id: str | None = None
    file: str | None = None
    expected: str | None = None
    found: str | None = None
    fix: str | None = None
    follows: bool = False
    counts: bool = True

    def to_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


class Roll:
    """Cases and slides still in, and what was left out.

    Args:
        table: the case table.
        with_slides: whether patches are ingested.
        keep: keep cases without a label, a slide or genes.
        stems: names of the patch files, without endings. Where the table has no column of slides and a file is named
            after a case, as patient-level features are, every case is a slide of its own name.

    Attributes:
        labels: label of every case still in.
        slides: case of every slide still in; empty for an ingest without patches.
        left_out: in the order it happened.
        slide_is_case: whether the cases are the slides.
    """

    def __init__(self, table: CaseTable, with_slides: bool, stems: Collection[str] = (), keep: bool = False) -> None:
        self.keep = keep
        self.slide_is_case = with_slides and table.slide_ids is None and not set(stems).isdisjoint(table.case_ids)
        if self.slide_is_case:
            table = replace(table, slide_ids=list(table.case_ids))
        self.table = table
        self.with_slides = with_slides
        self.left_out: list[LeftOut] = []
        self.case_row: dict[str, int] = {}
        self.slide_row: dict[str, int] = {}
        self._call(table)
        self.labels = _labels(table)
        self.slides: dict[str, str] = {}
        self._slides_of: dict[str, set[str]] = {case_id: set() for case_id in self.case_row}
        if with_slides:
            for slide_id, row in self.slide_row.items():
                self.slides[slide_id] = table.case_ids[row] or ""
                self._slides_of[self.slides[slide_id]].add(slide_id)
        self._leave_out_incomplete_rows()

    def case_of(self, slide_id: str) -> str:
        """The case of a slide of the case table, whether it is still in or not."""
        return self.table.case_ids[self.slide_row[slide_id]] or ""

    def slide_to_case(self) -> dict[str, str]:
        """Every slide of the case table and its case, whether they are still in or not."""
        return {slide_id: self.case_of(slide_id) for slide_id in self.slide_row}

    def apply_slide_rule(self, rule: str, sizes: Mapping[str, int] | None = None) -> None:
        """Leave out the slides that a rule does not choose (`choose_slides`), and cases without a slide then.

        What the rule leaves out is the user's choice, and does not make a strict ingest fail.

        Args:
            rule: one of `SLIDE_RULES`.
            sizes: patches of each slide, for the rule `largest`.

        Raises:
            ConfigError: an unknown rule, or `largest` without the size of a slide.
        """
        names = sorted(self.slides)
        _, reasons = choose_slides(names, [self.slides[slide_id] for slide_id in names], sizes, rule)
        for slide_id, reason in zip(names, reasons, strict=True):
            if reason is not None:
                self.leave_out_slide(slide_id, InputError(reason, case=slide_id), counts=False)

    def leave_out_case(self, error: InputError, follows: bool = False, counts: bool = True) -> None:
        """Leave the case of `error` out for what it says, and its slides with it."""
        case_id = error.case or ""
        del self.labels[case_id]
        self.left_out.append(_left_out("case", case_id, case_id, error, follows, counts))
        for slide_id in sorted(self._slides_of[case_id]):
            del self.slides[slide_id]
            self.left_out.append(LeftOut("slide", slide_id, "its case was left out", case_id, follows=True))
        self._slides_of[case_id].clear()

    def leave_out_slide(self, slide_id: str, error: InputError, counts: bool = True) -> None:
        """Leave a slide out for what `error` says, and its case with it when it was the last."""
        case_id = self.slides.pop(slide_id)
        self.left_out.append(_left_out("slide", slide_id, case_id, error, counts=counts))
        self._slides_of[case_id].discard(slide_id)
        if not self._slides_of[case_id] and not self.keep:
            self.leave_out_case(InputError("none of its slides was kept", case=case_id), follows=True)

    def refuse(self, strict: bool) -> None:
        """Refuse to go on when nothing is left, or when `strict` and something was left out."""
        faults = [item for item in self.left_out if item.counts and not item.follows]
        if strict and faults:
            raise _strict_error(faults)
        if not self.labels:
            raise InputError(
                "nothing is left to ingest: every case was left out",
                file=self.table.path,
                case=faults[0].id if faults else None,
                expected="at least one case with a label and every modality given",
                found="; ".join(_count_reasons(self.left_out)) or "no cases",
                fix=faults[0].fix if faults else None,
            )

    def _call(self, table: CaseTable) -> None:
        """Find each case's and slide's row; refuse what contradicts itself."""
        for row, case_id in enumerate(table.case_ids):
            slide_id = None if table.slide_ids is None else table.slide_ids[row]
            if slide_id is not None:
                _check_slide_id(slide_id, table)
                if slide_id in self.slide_row:
                    raise _twice(
                        table, "case" if self.slide_is_case else "slide", slide_id, self.slide_row[slide_id], row
                    )
                if case_id is not None:
                    self.slide_row[slide_id] = row
            if case_id is None:
                continue
            if table.slide_ids is None and case_id in self.case_row:
                raise _twice(table, "case", case_id, self.case_row[case_id], row)
            self.case_row.setdefault(case_id, row)
        if self.with_slides and table.slide_ids is None:
            raise no_slide_column(table)

    def _leave_out_incomplete_rows(self) -> None:
        path = str(self.table.path)
        for row, case_id in enumerate(self.table.case_ids):
            if case_id is None:
                self.left_out.append(_incomplete(row, "case_id", None, path))
            elif self.table.slide_ids is not None and self.table.slide_ids[row] is None and self.with_slides:
                if self.keep:
                    continue
                self.left_out.append(_incomplete(row, "slide_id", case_id, path))
        for case_id in sorted(self.case_row):
            if not self.labels[case_id] and case_id in self.table.dropped:
                what = f"its label {self.table.dropped[case_id]} is left out by the option labels"
                self.leave_out_case(InputError(what, case=case_id), counts=False)
            elif not self.labels[case_id] and not self.keep:
                what, expected, fix = "the case has no label", "a class in column label", "give the case a label"
                error = InputError(what, file=path, case=case_id, expected=expected, found="no value", fix=fix)
                self.leave_out_case(error)
            elif self.with_slides and not self._slides_of[case_id] and not self.keep:
                self.leave_out_case(InputError("the case has no slide in the case table", case=case_id), follows=True)


def no_slide_column(table: CaseTable) -> InputError:
    """The refusal of patches whose slides the case table does not name."""
    return InputError(
        "the case table has no slide_id column",
        file=table.path,
        expected="columns case_id, slide_id, label",
        found=", ".join(["case_id", "label", *table.extra.column_names]),
        fix="add a slide_id column (the names of the patch files), name patient-level files after their cases, "
        "or ingest genes alone",
    )


def _left_out(
    kind: str, name: str, case_id: str, error: InputError, follows: bool = False, counts: bool = True
) -> LeftOut:
    return LeftOut(kind, name, error.what, case_id, error.file, error.expected, error.found, error.fix, follows, counts)


def _incomplete(row: int, column: str, case_id: str | None, path: str) -> LeftOut:
    expected, fix = f"a {column} in every row", "complete the row, or remove it"
    reason = f"the row has no {column}"
    return LeftOut("row", f"row {row + 1}", reason, case_id, path, expected=expected, found="no value", fix=fix)


def _labels(table: CaseTable) -> dict[str, str]:
    """Label of every case, empty where no row has one; refused where two rows disagree."""
    labels: dict[str, str] = {}
    for case_id, label in zip(table.case_ids, table.labels, strict=True):
        if case_id is None:
            continue
        known = labels.setdefault(case_id, label or "")
        if known and label and known != label:
            raise InputError(
                "a case has two labels",
                file=table.path,
                case=case_id,
                expected="one label a case",
                found=f"{known} and {label}",
                fix="correct the case table; a label that differs between slides needs a table of its own",
            )
        labels[case_id] = known or label or ""
    return labels


def _check_slide_id(slide_id: str, table: CaseTable) -> None:
    if any(mark in slide_id for mark in ("/", "\\", "..", "\0")):
        raise InputError(
            "a slide id is a path",
            file=table.path,
            case=slide_id,
            expected="a name without /, \\ and ..",
            found=slide_id,
            fix="write the slide's file name without its folder",
        )


def _twice(table: CaseTable, kind: str, name: str, first: int, second: int) -> InputError:
    hint = "" if kind == "slide" else " (a table with several slides a case needs the column slide_id)"
    return InputError(
        f"a {kind} stands twice in the case table",
        file=table.path,
        case=name,
        expected=f"one row a {kind}{hint}",
        found=f"rows {first + 1} and {second + 1}",
        fix="remove one of the rows",
    )


def _strict_error(faults: list[LeftOut]) -> InputError:
    first = faults[0]
    found = first.found
    if len(faults) > 1:
        listed = "; ".join(f"{_named(item)}: {item.reason}" for item in faults[:10])
        found = f"{found or first.reason}. In all {len(faults)}: {listed}" + ("; ..." if len(faults) > 10 else "")
    fix = f"{first.fix}; or " if first.fix else ""
    return InputError(
        f"strict ingest: {_named(first)} would be left out: {first.reason}",
        file=first.file,
        case=first.id if first.kind in ("slide", "case") else first.case_id,
        expected=first.expected,
        found=found,
        fix=f"{fix}ingest without strict, which leaves it out and reports it",
    )


def _named(item: LeftOut) -> str:
    """What was left out by kind and id; the id of a row says its kind."""
    return item.id if item.kind == "row" else f"{item.kind} {item.id}"


def _count_reasons(items: Iterable[LeftOut]) -> list[str]:
    counts: dict[str, int] = {}
    for item in items:
        if not item.follows:
            key = f"{item.kind}: {item.reason}"
            counts[key] = counts.get(key, 0) + 1
    return [f"{count} x {key}" for key, count in counts.items()]


def choose_slides(
    slide_ids: Sequence[str], case_ids: Sequence[str], sizes: Mapping[str, int] | None, rule: str
) -> tuple[np.ndarray, list[str | None]]:
    """Which slides a rule keeps; a pure function, whatever the order of the slides.

    Args:
        slide_ids: (n,) slides.
        case_ids: (n,) case of each.
        sizes: patches of each slide, for `largest`.
        rule: `all`; `DX`: diagnostic slides (`-DX1`, `-DX2`, ... in the name); `DX1`: of each case the diagnostic slide
            of the lowest number; `largest`: of each case the slide with most patches. Ties go by slide id.

    Returns:
        (n,) bool, kept; and the reason of each slide that is not, None for the others.

    Raises:
        ConfigError: an unknown rule, or `largest` without the size of a slide.
    """
    if rule not in SLIDE_RULES:
        what, fix = "there is no such slide rule", "choose one of these"
        raise ConfigError(what, expected=", ".join(SLIDE_RULES), found=repr(rule), fix=fix)
    reasons: list[str | None] = [None] * len(slide_ids)
    if rule in ("DX", "DX1"):
        numbers = [_diagnostic_number(slide_id) for slide_id in slide_ids]
        reasons = [f"not a diagnostic slide (rule {rule})" if number is None else None for number in numbers]
        if rule == "DX1":
            _keep_first(slide_ids, case_ids, numbers, "not the first diagnostic slide of its case (rule DX1)", reasons)
    elif rule == "largest":
        without = [slide_id for slide_id in slide_ids if sizes is None or slide_id not in sizes]
        if sizes is None or without:
            raise ConfigError(
                "the slide rule largest needs the number of patches of each slide", case=next(iter(without), None)
            )
        order = [-sizes[slide_id] for slide_id in slide_ids]
        _keep_first(slide_ids, case_ids, order, "not the largest slide of its case (rule largest)", reasons)
    return np.array([reason is None for reason in reasons], dtype=bool), reasons


def _diagnostic_number(slide_id: str) -> int | None:
    """The number of a diagnostic slide (`DXA` counts after all numbers), None for another slide."""
    match = _DIAGNOSTIC.search(slide_id)
    if match is None:
        return None
    return int(match[1]) if match[1].isdigit() else 10**6 + ord(match[1].upper())


def _keep_first(
    slide_ids: Sequence[str],
    case_ids: Sequence[str],
    order: Sequence[int | None],
    reason: str,
    reasons: list[str | None],
) -> None:
    """Give `reason` to every slide but the first of its case by `order`, then by id; skip slides without order."""
    first: dict[str, tuple[int, str]] = {}
    for slide_id, case_id, number in zip(slide_ids, case_ids, order, strict=True):
        if number is not None:
            first[case_id] = min(first.get(case_id, (number, slide_id)), (number, slide_id))
    for i, (slide_id, case_id, number) in enumerate(zip(slide_ids, case_ids, order, strict=True)):
        if number is not None and first[case_id][1] != slide_id:
            reasons[i] = reason
