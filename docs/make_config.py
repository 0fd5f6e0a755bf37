"""Writes docs/config.md from the code: `python docs/make_config.py`. A test compares the two."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from gimp_ray.config_files import describe_keys

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Config keys

Made by `python docs/make_config.py` from `gimp_ray/config.py` and `gimp_ray/methods/`; do not edit by hand. `gimp keys`
prints the same list.

A key stands in a YAML file under its sections (`train: {lr: 3.0e-4}`), or on the command line by its dotted name
(`--train.lr 3e-4`), which wins over the file. `null` unsets a key. Unknown keys and impossible values are refused by
name.

These are the keys of GiMP. The sections `split`, `train`, `target`, `evaluate`, `checkpoint`, `log`, `feed` and
`cluster` are those of every method; the others are a method's own (`gimp keys --method mcat`,
[methods.md](methods.md)), and an unknown key is refused with the method's name. Where the command line changes
`method.name` of a file or of a run, keys of the method before that the new one does not have are left out.

The keys of `genes.train` and `finetune.train` say what these stages do differently from `train`; *inherited* means the
value of `train`, except that a `train.stop_after` stops pre-training alone. In the verbs of one stage,
`gimp pretrain-genes` and `gimp finetune`, `--train.epochs` and the other `--train.*` options that a stage can set go to
that stage. The options of `gimp ingest` and `gimp synth` are no config keys: see their `--help`.
"""
SHOWN = {"None": "unset", "inherited": "*inherited*", "True": "`true`", "False": "`false`"}


def page() -> str:
    """The whole page: one table a section."""
    parts = [HEAD]
    for section, rows in groupby(describe_keys(), key=lambda row: row[0].rpartition(".")[0]):
        parts.append(f"## `{section}`\n" if section else "## The run\n")
        parts.append("| key | default | meaning |\n|---|---|---|")
        parts += [f"| `{key}` | {SHOWN.get(default, f'`{default}`')} | {meaning} |" for key, default, meaning in rows]
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
