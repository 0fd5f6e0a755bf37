"""Which case a gene sample belongs to, and which of several samples of a case is used.

A sample is a case's by its exact id, by the sample sheet, or by the patient of its barcode (TCGA, TARGET); two codes of
tissue, where both say one, must agree. What kind of tissue it is, the sample sheet says, else the barcode: 01 primary
tumour, 03, 09 primary blood cancer, 05 new primary, 02, 04, 40 recurrent, 06, 07 metastatic, 10 to 19 normal, 20
control.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gimp_ray.errors import InputError
from gimp_ray.ingest.roll import LeftOut

KIND = "gene sample"
PRIMARY_CODES = (1, 3, 5, 9)  # in the order they are preferred

_BARCODE = re.compile(
    r"(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|TARGET-\d{2}-[A-Z0-9]{6})(?:-(?P<code>\d{2})(?P<vial>[A-Z])?)?(?![A-Z0-9])"
)
_KINDS = {
    "primary tumor": 1,
    "primary solid tumor": 1,
    "primary": 1,
    "tumor primary": 1,
    "tumor": 1,
    "recurrent tumor": 2,
    "recurrent solid tumor": 2,
    "recurrence": 2,
    "primary blood derived cancer - peripheral blood": 3,
    "recurrent blood derived cancer - bone marrow": 4,
    "additional - new primary": 5,
    "metastatic": 6,
    "metastasis": 6,
    "additional metastatic": 7,
    "human tumor original cells": 8,
    "primary blood derived cancer - bone marrow": 9,
    "control analyte": 20,
    "recurrent blood derived cancer - peripheral blood": 40,
    "cell lines": 50,
    "cell line": 50,
    "primary xenograft tissue": 60,
    "xenograft tissue": 60,
    "cell line derived xenograft tissue": 61,
}
# the first word found decides where the whole text is not known
_WORDS = (("normal", 11), ("recurren", 2), ("metasta", 6), ("xenograft", 60), ("cell line", 50), ("primary", 1))


@dataclass(frozen=True)
class Sample:
    """One sample in one file.

    Args:
        name: what a report calls it: its barcode or its file.
        source: number of the source that holds it; `place`: its place there.
        owner: the case or barcode that the sample sheet or a file's folder names; None: the name itself.
        kind: kind of tissue as the sample sheet writes it.
        ffpe: fixed in formalin, as the sample sheet says.
    """

    name: str
    source: int
    place: int
    path: Path
    owner: str | None = None
    kind: str | None = None
    ffpe: bool = False


@dataclass(frozen=True)
class Barcode:
    """The parts of a barcode that tell of a sample; `code` is None where it stops at the patient."""

    patient: str
    code: int | None
    vial: str | None


@dataclass
class Choice:
    """The samples of every case, why others have none, and what was left out."""

    samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    without: dict[str, InputError] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    matched_by_patient: bool = False


def barcode_in(text: str) -> Barcode | None:
    """The barcode in a name, also as R writes it (`TCGA.05.4244.01A`); None where there is none."""
    plain = re.sub(r"[._]", "-", text.upper())
    match = _BARCODE.search(plain)
    if match is None:
        return None
    return Barcode(match["patient"], None if match["code"] is None else int(match["code"]), match["vial"])


def code_of(sample: Sample) -> int | None:
    """The TCGA code of the sample's kind of tissue; None where neither sheet nor barcode says it."""
    if sample.kind is not None:
        plain = re.sub(r"\s+", " ", sample.kind.strip().lower()).replace("tumour", "tumor")
        known = _KINDS.get(plain) or next((code for word, code in _WORDS if word in plain), None)
        if known is not None:
            return known
    barcode = barcode_in(sample.name) or barcode_in(sample.owner or "")
    return None if barcode is None else barcode.code


def choose_samples(samples: Sequence[Sample], case_ids: Collection[str], rule: str) -> Choice:
    """The samples each case uses.

    Args:
        samples: all samples found.
        case_ids: cases of the case table.
        rule: `primary`, `refuse` or `mean` (`GeneOptions.samples`).

    Raises:
        InputError: several samples of a case that the rule cannot choose from.
    """
    choice = Choice()
    owned, choice.matched_by_patient = match_samples(samples, case_ids)
    only_other: list[str] = []
    for case_id, candidates in owned.items():
        if rule == "refuse" and len(candidates) > 1:
            raise _several(case_id, candidates, sum(len(own) > 1 for own in owned.values()))
        usable = [s for s in candidates if s.name == case_id or not _is_normal(code_of(s))]
        if not usable:
            names = ", ".join(s.name for s in candidates)
            choice.without[case_id] = InputError(
                "the case's only gene samples are normal tissue",
                file=candidates[0].path,
                case=case_id,
                expected="a tumour sample",
                found=names,
                fix="add the case's tumour sample to the gene files, or remove its rows",
            )
            continue
        chosen = _best(case_id, usable, rule)
        choice.samples[case_id] = chosen
        if code_of(chosen[0]) not in (None, *PRIMARY_CODES):
            only_other.append(f"{case_id} ({chosen[0].name})")
    if only_other:
        choice.notes.append(
            f"{len(only_other)} cases have no primary tumour; their recurrent or metastatic sample is used: "
            + ", ".join(only_other[:5])
            + (", ..." if len(only_other) > 5 else "")
        )
    averaged = sum(len(chosen) > 1 for chosen in choice.samples.values())
    if averaged:
        choice.notes.append(f"the genes of {averaged} cases are the mean of several samples")
    choice.left_out = _account(samples, owned, choice)
    return choice


