"""What a bad input is: a small good cohort, a function that spoils it, and what `gimp ingest` promises then.

The tables of cases are in `bad_patches.py`, `bad_genes.py` and `bad_tables.py`; inputs that look odd and are good are
in `tolerated.py`. Left out: running them (`test_bad_inputs.py`), and what the machine does to an ingest
(`test_machine.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from cohort_files import Sources, make_sources, write_csv
from gene_files import sheet_row, write_sheet, write_star

CASES = ("A0", "A1", "B0", "B1")
STORED_CASES = ("AX0", "BX0", "BX1")
# the case and the slide that are spoiled
CASE, SLIDE = "A1", "A1-DX1"


@dataclass
class Inputs:
    """A cohort's files and the arguments that name them; a case of the corpus changes either."""

    sources: Sources
    genes: list[Path]
    cases: list[Path]
    splits: Path | None = None
    sheet: Path | None = None
    patches: Path | None = None
    options: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder of all the files."""
        return self.sources.root

    @property
    def slide(self) -> Path:
        """The patch file that is spoiled."""
        return self.sources.patches / f"{SLIDE}.h5"

    def instead(self, ending: str) -> Path:
        """A place for the spoiled slide in another format; its h5 file is gone."""
        self.slide.unlink()
        return self.slide.with_suffix(ending)

    def rows(self, *more: Sequence[str]) -> None:
        """Write the case table with more rows."""
        self.sources.rows += [list(row) for row in more]
        self.sources.write_cases()

    def arguments(self, out: Path) -> list[str]:
        """The command line of `gimp`."""
        command = ["ingest", "--cases", *_between("--cases", self.cases), "--out", str(out)]
        command += ["--workers", "1", "--progress", "false"]
        for name, paths in (
            ("--patches", [self.patches]), ("--genes", self.genes), ("--splits", [self.splits]),
            ("--sample-sheet", [self.sheet]),
        ):  # fmt: skip
            for path in paths:
                command += [] if path is None else [name, str(path)]
        return command + self.options


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        name: what is wrong.
        spoil: makes it so.
        says: what the message must contain: what is wrong, the file's name, what was found.
        left_out: cases that are not in the store without `--strict`.
        refused: whether it is refused without `--strict` as well.
        kind: of the cohort, a key of `COHORTS`.
        has_file: whether a file is to blame.
    """

    name: str
    spoil: Callable[[Inputs], object]
    says: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    refused: bool = False
    kind: str = "plain"
    has_file: bool = True


def left_out(name: str, spoil: Callable[[Inputs], object], *says: str, case: str = CASE, kind: str = "plain") -> Case:
    """A fault for which one case is left out, and `--strict` refuses."""
    return Case(name, spoil, says, (case,), kind=kind)


def passed_over(name: str, spoil: Callable[[Inputs], object], *says: str) -> Case:
    """A fault of a row or file that no kept case hangs on; `--strict` refuses."""
    return Case(name, spoil, says)


def refused(name: str, spoil: Callable[[Inputs], object], *says: str, kind: str = "plain") -> Case:
    """A contradiction: refused with and without `--strict`."""
    return Case(name, spoil, says, refused=True, kind=kind)


def option(*options: str) -> Callable[[Inputs], object]:
    """Further options of the command line."""
    return lambda i: i.options.extend(options)


def wrong_option(name: str, *options: str, says: Sequence[str]) -> Case:
    """An option with an impossible value, which no file is to blame for."""
    return Case(name, option(*options), tuple(says), refused=True, has_file=False)


def plain_cohort(root: Path, case_ids: Sequence[str] = CASES) -> Inputs:
    """Four cases with CLAM's h5 files, a gene matrix as TSV and a case table as CSV."""
    sources = make_sources(root, case_ids=case_ids)
    return Inputs(sources, [sources.genes], [sources.cases], patches=sources.patches)


def star_cohort(root: Path, case_ids: Sequence[str] = CASES) -> Inputs:
    """The plain cohort with a folder of GDC's STAR counts and its sample sheet in place of the matrix."""
    inputs = plain_cohort(root, case_ids)
    inputs.sources.genes.unlink()
    folder = root / "gdc"
    rows = []
    for number, case_id in enumerate(case_ids):
        rows.append(sheet_row(write_star(star_file(inputs, case_id), seed=number + 1), f"{case_id}-01A", case=case_id))
    inputs.sheet = write_sheet(root / "gdc_sample_sheet.tsv", rows)
    inputs.genes = [folder]
    return inputs


def star_file(inputs: Inputs, case_id: str = CASE) -> Path:
    """Where GDC's client puts the file of a case."""
    return inputs.root / "gdc" / f"uuid-{case_id}" / f"{case_id.lower()}.rna_seq.augmented_star_gene_counts.tsv"


def copied(inputs: Inputs, root: Path) -> Inputs:
    """The same cohort with its files copied to `root`, which is faster than making them again."""
    shutil.copytree(inputs.root, root)

    def there(path: Path | None) -> Path | None:
        return None if path is None else root / path.relative_to(inputs.root)

    def all_there(paths: Sequence[Path]) -> list[Path]:
        return [root / path.relative_to(inputs.root) for path in paths]

    copy = deepcopy(inputs)
    copy.sources.root = root
    copy.genes, copy.cases = all_there(inputs.genes), all_there(inputs.cases)
    copy.splits, copy.sheet, copy.patches = there(inputs.splits), there(inputs.sheet), there(inputs.patches)
    return copy


COHORTS: dict[str, Callable[..., Inputs]] = {"plain": plain_cohort, "star": star_cohort}


def split_table(inputs: Inputs, rows: Sequence[Sequence[str]], header: Sequence[str] = ("case_id", "part")) -> Path:
    """A split table, given with `--splits`."""
    inputs.splits = write_csv(inputs.root / "splits.csv", header, rows)
    return inputs.splits


def _between(option: str, paths: Sequence[Path]) -> list[str]:
    """Paths with the option in front of each but the first."""
    return [text for i, path in enumerate(paths) for text in ([option] if i else []) + [str(path)]]
