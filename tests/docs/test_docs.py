"""The pages say what the code says: keys, defaults, verbs, links, contracts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from gimp_ray.cli.commands import main
from gimp_ray.config_files import describe_keys
from gimp_ray.methods import available

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _prose(page: Path) -> str:
    """A page without its fenced blocks, in which a # is no heading."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_config_page_is_what_the_code_generates() -> None:
    """After a change of gimp_ray/config.py: `python docs/make_config.py`."""
    spec = importlib.util.spec_from_file_location("make_config", ROOT / "docs" / "make_config.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == module.page()


def test_the_method_page_has_the_defaults_of_the_code() -> None:
    """After a change of a default, correct the table of docs/method.md."""
    table = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").partition("## Choices")[2]
    stated = dict(re.findall(r"^\| [^|]+ \| `([\w.]+)` \| `?([^|`]+?)`? \|$", table, flags=re.MULTILINE))
    default = {key: {"None": "unset", "True": "true", "False": "false"}.get(d, d) for key, d, _ in describe_keys()}
    assert len(stated) > 30
    assert stated == {key: default.get(key) for key in stated}


def test_the_method_page_names_every_key_of_the_method() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    sections = ("window", "mask", "triplet", "batch", "model", "genes", "finetune")
    # what is no choice of the method: where a file is, and how the other stages are trained
    kept = [
        key
        for key, _, _ in describe_keys()
        if key.startswith(sections) and ".train." not in key and not key.endswith((".checkpoint", ".init"))
    ]
    stated_as_given = {"window.length", "mask.ratio", "triplet.margin"}
    assert [key for key in kept if f"`{key}`" not in text and key not in stated_as_given] == []


@by_page
def test_every_verb_a_page_shows_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    code += re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(gimp .*)$", text, flags=re.MULTILINE)
    shown = {verb for piece in code for verb in re.findall(r"(?:^|\s)gimp ([a-z][a-z-]*)", piece)}
    assert shown - set(main.commands) == set()


def test_every_verb_is_on_some_page() -> None:
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [verb for verb in main.commands if f"gimp {verb}" not in everything] == []


@by_page
def test_every_key_a_page_shows_exists(page: Path) -> None:
    keys = {key for method in available() for key, _, _ in describe_keys(method)}
    sections = sorted({key.partition(".")[0] for key in keys} - {"store", "run", "seed"})
    keys.add("method.options")  # which means the keys of `method` itself
    groups = {key.rpartition(".")[0] for key in keys}
    pattern = rf"(?:`|--)((?:{'|'.join(sections)})(?:\.[a-z_]+)+)(?=[`: ])"
    shown = set(re.findall(pattern, page.read_text(encoding="utf-8")))
    files = {name for name in shown if name.endswith((".parquet", ".safetensors", ".json", ".yaml"))}
    assert shown - files - keys - groups == set()


@by_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = _prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), target


@by_page
def test_files_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:gimp_ray|tests|jobs|docs|benchmarks|storage_schemas|\.ci)/[\w./-]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_pictures_are_small() -> None:
    assert {file.name: file.stat().st_size for file in (ROOT / "docs" / "images").iterdir()} != {}
    assert all(file.stat().st_size < 150_000 for file in (ROOT / "docs" / "images").iterdir())
