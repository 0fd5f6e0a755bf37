"""Inputs that look odd and are good: they give the store that the clean ones give, under `--strict`."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.corpus import CASES, Inputs, split_table

BOM = b"\xef\xbb\xbf"
Change = Callable[[bytes], bytes]


def with_splits(inputs: Inputs) -> Inputs:
    """The cohort with a split table, so that all three tables can be odd."""
    split_table(
        inputs, [[case_id, part] for case_id, part in zip(CASES, ("train", "val", "test", "train"), strict=True)]
    )
    return inputs


def tables(change: Change) -> Callable[[Inputs], object]:
    """Case table, gene matrix and split table with their bytes changed."""

    def make_odd(inputs: Inputs) -> None:
        assert inputs.splits is not None
        for path in (inputs.sources.cases, inputs.sources.genes, inputs.splits):
            path.write_bytes(change(path.read_bytes()))

    return make_odd


def _windows(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _cases(change: Change) -> Callable[[Inputs], object]:
    return lambda i: i.sources.cases.write_bytes(change(i.sources.cases.read_bytes()))


def _renamed(change: Callable[[Path], Path]) -> Callable[[Inputs], object]:
    def make_odd(inputs: Inputs) -> None:
        for path in list(inputs.sources.patches.iterdir()):
            path.rename(change(path))

    return make_odd


def _plain_under_the_name_gz(inputs: Inputs) -> None:
    inputs.genes = [inputs.sources.genes.rename(inputs.root / "genes.tsv.gz")]
    inputs.cases = [inputs.sources.cases.rename(inputs.root / "cases.csv.gz")]


def _gz_under_a_plain_name(inputs: Inputs) -> None:
    for path in (inputs.sources.genes, inputs.sources.cases):
        path.write_bytes(gzip.compress(path.read_bytes()))


def _linked(inputs: Inputs) -> None:
    """Every patch file is a symbolic link, and so is their folder."""
    patches, elsewhere = inputs.sources.patches, inputs.root / "elsewhere"
    patches.rename(elsewhere)
    (inputs.root / "links").mkdir()
    for path in elsewhere.iterdir():
        (inputs.root / "links" / path.name).symlink_to(path)
    patches.symlink_to("links")


def _other_files(inputs: Inputs) -> None:
    """What macOS, people and tools leave in a folder."""
    for name in (".DS_Store", "._A1-DX1.h5", "README.txt", "A1-DX1.jpg", "Thumbs.db"):
        (inputs.sources.patches / name).write_bytes(b"notes")
    (inputs.sources.patches / "thumbnails").mkdir()


def _a_loop_of_links_inside(inputs: Inputs) -> None:
    """A link in the folder of patches leads back to it."""
    (inputs.sources.patches / "again").symlink_to("..")
    (inputs.sources.patches / "loop").symlink_to("loop")


def _other_order(data: bytes) -> bytes:
    header, *rows = data.decode().splitlines()
    return "\n".join([header, *rows[::-1]]).encode() + b"\n"


def _blanks(data: bytes) -> bytes:
    return b"\n".join(b" , ".join(line.split(b",")) for line in data.splitlines()) + b"\n"


def _relative(inputs: Inputs) -> None:
    """Paths with `..` and doubled slashes in them."""
    inputs.patches = inputs.root / "nowhere" / ".." / "patches"
    (inputs.root / "nowhere").mkdir()
    inputs.genes = [Path(f"{inputs.root}//./genes.tsv")]


def _copied(inputs: Inputs) -> None:
    shutil.copytree(inputs.sources.patches, inputs.root / "patients 1 & 2 (März)")
    inputs.patches = inputs.root / "patients 1 & 2 (März)"


TOLERATED: dict[str, Callable[[Inputs], object]] = {
    "Windows newlines": tables(_windows),
    "a byte-order mark": tables(lambda data: BOM + data),
    "Windows newlines and a byte-order mark": tables(lambda data: BOM + _windows(data)),
    "no newline at the end": tables(lambda data: data.rstrip(b"\r\n")),
    "empty lines at the end": tables(lambda data: data + b"\n\n"),
    "a gz that is not gz": _plain_under_the_name_gz,
    "a gz under a plain name": _gz_under_a_plain_name,
    "cases as TSV": _cases(lambda data: data.replace(b",", b"\t")),
    "quotes around every value": _cases(
        lambda data: b"\n".join(b'"' + line.replace(b",", b'","') + b'"' for line in data.splitlines()) + b"\n"
    ),
    "blanks around the values": _cases(_blanks),
    "rows in another order": _cases(_other_order),
    "slides without an ending": _cases(lambda data: data.replace(b".svs", b"")),
    "endings in capitals": _renamed(lambda path: path.with_suffix(".H5")),
    "files named after the slide's file": _renamed(lambda path: path.with_name(f"{path.stem}.svs.h5")),
    "symbolic links": _linked,
    "a loop of symbolic links": _a_loop_of_links_inside,
    "other files beside": _other_files,
    "paths that go up and down": _relative,
    "blanks and umlauts in a path": _copied,
}
