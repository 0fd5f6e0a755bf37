"""How hard the default cohort is: averaged bags say little, tumour patches and genes say much, both say more."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gimp_ray.synth.cohort import SynthOptions, SynthResult, write_synthetic_cohort

CASES = 200


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Per case: mean of all patches, mean of the tumour patches, log2 genes, and the label."""
    options = SynthOptions(
        cases=CASES, min_patches=200, median_patches=300, max_patches=600, dtype="float16", second_slide=0.0
    )
    return read_views(write_synthetic_cohort(tmp_path_factory.mktemp("hard") / "c", options))


def read_views(result: SynthResult) -> dict[str, np.ndarray]:
    with result.cases.open(newline="") as file:
        rows = list(csv.DictReader(file))
    means, tumours = [], []
    with h5py.File(result.truth) as truth:
        for row in rows:
            with h5py.File(Path(result.patches) / f"{row['slide_id']}.h5") as file:
                x = file["features"][:].astype(np.float32)
            means.append(x.mean(axis=0))
            tumours.append(x[truth[row["slide_id"]]["tumour"][:]].mean(axis=0))
    genes = np.loadtxt(result.genes, skiprows=1, usecols=range(1, CASES + 1)).T
    labels = np.array([row["label"] for row in rows])
    return {
        "mean": np.array(means),
        "tumour": np.array(tumours),
        "genes": np.log2(genes + 1),
        "labels": labels,
        "groups": np.array([int(row.get("split_group", -1)) for row in rows]),
    }


def correct(x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Which cases a cross-validated logistic regression gets right; `groups` are the folds, where given."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=0) if groups is None else PredefinedSplit(groups)
    return np.asarray(cross_val_predict(model, x, labels, cv=folds) == labels)


def test_mean_pool_is_above_chance_and_far_from_the_ceiling(views: dict[str, np.ndarray]) -> None:
    # measured over seeds: 0.73 to 0.76; 99 % of coin flippers stay under 0.6 of 200 cases
    assert 0.6 < correct(views["mean"], views["labels"]).mean() < 0.85


def test_tumour_patches_carry_the_class(views: dict[str, np.ndarray]) -> None:
    accuracy = correct(views["tumour"], views["labels"]).mean()
    assert 0.88 < accuracy < 0.99  # measured: 0.92 to 0.96
    assert accuracy > correct(views["mean"], views["labels"]).mean() + 0.1


def test_genes_alone_are_good_but_not_perfect_and_the_image_adds_to_them(views: dict[str, np.ndarray]) -> None:
    genes = correct(views["genes"], views["labels"])
    assert 0.85 < genes.mean() < 0.96  # measured: 0.90 to 0.92
    image = correct(views["tumour"], views["labels"])
    # what genes get wrong is mostly right in the image: the two fail on different cases
    assert image[~genes].mean() > 0.75


def test_about_half_of_the_features_are_zero(tmp_path: Path) -> None:
    options = SynthOptions(cases=2, min_patches=200, median_patches=300, max_patches=600, genes=5)
    result = write_synthetic_cohort(tmp_path / "c", options)
    with h5py.File(next(result.patches.glob("*.h5"))) as file:
        x = file["features"][:]
    assert x.min() == 0 and 0.4 < (x == 0).mean() < 0.65


@pytest.mark.real_data
def test_real_tiles_are_hard_to_average_and_easy_to_find(tmp_path: Path) -> None:
    bank = Path(__file__).parents[3] / "shared" / "data" / "patches" / "lc25000_lung_efflite0.h5"
    if not bank.exists():
        pytest.skip("the tile bank of real embeddings is not here")
    options = SynthOptions(
        cases=CASES, min_patches=200, median_patches=300, max_patches=400, dtype="float16", tile_bank=bank, genes=50
    )
    views = read_views(write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(options) | {"second_slide": 0.0})))
    assert correct(views["mean"], views["labels"], views["groups"]).mean() < 0.8
    assert correct(views["tumour"], views["labels"], views["groups"]).mean() > 0.85
