"""A compared method on Ray Train: two workers, bags carried by Ray Data, parts trained in turn, predictions shared."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.io.files import read_json
from gimp_ray.runs.model import load_weights
from tests.conftest import changed
from tests.tasks.test_methods import config_of, gene_sets, trained

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
__all__ = ["gene_sets"]


def test_two_ray_workers_train_a_method_and_predict_every_case(tiny: Config, gene_sets: str, tmp_path: Path) -> None:
    settings = {
        "method__train": {"epochs": 2, "lr": 1e-3, "accumulate": 1},
        "evaluate__resamples": 10,
        "evaluate__reference_rows": False,
    }
    config = config_of(tiny, "pathomic", gene_sets, dropout=0.0, method__batch_size=2, **settings)
    run = pipeline.run_all(changed(config, train__workers=2, feed__read_in="ray_data", train__use_gpu=False))
    alone = trained(changed(config, run=str(tmp_path / "alone"), method__batch_size=4))
    # both have one step's cases, so they are one computation but for the order of sums
    one, two = (load_weights(place.model_file("finetune")) for place in (alone, run))
    assert one.keys() == two.keys()
    assert all((value - two[name]).abs().max() < 1e-3 for name, value in one.items() if value.is_floating_point())
    table = pq.read_table(run.evaluation / "predictions.parquet")
    assert table.num_rows == 20 and table["case_id"].to_pylist() == sorted(table["case_id"].to_pylist())
    assert read_json(run.evaluation / "metrics.json")["rows"][0]["method"] == "Pathomic Fusion"
