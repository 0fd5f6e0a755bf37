"""GDC manifests (`gdc_manifest*.txt`, `MANIFEST.txt`): which files a download should hold, and their MD5.

Left out: sizes and states, which MD5 makes superfluous.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from gimp_ray.cohort.readers.genes_head import TEXT_FAULTS, FileHead, open_text
from gimp_ray.errors import InputError


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a download: GDC's id, its name without folders, its MD5 (empty where not said)."""

    file_id: str
    name: str
    md5: str


def fits(head: FileHead) -> bool:
    """Whether the header is that of a GDC manifest."""
    return {"id", "filename", "md5"}.issubset(name.lower() for name in head.fields())


def read_manifest(path: Path) -> list[ManifestEntry]:
    """The files of a manifest; InputError where it cannot be read."""
    try:
        with open_text(path) as stream:
            rows = list(csv.DictReader((line for line in stream if not line.startswith("#")), delimiter="\t"))
        return [
            ManifestEntry(row["id"], row["filename"].replace("\\", "/").rpartition("/")[2], (row["md5"] or "").lower())
            for row in rows
            if row.get("filename")
        ]
    except (*TEXT_FAULTS, csv.Error, KeyError) as error:
        what, expected = "the manifest cannot be read", "columns id, filename, md5"
        fix = "download the manifest again, or move it away: files are then not compared with their MD5"
        raise InputError(what, file=path, expected=expected, found=str(error), fix=fix) from error
