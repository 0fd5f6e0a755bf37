"""Benchmark results as JSON and as a section of a Markdown file that others also write to.

A section lies between two comment lines with its name; writing it again replaces it and nothing else.
"""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write `result` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(path.suffix + ".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.replace(path)


def replace_section(path: Path, name: str, markdown: str) -> None:
    """Put `markdown` between the markers of section `name`, at the end of the file where it has none yet."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{markdown.strip()}\n{end}"
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
