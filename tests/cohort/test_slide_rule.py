"""Which slides of a case are kept: diagnostic ones, the first, the largest; and files named after cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.cases import CaseTable
from gimp_ray.ingest.roll import SLIDE_RULES, Roll, choose_slides

CASE = "TCGA-05-4249"
DX1, DX2, DX10 = (f"{CASE}-01Z-00-DX{n}.9fce0297-cc19" for n in (1, 2, 10))
FROZEN = f"{CASE}-01A-01-TS1.aa"


def _table(slides: dict[str, str], labels: dict[str, str] | None = None) -> CaseTable:
    cases = list(slides.values())
    given_labels: list[str | None] = [(labels or {}).get(case, "x") for case in cases]
    return CaseTable(Path("cases.csv"), list(cases), given_labels, list(slides), pa.table({"n": [0] * len(cases)}))


def _kept(rule: str, slides: list[str], sizes: dict[str, int] | None = None) -> list[str]:
    kept, reasons = choose_slides(slides, [CASE] * len(slides), sizes, rule)
    assert [reason is None for reason in reasons] == kept.tolist()
    return [slide for slide, keep in zip(slides, kept, strict=True) if keep]


def test_diagnostic_slides() -> None:
    slides = [FROZEN, DX10, DX2, f"{CASE}-01Z-00-DXA.b", "A0-DX1", "INDEX1", f"{CASE}-01A-DXY2"]
    assert _kept("DX", slides) == [DX10, DX2, f"{CASE}-01Z-00-DXA.b", "A0-DX1"]
    assert _kept("all", slides) == slides


def test_the_first_diagnostic_slide_is_so_by_number_not_by_text() -> None:
    assert _kept("DX1", [DX10, DX2, FROZEN]) == [DX2]
    assert _kept("DX1", [DX10, f"{CASE}-01Z-00-DXA.b"]) == [DX10]
    assert _kept("DX1", [DX1 + "b", DX1 + "a"]) == [DX1 + "a"], "ties by slide id"
    reasons = choose_slides([DX1, DX2, FROZEN], [CASE] * 3, None, "DX1")[1]
    assert reasons == [
        None,
        "not the first diagnostic slide of its case (rule DX1)",
        "not a diagnostic slide (rule DX1)",
    ]


def test_the_largest_slide() -> None:
    sizes = {DX1: 5, DX2: 9, FROZEN: 9}
    assert _kept("largest", [DX1, DX2, FROZEN], sizes) == [FROZEN], "ties by slide id"
    with pytest.raises(ConfigError, match="needs the number of patches"):
        choose_slides([DX1], [CASE], None, "largest")
    with pytest.raises(ConfigError, match="needs the number of patches") as caught:
        choose_slides([DX1, DX2], [CASE] * 2, {DX1: 5}, "largest")
    assert caught.value.case == DX2
    with pytest.raises(ConfigError, match="no such slide rule"):
        choose_slides([DX1], [CASE], None, "biggest")


@settings(max_examples=40, deadline=None)
@given(
    slides=st.dictionaries(
        st.from_regex(r"\A[A-C]-(DX[0-9]{1,2}|TS1)\.[a-d]\Z"), st.sampled_from(["P", "Q"]), min_size=1, max_size=12
    ),
    rule=st.sampled_from(SLIDE_RULES),
    sizes=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_rules_do_not_depend_on_the_order(slides: dict[str, str], rule: str, sizes: list[int]) -> None:
    size_of = dict(zip(sorted(slides), sizes, strict=False))
    names = list(slides)
    kept = {
        n for n, k in zip(names, choose_slides(names, [slides[n] for n in names], size_of, rule)[0], strict=True) if k
    }
    names.reverse()
    again = choose_slides(names, [slides[n] for n in names], size_of, rule)[0]
    assert kept == {n for n, keep in zip(names, again, strict=True) if keep}
    for case in set(slides.values()):
        of_case = {n for n in slides if slides[n] == case}
        diagnostic = {n for n in of_case if "DX" in n}
        expected = {"all": len(of_case), "DX": len(diagnostic), "DX1": min(1, len(diagnostic)), "largest": 1}[rule]
        assert len(kept & of_case) == expected


def test_what_a_rule_leaves_out_is_no_fault_and_cases_follow() -> None:
    roll = Roll(_table({DX1: "P", DX2: "P", "Q-TS1": "Q"}), with_slides=True)
    roll.apply_slide_rule("DX1")
    assert (roll.slides, roll.labels) == ({DX1: "P"}, {"P": "x"})
    items = {(item.kind, item.id): item for item in roll.left_out}
    assert set(items) == {("slide", DX2), ("slide", "Q-TS1"), ("case", "Q")}
    assert not items["slide", DX2].counts and items["case", "Q"].follows
    assert roll.slide_to_case() == {DX1: "P", DX2: "P", "Q-TS1": "Q"}, "also those left out"
    roll.refuse(strict=True)


def test_a_rule_that_leaves_nothing_is_refused() -> None:
    roll = Roll(_table({"Q-TS1": "Q"}), with_slides=True)
    roll.apply_slide_rule("DX")
    with pytest.raises(InputError, match="nothing is left") as caught:
        roll.refuse(strict=False)
    assert "not a diagnostic slide (rule DX)" in (caught.value.found or "")


def test_dropped_labels_are_no_fault_but_missing_ones_are() -> None:
    table = replace(_table({"a": "P", "b": "Q", "c": "R"}), labels=["x", None, None], dropped={"Q": "normal"})
    roll = Roll(table, with_slides=True)
    reasons = {item.id: (item.reason, item.counts) for item in roll.left_out if item.kind == "case"}
    assert reasons["Q"] == ("its label normal is left out by the option labels", False)
    assert reasons["R"] == ("the case has no label", True)
    with pytest.raises(InputError, match="case R would be left out"):
        roll.refuse(strict=True)


def test_files_named_after_cases_are_their_slides() -> None:
    table = replace(_table({"a": "P", "b": "Q"}), slide_ids=None)
    roll = Roll(table, with_slides=True, stems={"P", "Z"})
    assert roll.slide_is_case and roll.slides == {"P": "P", "Q": "Q"} and roll.case_of("Q") == "Q"
    with pytest.raises(InputError, match="no slide_id column") as caught:
        Roll(table, with_slides=True, stems={"slide7"})
    assert "name patient-level files after their cases" in (caught.value.fix or "")
    assert not Roll(table, with_slides=False, stems={"P"}).slides
    with pytest.raises(InputError, match="a case stands twice"):
        Roll(replace(table, case_ids=["P", "P"]), with_slides=True, stems={"P"})
    assert not Roll(_table({"P": "R"}), with_slides=True, stems={"P", "R"}).slide_is_case, "a slide column is obeyed"
