"""Case tables: cases, labels, slides and clinical columns, from one file or several joined by case (`read_cases`)."""

from gimp_ray.ingest.cases.table import CaseOptions, CaseTable, read_cases, slide_stem

__all__ = ["CaseOptions", "CaseTable", "read_cases", "slide_stem"]
