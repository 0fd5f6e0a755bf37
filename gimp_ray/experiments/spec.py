"""What a table is: a title, settings common to all rows, and the rows; from a preset or a user's YAML.

    title: Window length
    base: {finetune: {train: {epochs: 70}}}
    rows:
      - {name: L = 6000, config: {window.length: 6000}}
      - {name: L = 1500, config: {window.length: 1500}, paper: {accuracy: 0.95}, group: short}

Config keys are checked when `runs.py` makes the runs' configs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gimp_ray.config import Section
from gimp_ray.config_files import read_yaml
from gimp_ray.errors import ConfigError

# the metrics shown of each kind of target
SHOWN = {"class": ("accuracy", "auroc"), "labels": ("auroc", "average_precision"), "survival": ("c_index",)}
NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "c_index": "C-index",
}


class RowSpec(Section):
    """A row: what is computed for it, and what the paper says."""

    name: str = Field(min_length=1, description="shown in the table; its folder is named after it")
    group: str = Field("", description="heading it stands under")
    config: dict[str, Any] = Field(
        {}, description="config keys of this row, dotted or nested; they win over all others"
    )
    paper: dict[str, float] = Field({}, description="metrics a publication reports, for a column of their own")
    after: str | None = Field(
        None, description="another row, whose pre-trained model this one is fine-tuned from; it must differ after that"
    )
    note: str = Field("", description="a sentence under the table")

    @field_validator("paper")
    @classmethod
    def _known_metrics(cls, paper: dict[str, float]) -> dict[str, float]:
        for name in paper:
            if name not in NAMES:
                raise ValueError(f"'{name}' is no metric; known are {', '.join(NAMES)}")
        return paper

    @property
    def slug(self) -> str:
        """Name of the row's folder."""
        return slug_of(self.name)


class TableSpec(Section):
    """A table."""

    title: str = Field(min_length=1)
    note: str = Field("", description="sentences of the caption")
    base: dict[str, Any] = Field({}, description="config keys of every row, dotted or nested")
    rows: list[RowSpec] = Field(min_length=1)
    tsne: list[str] = Field([], description="rows whose CLS_pat are drawn side by side")
    folds: int | None = Field(None, ge=1, description="the first so many folds of the split scheme; unset: all it has")
    seeds: int = Field(3, ge=1, description="seeds 0, 1, ... of every row and fold")

    @model_validator(mode="after")
    def _rows_fit_together(self) -> TableSpec:
        names, slugs = [row.name for row in self.rows], [row.slug for row in self.rows]
        for name, slug in zip(names, slugs, strict=True):
            if not slug:
                raise ValueError(f"the row name '{name}' has neither a letter nor a digit")
            if slugs.count(slug) > 1:
                raise ValueError(f"two rows would have the folder '{slug}'; give them names that differ more")
        for name in self.tsne:
            if name not in names:
                raise ValueError(f"tsne names '{name}', which is no row; rows are {', '.join(names)}")
        for row in self.rows:
            if row.after is None:
                continue
            if row.after not in names or row.after == row.name:
                raise ValueError(f"'{row.name}' is to come after '{row.after}', which is no other row")
            if self.row(row.after).after is not None:
                raise ValueError(f"'{row.name}' comes after '{row.after}', which itself comes after a row")
        return self

    def row(self, name: str) -> RowSpec:
        return next(row for row in self.rows if row.name == name)


def slug_of(name: str) -> str:
    """A name as a folder: lower case, letters and digits, dashes between them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def presets() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in (resources.files(__package__) / "presets").iterdir()
        if file.name.endswith(".yaml")
    )


def load_table(name: str | Path) -> TableSpec:
    """A preset by its name, or a table of a YAML file.

    Raises:
        ConfigError: there is no such preset or file, or a key or row of it is wrong.
    """
    if str(name) in presets():
        tree = yaml.safe_load((resources.files(__package__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
        return build_table(tree, str(name))
    if not Path(name).is_file():
        raise ConfigError(
            f"there is no table '{name}'",
            expected=f"{', '.join(presets())}, or a YAML file",
            found="neither",
            fix="correct the name or path",
        )
    return build_table(read_yaml(name), name)


def build_table(tree: dict[str, Any], file: str | Path | None = None) -> TableSpec:
    """Check a mapping and make it a table.

    Raises:
        ConfigError: names the key or row that is wrong.
    """
    try:
        return TableSpec.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = RowSpec.model_fields if key.startswith("rows.") else TableSpec.model_fields
            expected = "one of " + ", ".join(known)
            raise ConfigError(f"unknown key '{key}' of a table", file=file, expected=expected, found=key) from None
        found = repr(first["input"]) if key else "a table with it"
        raise ConfigError(
            f"the table cannot be read{f': {key}' if key else ''}",
            file=file,
            expected=first["msg"].removeprefix("Value error, "),
            found=found[:200],
            fix="correct the table",
        ) from None


def chosen_rows(table: TableSpec, names: list[str]) -> TableSpec:
    """The table with some of its rows, in the table's order; the rows that they come after stay as well.

    Raises:
        ConfigError: a name is no row.
    """
    known = [row.name for row in table.rows]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"the table has no row '{name}'", expected=", ".join(known), found=name, fix="correct the row's name"
            )
    return _with_rows(table, {*names, *(row.after for row in table.rows if row.name in names and row.after)})


def without_rows(table: TableSpec, names: Iterable[str]) -> TableSpec:
    """The table without some of its rows.

    Raises:
        ConfigError: none is left, or one that stays comes after one that goes.
    """
    return _with_rows(table, {row.name for row in table.rows} - set(names))


def _with_rows(table: TableSpec, kept: Collection[str]) -> TableSpec:
    tree = table.model_dump()
    tree["rows"] = [row for row in tree["rows"] if row["name"] in kept]
    tree["tsne"] = [name for name in table.tsne if name in kept]
    return build_table(tree)
