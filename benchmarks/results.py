"""A table or a sweep as a section of docs/results.md: `python -m benchmarks.results FOLDER --section NAME`.

FOLDER is what `gimp table` or `gimp sweep` wrote. Its page goes in as it is, one level lower, with its figures copied
to docs/images. Nothing is measured here; docs/results.md names the commands that make the stores and the tables.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _store_timing import machine
from _tables import replace_section

DOCS = Path(__file__).parents[1] / "docs"
# a figure of every table that says nothing a section does not
LEFT_OUT = ("table.png",)


def section_of(folder: Path, name: str, images: Path, about: str = "", title: str = "") -> str:
    """The page of a table or a sweep for docs/results.md, and its figures beside it.

    Args:
        folder: written by `gimp table` or `gimp sweep`.
        name: of the section; figures are named after it.
        images: folder for figures, in docs.
        about: a paragraph put under the title.
        title: in place of the page's own.
    """
    written = folder / "table.md" if (folder / "table.md").exists() else folder / "sweep.md"
    page = re.sub(r"^#", "##", written.read_text(encoding="utf-8").strip(), flags=re.MULTILINE)
    for file in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        if file in LEFT_OUT:
            page = re.sub(rf"!\[[^]]*\]\({re.escape(file)}\)\n+\*[^\n]*\*\n*", "", page)
            continue
        images.mkdir(parents=True, exist_ok=True)
        image = f"{name}-{Path(file).name}"
        shutil.copyfile(folder / file, images / image)
        page = page.replace(f"]({file})", f"](images/{image})")
    page = re.sub(r"^Made by `.*$", "", page, flags=re.MULTILINE)  # names folders; the commands stand in the docs
    own_title, _, rest = page.partition("\n")
    about_machine = machine()
    made = (
        f"{about_machine['cpu']}, {about_machine['cores']} cores, torch {about_machine['torch']}, "
        f"{datetime.date.today().isoformat()}."
    )
    return "\n\n".join(part for part in (f"## {title}" if title else own_title, about, rest.strip(), made) if part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Put one into docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the table or the sweep")
    parser.add_argument("--section", required=True, help="name of the section")
    parser.add_argument("--about", default="", help="a paragraph under the title")
    parser.add_argument("--title", default="", help="in place of the page's own")
    options = parser.parse_args(arguments)
    text = section_of(options.folder, options.section, DOCS / "images", options.about, options.title)
    replace_section(DOCS / "results.md", options.section, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
