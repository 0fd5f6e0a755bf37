"""Tables are refused by key and row; the presets have the rows of the specification and configs that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gimp_ray.config_files import flatten, load_config
from gimp_ray.errors import ConfigError
from gimp_ray.experiments.runs import plan_cells
from gimp_ray.experiments.spec import build_table, chosen_rows, load_table, presets
from gimp_ray.methods import available
from gimp_ray.store import CohortStore

ROWS: list[dict[str, Any]] = [{"name": "GiMP"}, {"name": "short", "config": {"window": {"length": 1500}}}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"rows": [{"name": "a", "confg": {}}]}, "unknown key 'rows.0.confg'"),
        ({"rows": []}, "rows"),
        ({"rows": [{"name": "A b"}, {"name": "a-B"}]}, "folder 'a-b'"),
        ({"rows": [{"name": "!?"}]}, "neither a letter nor a digit"),
        ({"rows": [{"name": "a", "paper": {"acuracy": 0.9}}]}, "'acuracy' is no metric"),
        ({"rows": [{"name": "a", "after": "b"}]}, "comes? after|to come after 'b'"),
        ({"rows": [{"name": "a"}, {"name": "b", "after": "a"}, {"name": "c", "after": "b"}]}, "itself comes after"),
        ({"tsne": ["GIMP"]}, "tsne names 'GIMP'"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_table({"title": "t", "rows": ROWS} | change, "mine.yaml")
    assert caught.match(says) or says in str(caught.value.expected) or pytest.fail(str(caught.value))
    assert caught.value.file == "mine.yaml"


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no table 'table3'") as caught:
        load_table("table3")
    assert "table1, table2" in str(caught.value.expected)
    broken = tmp_path / "broken.yaml"
    broken.write_text("rows: [}")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_table(broken)


def test_chosen_rows_bring_the_rows_they_come_after() -> None:
    table = build_table({"title": "t", "rows": [*ROWS, {"name": "lr", "after": "GiMP"}], "tsne": ["short", "lr"]})
    chosen = chosen_rows(table, ["lr"])
    assert [row.name for row in chosen.rows] == ["GiMP", "lr"] and chosen.tsne == ["lr"]
    with pytest.raises(ConfigError, match="no row 'GIMP'"):
        chosen_rows(table, ["GIMP"])


def test_every_row_of_a_preset_has_a_config_and_the_figures_of_the_paper() -> None:
    assert presets() == ["table1", "table2"]
    for name in presets():
        for row in load_table(name).rows:
            load_config(None, flatten(row.config))
    one, two = ({row.name: row.paper.get("accuracy") for row in load_table(name).rows} for name in presets())
    assert [one[name] for name in ("GiMP", "MGCA", "TransMIL", "PORPOISE")] == [0.9947, 0.9105, 0.8836, 0.9524]
    assert list(two.values()) == [0.9974, 0.9526, 0.9263, 0.9579, 0.9737, 0.9684]


def test_table1_has_every_compared_method_and_objective() -> None:
    configs = [load_config(None, flatten(row.config)) for row in load_table("table1").rows]
    assert {config.method.name for config in configs} == set(available())


def test_the_example_of_the_page_is_a_table(store_path: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    table = build_table(yaml.safe_load(example))
    table = build_table(table.model_dump() | {"base": table.base | {"store": str(store_path)}})
    cells = plan_cells(table, CohortStore.open(store_path), str(tmp_path))
    assert len(cells) == 4 * 5 * 3
    # in its task's process, unless the table says otherwise
    assert {cell.step.config.train.workers for cell in cells} == {0}
    assert cells[0].step.config.window.length == 2048 and cells[0].step.config.train.epochs == 50
