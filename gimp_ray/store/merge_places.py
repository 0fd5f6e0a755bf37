"""How a merged store names the stores it stands on: relative to itself where both can move together, else by URI.

Left out: opening them (`places.py`, `parts.py`).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gimp_ray.io import storage


def canonical(place: str | os.PathLike[str]) -> str:
    """An absolute local path, or a URI, without `..`, without a slash at its end; a `file://` URI is a local path."""
    text = storage.absolute(place)
    if not storage.is_uri(text):
        return text
    if text.startswith("file://"):
        return str(Path(unquote(urlsplit(text).path)).absolute())
    return below(text, "")


def below(place: str, name: str) -> str:
    """What a store at `place` calls `name`: a relative name, an absolute path or a URI; canonical."""
    if storage.is_uri(name) or name.startswith("/"):
        return canonical(name)
    if not storage.is_uri(place):
        return posixpath.normpath(posixpath.join(place, name))
    parts = urlsplit(place)
    path = posixpath.normpath(posixpath.join("/" + parts.path.lstrip("/"), name)).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}{_query(parts.query)}"


def name_from(target: str, start: str) -> str:
    """How a store at `start` names `target` (both canonical): relative on one disk or in one bucket, else a URI."""
    local = [not storage.is_uri(place) for place in (target, start)]
    if all(local):
        return posixpath.relpath(target, start)
    if any(local):
        return Path(target).as_uri() if local[0] else target
    there, here = urlsplit(target), urlsplit(start)
    if (there.scheme, there.netloc, there.query) != (here.scheme, here.netloc, here.query):
        return target
    return posixpath.relpath(there.path or "/", here.path or "/")


def inside(place: str, folder: str) -> bool:
    """Whether `place` is `folder` or lies in it (both canonical)."""
    name = name_from(place, folder)
    return not storage.is_uri(name) and name.split("/")[0] != ".."


def short_names(found: Sequence[str]) -> list[str]:
    """A name for each of several places: its last folder that the others do not share, with those above if need be."""
    parts = [place.partition("?")[0].rstrip("/").split("/") for place in found]
    while len({names[-1] for names in parts}) == 1 and min(map(len, parts)) > 1 and len(parts) > 1:
        parts = [names[:-1] for names in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part for part in some[-depth:] if part) for some in parts]
        if len(set(names)) == len(names):
            break
    return names


def _query(text: str) -> str:
    return f"?{text}" if text else ""
