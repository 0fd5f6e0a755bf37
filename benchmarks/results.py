"""A table or a sweep as a section of docs/results.md: `python -m benchmarks.results FOLDER --section NAME`.

FOLDER is what `gimp table` or `gimp sweep` wrote. Its page goes in as it is, one level lower, with its figures copied
to docs/images. Nothing is measured here; docs/results.md names the commands that make the stores and the tables.
"""

import datetime
import re
import shutil
from pathlib import Path

from benchmarks.common import ROOT, machine, parser, replace_section

# a figure of every table, which shows nothing that the sections do not
LEFT_OUT = "table.png"


def main() -> None:
    """Put one page into docs/results.md."""
    asks = parser(__doc__)
    asks.add_argument("folder", type=Path, help="of the table or the sweep")
    asks.add_argument("--section", required=True, help="name of the section; figures are named after it")
    asks.add_argument("--about", default="", help="a paragraph under the title")
    asks.add_argument("--title", default="", help="in place of the page's own")
    options = asks.parse_args()
    folder, images = options.folder, ROOT / "docs" / "images"
    written = folder / "table.md" if (folder / "table.md").exists() else folder / "sweep.md"
    page = re.sub(r"^#", "##", written.read_text(encoding="utf-8").strip(), flags=re.MULTILINE)
    for file in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        if file == LEFT_OUT:
            page = re.sub(rf"!\[[^]]*\]\({re.escape(file)}\)\n+\*[^\n]*\*\n*", "", page)
            continue
        images.mkdir(parents=True, exist_ok=True)
        image = f"{options.section}-{Path(file).name}"
        shutil.copyfile(folder / file, images / image)
        page = page.replace(f"]({file})", f"](images/{image})")
    page = re.sub(r"^Made by `.*$", "", page, flags=re.MULTILINE)  # names folders; the commands stand in the docs
    own_title, _, rest = page.partition("\n")
    on = machine()
    made = f"{on['cpu']}, {on['cores']} cores, torch {on['torch']}, {datetime.date.today().isoformat()}."
    parts = [f"## {options.title}" if options.title else own_title, options.about, rest.strip(), made]
    replace_section(ROOT / "docs" / "results.md", options.section, "\n\n".join(part for part in parts if part))


if __name__ == "__main__":
    main()
