"""Sample sheets: which file or sample belongs to which case, and what kind of tissue it is.

Read are GDC's `gdc_sample_sheet.*.tsv` (with `Sample Type`, or since 2024 `Tissue Type` and `Tumor Descriptor`), GDC's
metadata JSON, cBioPortal's `data_clinical_sample.txt`, and any CSV or TSV with such columns. A cell that lists several
values is taken where they agree.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes.files import Head as FileHead
from gimp_ray.io.text import TEXT_FAULTS, open_text, require_file, separator_of

_COLUMNS = {
    "file": "file_name filename file",
    "file_id": "file_id fileid",
    "case": "case_id case patient_id patient case_submitter_id submitter_id",
    "sample": "sample_id sample sample_submitter_id sample_barcode barcode aliquot_id aliquot",
    "kind": "sample_type",
    "tissue": "tissue_type",
    "descriptor": "tumor_descriptor",
    "preservation": "preservation_method",
    "unit": "unit gene_unit",
}
_FIELD_OF = {spelling: name for name, spellings in _COLUMNS.items() for spelling in spellings.split()}


@dataclass(frozen=True)
class SheetRow:
    """What a sheet says of one file or sample.

    Args:
        case: its case, a sample's barcode where the sheet gives nothing else; None where the row has several cases.
        sample: the sample's own name.
        kind: sample type as the sheet writes it.
        ffpe: fixed in formalin.
        unit: unit of the values.
        trouble: why the row cannot be used, one sentence.
    """

    case: str | None
    sample: str | None = None
    kind: str | None = None
    ffpe: bool = False
    unit: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class SampleSheet:
    """Rows by file name and file id, and by sample name."""

    path: Path
    by_file: dict[str, SheetRow] = field(default_factory=dict)
    by_sample: dict[str, SheetRow] = field(default_factory=dict)

    def row_of(self, path: Path) -> SheetRow | None:
        """The row of a file: by its name, with or without `.gz`, or by GDC's id in the name of its folder."""
        plain = path.name.removesuffix(".gz")
        for key in (path.name, plain, f"{plain}.gz", path.parent.name):
            if key in self.by_file:
                return self.by_file[key]
        return None


def fits(head: FileHead) -> bool:
    """Whether a text file looks like a sample sheet of files."""
    fields = {_field(name) for name in head.fields}
    return "file" in fields and bool(fields & {"case", "sample"})


def read_sample_sheet(path: Path) -> SampleSheet:
    """Read a sample sheet.

    Raises:
        InputError: no such file, no columns that tell of files or samples and cases, or rows that contradict.
    """
    require_file(path, "sample sheet")
    sheet = SampleSheet(path)
    for row in _rows(path):
        entry = _entry(row)
        keys = [row.get("file", "").rpartition("/")[2], row.get("file_id", "")]
        for key in filter(None, keys):
            _add(sheet.by_file, key, entry, path)
        if entry.sample and entry.case:
            known = sheet.by_sample.setdefault(entry.sample, entry)
            if known.case != entry.case:
                raise _contradiction(path, entry.sample, known, entry)
    if not sheet.by_file and not sheet.by_sample:
        raise _no_sheet(path, "no rows with a file or sample and its case")
    return sheet


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open_text(path) as stream:
            begin = stream.read(1)
            stream.seek(0)
            if begin in ("[", "{"):
                yield from _json_rows(json.load(stream), path)
                return
            lines = (line for line in stream if line.strip() and not line.startswith("#"))
            header = next(lines, "")
            separator = separator_of(header)
            names = [_field(name) for name in next(csv.reader([header], delimiter=separator), [])]
            if not {"case", "sample"}.intersection(names) or not {"file", "sample"}.intersection(names):
                raise _no_sheet(path, header.strip()[:200] or "an empty file")
            for cells in csv.reader(lines, delimiter=separator):
                row: dict[str, str] = {}
                for name, cell in zip(names, cells, strict=False):
                    if name is not None:
                        row.setdefault(name, cell.strip())
                yield row
    except (*TEXT_FAULTS, csv.Error, json.JSONDecodeError) as error:
        raise _no_sheet(path, str(error)) from error


def _json_rows(document: Any, path: Path) -> Iterator[dict[str, str]]:
    """Rows of GDC's metadata JSON."""
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise _no_sheet(path, "JSON that is no list of files")
    for item in document:
        entities = [e.get("entity_submitter_id") for e in item.get("associated_entities") or []]
        cases = item.get("cases") or []
        samples = [sample for case in cases for sample in case.get("samples") or []]
        yield {
            "file": item.get("file_name") or "",
            "file_id": item.get("file_id") or "",
            "case": _listed(case.get("submitter_id") for case in cases),
            "sample": _listed(entities) or _listed(s.get("submitter_id") for s in samples),
            "kind": _listed(s.get("sample_type") for s in samples),
            "preservation": _listed(s.get("preservation_method") for s in samples),
        }


def _listed(values: Iterable[str | None]) -> str:
    return ", ".join(value for value in values if value)


def _entry(row: Mapping[str, str]) -> SheetRow:
    samples = _values(row.get("sample"))
    cases = _values(row.get("case")) or samples[:1]
    kinds = _values(row.get("kind"))
    if not kinds and row.get("tissue"):
        descriptors = _values(row.get("descriptor")) or [""]
        kinds = [f"{tissue} {descriptors[0]}".strip() for tissue in _values(row.get("tissue"))]
    trouble = None
    if len(cases) != 1:
        trouble = "the sample sheet names several cases for it" if cases else "the sample sheet names no case for it"
    elif len(kinds) > 1:
        trouble = f"the sample sheet names several kinds of sample for it ({', '.join(kinds)})"
    return SheetRow(
        case=cases[0] if len(cases) == 1 else None,
        sample=samples[0] if samples else None,
        kind=kinds[0] if len(kinds) == 1 else None,
        ffpe="ffpe" in row.get("preservation", "").lower(),
        unit=row.get("unit") or None,
        trouble=trouble,
    )


def _values(cell: str | None) -> list[str]:
    """The different values of a cell that may list several, in order."""
    parts = (part.strip() for part in re.split(r"[,;]", cell or ""))
    return list(dict.fromkeys(part for part in parts if part and part != "--"))


def _field(name: str) -> str | None:
    return _FIELD_OF.get(re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_"))


def _add(rows: dict[str, SheetRow], key: str, entry: SheetRow, path: Path) -> None:
    known = rows.setdefault(key, entry)
    if known != entry:
        raise _contradiction(path, key, known, entry)


def _contradiction(path: Path, name: str, one: SheetRow, other: SheetRow) -> InputError:
    return InputError(
        f"the sample sheet has two rows for {name} that differ",
        file=path,
        case=one.case,
        expected="one row a file, one case a sample",
        found=f"{one.case} {one.sample or ''} and {other.case} {other.sample or ''}",
        fix="correct the sample sheet",
    )


def _no_sheet(path: Path, found: str) -> InputError:
    return InputError(
        "this is no sample sheet",
        file=path,
        expected="columns File Name or Sample ID, and Case ID (GDC's sample sheet, a metadata JSON, or your own table)",
        found=found,
        fix="download the sample sheet of the cart from the GDC portal, or write a table with these columns",
    )
