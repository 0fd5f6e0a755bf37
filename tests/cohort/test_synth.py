"""A synthetic cohort is valid CLAM files and tables, is coherent in space, and is the same for the same seed."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.synth.cohort import SynthOptions, SynthResult, write_synthetic_cohort

SMALL = SynthOptions(cases=6, dim=32, genes=50, min_patches=60, median_patches=150, max_patches=400, second_slide=0.5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SynthResult:
    return write_synthetic_cohort(tmp_path_factory.mktemp("synth") / "cohort", SMALL)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arrays_of(result: SynthResult) -> dict[str, np.ndarray]:
    arrays = {}
    for path in sorted(result.patches.glob("*.h5")):
        with h5py.File(path) as file:
            arrays[f"{path.name}/features"], arrays[f"{path.name}/coords"] = file["features"][:], file["coords"][:]
    return arrays


def test_bags_have_clams_layout(cohort: SynthResult) -> None:
    rows = rows_of(cohort.cases)
    files = sorted(path.stem for path in cohort.patches.glob("*.h5"))
    assert files == sorted(row["slide_id"] for row in rows)
    assert len(rows) == cohort.n_slides > cohort.n_cases == len({row["case_id"] for row in rows})
    assert cohort.patches.name == "h5_files"
    patches = 0
    for slide_id in files:
        with h5py.File(cohort.patches / f"{slide_id}.h5") as file:
            features, coords = file["features"], file["coords"]
            assert features.shape == (len(coords), 32) and features.dtype == np.float32
            assert coords.shape[1] == 2 and coords.dtype == np.int64
            assert (coords.attrs["patch_size"], coords.attrs["patch_level"]) == (256, 0)
            assert coords.attrs["name"] == slide_id
            assert (coords[:].max(axis=0) + 256 <= coords.attrs["level_dim"]).all()
            patches += len(coords)
    assert patches == cohort.n_patches


def test_patches_lie_once_each_on_one_grid_in_scan_order(cohort: SynthResult) -> None:
    for name, coords in arrays_of(cohort).items():
        if not name.endswith("coords"):
            continue
        assert len(np.unique(coords, axis=0)) == len(coords)
        assert ((coords - coords[0]) % 256 == 0).all()
        assert (np.lexsort((coords[:, 0], coords[:, 1])) == np.arange(len(coords))).all()


def test_at_40x_a_patch_is_512_pixels_wide(tmp_path: Path) -> None:
    result = write_synthetic_cohort(
        tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 2, "magnification": 40, "dtype": "float16"})
    )
    with h5py.File(next(result.patches.glob("*.h5"))) as file:
        assert file["coords"].attrs["patch_size"] == 512
        assert file["features"].dtype == np.float16
        assert np.diff(np.unique(file["coords"][:, 0])).min() == 512


def test_case_table_and_genes_name_the_same_cases(cohort: SynthResult) -> None:
    rows = rows_of(cohort.cases)
    assert list(rows[0]) == ["case_id", "slide_id", "label", "age", "site", "survival_months", "censorship"]
    labels = {row["case_id"]: row["label"] for row in rows}
    assert sorted(labels.values()) == ["LUAD"] * 3 + ["LUSC"] * 3
    lines = cohort.genes.read_text().splitlines()
    assert lines[0].split("\t") == ["gene_id", *labels]
    values = np.array([line.split("\t")[1:] for line in lines[1:]], float)
    assert values.shape == (50, 6) and np.isfinite(values).all() and values.min() >= 0
    assert cohort.gene_unit == "FPKM" and values.max() > 30  # linear, not logarithmic
    assert cohort.splits is None


def test_sizes_stay_in_bounds_and_follow_the_log_normal(tmp_path: Path) -> None:
    options = SynthOptions(**dict(SMALL) | {"cases": 150, "dim": 2, "genes": 2, "second_slide": 0.0})
    result = write_synthetic_cohort(tmp_path / "c", options)
    with h5py.File(result.truth) as truth:
        sizes = np.array([len(slide["tumour"]) for slide in truth.values()])
    assert sizes.min() == 60 and sizes.max() == 400  # both ends are reached and never passed
    assert 125 <= np.median(sizes) <= 180


def test_default_sizes_average_about_15000() -> None:
    options = SynthOptions()
    assert options.median_patches * np.exp(options.size_sigma**2 / 2) == pytest.approx(15_000, rel=0.01)


def test_same_seed_same_files_other_seed_other_files(cohort: SynthResult, tmp_path: Path) -> None:
    again = write_synthetic_cohort(tmp_path / "again", SMALL)
    first, second = arrays_of(cohort), arrays_of(again)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert cohort.cases.read_bytes() == again.cases.read_bytes()
    assert cohort.genes.read_bytes() == again.genes.read_bytes()
    other = write_synthetic_cohort(tmp_path / "other", SynthOptions(**dict(SMALL) | {"seed": 1}))
    assert other.genes.read_bytes() != cohort.genes.read_bytes()
    assert any(not np.array_equal(first[name], value) for name, value in arrays_of(other).items() if name in first)


def test_neighbours_are_more_alike_than_strangers(tmp_path: Path) -> None:
    result = write_synthetic_cohort(
        tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 4, "dim": 128, "second_slide": 0.0})
    )
    near, far = [], []
    for path in result.patches.glob("*.h5"):
        with h5py.File(path) as file:
            x, coords = file["features"][:], file["coords"][:] // 256
        x = x - x.mean(axis=0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        distance = np.abs(coords[:, None] - coords[None]).sum(axis=-1)
        alike = x @ x.T
        near.append(alike[distance == 1].mean())
        far.append(alike[distance >= 10].mean())
    assert np.mean(near) > np.mean(far) + 0.2


def test_tumour_is_connected_and_as_large_as_asked(tmp_path: Path) -> None:
    options = SynthOptions(
        **dict(SMALL) | {"cases": 12, "dim": 4, "genes": 2, "median_patches": 400, "tumour_fraction": 0.1}
    )
    result = write_synthetic_cohort(tmp_path / "c", options)
    shares = []
    with h5py.File(result.truth) as truth:
        for slide_id, slide in truth.items():
            with h5py.File(result.patches / f"{slide_id}.h5") as file:
                cells = {tuple(cell) for cell in (file["coords"][:][slide["tumour"][:]] // 256).tolist()}
            shares.append(len(cells) / len(slide["tumour"]))
            assert cells
            # two or three regions are sown; small pieces of tissue can add one
            assert pieces_of(cells) <= 4
    assert 0.07 < np.mean(shares) < 0.13


def pieces_of(cells: set[tuple[int, ...]]) -> int:
    left, pieces = set(cells), 0
    while left:
        pieces += 1
        queue = [left.pop()]
        while queue:
            x, y = queue.pop()
            for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if cell in left:
                    left.remove(cell)
                    queue.append(cell)
    return pieces


def test_no_tumour_when_none_is_asked_for(tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 2, "tumour_fraction": 0.0}))
    with h5py.File(result.truth) as truth:
        assert not any(slide["tumour"][:].any() for slide in truth.values())


def test_one_patch_slides_can_be_written(tmp_path: Path) -> None:
    result = write_synthetic_cohort(
        tmp_path / "c", SynthOptions(**dict(SMALL) | {"min_patches": 1, "median_patches": 1, "max_patches": 1})
    )
    assert result.n_patches == result.n_slides


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = write_synthetic_cohort(tmp_path / "c", SMALL, lambda done, total: calls.append((done, total)))
    assert calls == [(done, result.n_slides) for done in range(1, result.n_slides + 1)]


def test_a_full_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        write_synthetic_cohort(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_synthetic_cohort(tmp_path / "c", SMALL, fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cases", 0),
        ("classes", ("LUAD",)),
        ("classes", ("LUAD", "LUAD")),
        ("dim", 0),
        ("median_patches", 1_000_000),
        ("second_slide", 1.5),
        ("tumour_fraction", -0.1),
        ("signal", float("nan")),
        ("magnification", 10),
        ("dtype", "float64"),
    ],
)
def test_impossible_options_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SynthOptions(**{field: value})
