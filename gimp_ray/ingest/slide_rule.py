"""Which slides of a case are kept, where it has several: all, TCGA's diagnostic ones, the first of them, the largest.

TCGA's slide barcodes say what a slide is: `TCGA-05-4249-01Z-00-DX1` is the first diagnostic slide (formalin-fixed),
`-01A-01-TS1`, `-BS1` and `-MS1` are frozen sections of the sample that was sequenced. Left out: choosing by stain or
scanner, which slide names do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from gimp_ray.errors import ConfigError

SLIDE_RULES = ("all", "DX", "DX1", "largest")
_DIAGNOSTIC = re.compile(r"-DX(\d+|[A-Z])(?=$|[-_.])", re.IGNORECASE)


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