def match_samples(samples: Sequence[Sample], case_ids: Collection[str]) -> tuple[dict[str, list[Sample]], bool]:
    """The samples of every case that has some, in the case ids' order, and whether a case was found by its patient.

    A case with samples of its exact id has no others.
    """
    exact: dict[str, list[Sample]] = {}
    by_patient: dict[str, list[tuple[Sample, Barcode]]] = {}
    for sample in samples:
        for name in dict.fromkeys((sample.owner or sample.name, sample.name)):
            exact.setdefault(name, []).append(sample)
        owner = barcode_in(sample.owner or sample.name)
        if owner is not None:
            by_patient.setdefault(owner.patient, []).append((sample, barcode_in(sample.name) or owner))
    owned: dict[str, list[Sample]] = {}
    by_patient_matched = False
    for case_id in case_ids:
        found = exact.get(case_id, [])
        if not found:
            found = _of_patient(case_id, by_patient)
            by_patient_matched = by_patient_matched or bool(found)
        if found:
            owned[case_id] = found
    return owned, by_patient_matched


def _of_patient(case_id: str, by_patient: Mapping[str, Sequence[tuple[Sample, Barcode]]]) -> list[Sample]:
    case = barcode_in(case_id)
    if case is None or not case_id.upper().startswith(case.patient[:4]):
        return []
    found = [(s, b) for s, b in by_patient.get(case.patient, ()) if None in (case.code, b.code) or case.code == b.code]
    same_vial = [s for s, b in found if case.vial is not None and b.vial == case.vial]
    return same_vial or [s for s, _ in found]


def _is_normal(code: int | None) -> bool:
    return code is not None and 10 <= code <= 20


def _best(case_id: str, samples: Sequence[Sample], rule: str) -> tuple[Sample, ...]:
    """The sample to use, or with the rule `mean` all of the best kind."""
    if len(samples) == 1:
        return (samples[0],)
    codes = [code_of(s) for s in samples]
    if None in codes and rule == "primary":
        raise _undecided(case_id, samples)
    if rule == "mean":
        best = min(_group(code) for code in codes)
        return tuple(s for s, code in zip(samples, codes, strict=True) if _group(code) == best)
    return (min(samples, key=_order),)


def _group(code: int | None) -> int:
    """Primary tumours first, then samples of unknown kind, then the rest."""
    return 1 if code is None else 0 if code in PRIMARY_CODES else 2


def _order(sample: Sample) -> tuple[int, bool, str, str, str]:
    """Primary before others, frozen before FFPE, then by vial, then by the name, which ends in plate and aliquot."""
    code = code_of(sample)
    rank = PRIMARY_CODES.index(code) if code in PRIMARY_CODES else 10 + (code or 0)
    barcode = barcode_in(sample.name)
    return rank, sample.ffpe, (barcode.vial if barcode else None) or "", sample.name, str(sample.path)


def _account(samples: Sequence[Sample], owned: Mapping[str, Sequence[Sample]], choice: Choice) -> list[LeftOut]:
    """Every sample that is not used, with its reason."""
    used = {id(s) for chosen in choice.samples.values() for s in chosen}
    case_of = {id(s): case_id for case_id, own in owned.items() for s in own}
    patients = {barcode.patient for barcode in map(barcode_in, owned) if barcode is not None}
    left_out = []
    for sample in samples:
        if id(sample) in used:
            continue
        case_id, found = case_of.get(id(sample)), None
        if case_id is None:
            barcode = barcode_in(sample.owner or sample.name)
            reason = "its case is not in the case table"
            if barcode is not None and barcode.patient in patients:
                reason = "the case table asks for another sample of its patient"
        elif _is_normal(code_of(sample)) and sample.name != case_id:
            reason = "it is normal tissue"
        else:
            reason = "another sample of its case was chosen"
            found = " + ".join(s.name for s in choice.samples.get(case_id, ())) or None
        left_out.append(LeftOut(KIND, sample.name, reason, case_id, str(sample.path), found=found, counts=False))
    return left_out


def _several(case_id: str, samples: Sequence[Sample], cases: int) -> InputError:
    return InputError(
        "a case has several samples in the gene matrix"
        if len({s.path for s in samples}) == 1
        else "a case has several samples in the gene files",
        file=samples[0].path,
        case=case_id,
        expected="one sample a case",
        found=", ".join(s.name for s in samples) + (f"; {cases} such cases" if cases > 1 else ""),
        fix="keep one sample of each case, or say samples: primary (the primary tumour) or mean",
    )


def _undecided(case_id: str, samples: Sequence[Sample]) -> InputError:
    return InputError(
        "a case has several gene samples, and nothing says which is the primary tumour",
        file=samples[0].path,
        case=case_id,
        expected="barcodes with a sample code (TCGA-...-01A), or a sample sheet with Sample Type",
        found=", ".join(s.name for s in samples),
        fix="give a sample sheet with the type of each sample, keep one of them, or say samples: mean",
    )
