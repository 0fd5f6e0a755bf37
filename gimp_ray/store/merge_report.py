"""What a merge did: what came from which store, what was left out or filled up, and what a user should know."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gimp_ray.store.manifest import Manifest


@dataclass(frozen=True)
class MergedMember:
    """A store that was merged.

    Attributes:
        place: where it is.
        fingerprint: of what it holds.
        cohorts: cases of each value of the cohort column.
        cases, slides, patches, genes: what it holds.
        genes_left_out: its genes that the merged store lacks.
        genes_filled: genes of the merged store that it lacks; stored as 0 for its cases.
        members: of a merged store, the stores it stands on itself.
    """

    place: str
    fingerprint: str
    cohorts: dict[str, int]
    cases: int
    slides: int
    patches: int
    genes: int
    genes_left_out: int
    genes_filled: int
    members: tuple[str, ...]

    def line(self) -> str:
        """For a person."""
        parts = [f"{self.cases:,} cases"]
        parts += [f"{self.slides:,} slides, {self.patches:,} patches"] if self.slides else []
        parts += [f"{self.genes:,} genes"] if self.genes else []
        parts += [f"{self.genes_left_out:,} of them left out"] if self.genes_left_out else []
        parts += [f"{self.genes_filled:,} genes stored as 0"] if self.genes_filled else []
        return f"  {self.place}: {', '.join(parts)} (cohort {', '.join(self.cohorts)})"


@dataclass(frozen=True)
class MergeReport:
    """The result of `merge_stores`; `to_json` is the store's ingest_report.json.

    Attributes:
        store: place of the merged store.
        manifest: its manifest.
        members: what came from which store, in the order given.
        class_counts: cases of each class.
        split_schemes: stored split schemes and their folds.
        options: as given.
        notes: what a user should know.
    """

    store: str
    manifest: Manifest
    members: tuple[MergedMember, ...]
    class_counts: dict[str, int]
    split_schemes: dict[str, tuple[int, ...]]
    options: dict[str, object]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "fingerprint": self.manifest.fingerprint,
            "options": self.options,
            "merged": [asdict(member) for member in self.members],
            "class_counts": self.class_counts,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        m = self.manifest
        classes = ", ".join(f"{label} {count:,}" for label, count in self.class_counts.items())
        lines = [f"Store {self.store}, merged of {len(self.members)} stores"]
        lines += [member.line() for member in self.members]
        lines.append(f"  cases     {m.num_cases:,} ({classes})")
        if m.dim is not None:
            lines.append(f"  slides    {m.num_slides:,}")
            lines.append(f"  patches   {m.num_patches:,} x {m.dim} {m.dtype}, none copied")
            lines.append(f"  encoder   {m.encoder or 'not named by the stores'}")
        if m.num_genes:
            lines.append(f"  genes     {m.num_genes:,}, unit {m.gene_unit}")
        schemes = "; ".join(f"{name}: {len(folds)} folds" for name, folds in self.split_schemes.items())
        lines.append(f"  splits    {schemes or 'none'}")
        lines.append(f"  contents  {m.fingerprint[:16]}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])
