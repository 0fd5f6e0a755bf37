"""The Dockerfile's lines: what it copies exists and reaches the build, versions are the pinned ones, nobody is root.

No image is built here: that needs Docker and the network.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def _instructions() -> list[tuple[str, str]]:
    """(instruction, its text) in order, comments left out and continued lines joined."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def _copies() -> list[tuple[list[str], str]]:
    """(sources, destination) of every COPY."""
    found = []
    for word, rest in _instructions():
        if word == "COPY":
            places = [place for place in rest.split() if not place.startswith("--")]
            found.append((places[:-1], places[-1]))
    return found


def _pinned() -> dict[str, str]:
    return dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))


def test_the_base_is_the_pinned_ray_with_a_gpu() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in _instructions() if word == "ARG")
    (base,) = [rest for word, rest in _instructions() if word == "FROM"]
    base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
    assert base == f"rayproject/ray:{_pinned()['ray']}-py311-gpu"


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = [source for sources, _ in _copies() for source in sources]
    assert set(copied) == let_in
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_wheel_has_all_it_is_made_of() -> None:
    """Every file and folder pyproject.toml builds from is in the build folder, at its own place."""
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", *re.findall(r'^readme = "(.+)"', project, re.M)}
    needed |= set(re.findall(r'"(.+?)"', re.findall(r"^license-files = \[(.+)\]", project, re.M)[0]))
    needed |= set(re.findall(r'"(.+?)"', re.findall(r"^packages = \[(.+)\]", project, re.M)[0]))
    needed |= set(re.findall(r'^"(.+)" = "gimp_ray/', project, re.M))
    there = {
        str(PurePosixPath(destination) / source) if destination.endswith("/") else destination
        for sources, destination in _copies()
        for source in sources
    }
    assert {f"/home/ray/build/{name}" for name in needed} <= there
    installed = [rest for word, rest in _instructions() if word == "RUN" and "pip install" in rest]
    assert len(installed) == 1
    assert "--constraint build/constraints.txt './build[formats]'" in installed[0]


def test_the_entry_points_are_where_the_manifests_look() -> None:
    assert (["jobs"], "/home/ray/jobs") in _copies()


def test_no_build_of_torch_without_cuda_can_come() -> None:
    runs = [rest for word, rest in _instructions() if word in ("RUN", "ARG")]
    assert not any("whl/cpu" in rest for rest in runs)
    assert "+" not in _pinned()["torch"]
    assert any("assert torch.version.cuda" in rest for rest in runs)


def test_the_user_is_not_root() -> None:
    users = [rest for word, rest in _instructions() if word == "USER"]
    assert users == ["ray"]
    assert all("--chown=1000:100" in rest for word, rest in _instructions() if word == "COPY")


def test_it_says_that_it_was_not_built() -> None:
    assert "the image itself was not built" in TEXT
