"""Figures and `summary.md` of a run, made from its run folder alone, without the store or a model."""

from gimp_ray.reports.summary import write_report

__all__ = ["write_report"]
