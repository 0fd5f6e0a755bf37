"""`gimp info` and `gimp store merge` say what is in a store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cohort_files import Sources, make_sources
from hypothesis import given
from hypothesis import strategies as st

from gimp_ray.cli.store import info, store_group
from gimp_ray.errors import InputError
from gimp_ray.store.info import _bytes, _histogram, store_info
from gimp_ray.store.merge import merge_stores


@pytest.fixture
def stored(tmp_path: Path) -> Sources:
    """Six cases, of which A0 has two slides; bags of 20 to 25 patches, one of 1,500."""
    sources = make_sources(tmp_path, sizes={"A1-DX1": 1500})
    sources.rows.append(["A0", "A0-DX2.svs", "LUAD"])
    (sources.patches / "A0-DX2.h5").write_bytes((sources.patches / "A2-DX1.h5").read_bytes())
    sources.write_cases()
    sources.ingest(gene_unit="TPM")
    return sources


def test_what_is_said_is_what_is_there(stored: Sources) -> None:
    found = store_info(stored.out)
    assert found.class_counts == {"LUAD": 3, "LUSC": 3}
    assert found.slides_per_case == {1: 5, 2: 1}
    sizes = [20, 22, 1500, 22, 23, 24, 25]
    assert found.patches_per_slide is not None and found.patches_per_case is not None
    assert (found.patches_per_slide.min, found.patches_per_slide.max) == (20, 1500)
    assert found.patches_per_slide.median == np.median(sizes) and found.patches_per_slide.mean == np.mean(sizes)
    assert (found.patches_per_case.min, found.patches_per_case.max) == (22, 1500)
    assert [(b.low, b.slides) for b in found.histogram if b.slides] == [(20, 6), (1000, 1)]
    assert [(f.fold, f.train + f.val + f.test) for f in found.splits["kfold"]] == [(i, 6) for i in range(5)]
    on_disk = {path.name: path.stat().st_size for path in stored.out.rglob("*.parquet")}
    assert found.parts is not None and found.parts.bytes == on_disk.pop("part-00000.parquet")
    assert (found.parts.files, found.parts.missing) == (1, 0)
    assert found.table_bytes == on_disk
    text = str(found)
    for part in ("LUAD 3, LUSC 3", "5 with 1, 1 with 2", "unit TPM", "8 x float16", found.manifest.fingerprint):
        assert part in text


def test_the_verb_prints_text_or_json(stored: Sources) -> None:
    text = CliRunner().invoke(info, [str(stored.out)], catch_exceptions=False)
    assert text.output == f"{store_info(stored.out)}\n"
    document = json.loads(CliRunner().invoke(info, [str(stored.out), "--json"], catch_exceptions=False).output)
    assert document["manifest"] == json.loads((stored.out / "manifest.json").read_text())
    assert document["class_counts"] == {"LUAD": 3, "LUSC": 3}
    assert document["splits"]["kfold"][0]["fold"] == 0


def test_a_lost_part_file_is_told(stored: Sources) -> None:
    (stored.out / "patches" / "part-00000.parquet").unlink()
    found = store_info(stored.out)
    assert found.parts is not None and (found.parts.files, found.parts.missing, found.parts.bytes) == (1, 1, 0)
    assert "1 of them MISSING" in str(found)


def test_stores_of_one_modality(tmp_path: Path) -> None:
    genes, patches = make_sources(tmp_path / "g"), make_sources(tmp_path / "p")
    genes.ingest(patches=False)
    patches.ingest(genes=False)
    found = store_info(genes.out)
    assert found.parts is None and found.histogram == () and found.slides_per_case == {}
    assert "slides" not in str(found).replace("slides.parquet", "") and "genes        5" in str(found)
    assert "genes" not in str(store_info(patches.out))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a cohort store"):
        store_info(tmp_path)


def test_the_merge_verb_and_info_on_what_it_made(tmp_path: Path) -> None:
    stores = []
    for name in ("BRCA", "LUAD"):
        sources = make_sources(tmp_path / name)
        sources.expression = {f"{name}-{case}": values for case, values in sources.expression.items()}
        sources.rows = [[f"{name}-{case}", f"{name}-{slide}", name] for case, slide, _ in sources.rows]
        for path in list(sources.patches.glob("*.h5")):
            path.rename(path.with_name(f"{name}-{path.name}"))
        sources.write_cases()
        sources.write_genes()
        sources.ingest(gene_unit="TPM")
        stores.append(str(sources.out))
    out = str(tmp_path / "ALL")
    command = ["merge", *stores, "--out", out, "--genes", "same", "--column", "cancer"]
    command += ["--split-scheme", "kfold", "--split-scheme", "leave_one_out:cancer", "--folds", "4"]
    result = CliRunner().invoke(store_group, command, catch_exceptions=False)
    assert result.exit_code == 0 and "merged of 2 stores" in result.output
    found = store_info(out)
    assert {name: len(folds) for name, folds in found.splits.items()} == {"kfold": 4, "leave_one_out:cancer": 2}
    assert found.parts is not None and found.parts.files == 2 and found.parts.missing == 0
    assert found.columns["cases"] == {"cancer": "string"}
    assert "merged from  ../BRCA/out/STORE" in str(found)
    with pytest.raises(InputError, match="exists already"):
        merge_stores(stores, out)


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=50))
def test_every_slide_is_in_one_bin(sizes: list[int]) -> None:
    bins = _histogram(np.array(sizes))
    assert sum(one.slides for one in bins) == len(sizes)
    for one in bins:
        assert one.slides == sum(one.low <= size <= one.high for size in sizes)
    assert bins[0].slides and bins[-1].slides


def test_bytes_are_said_shortly() -> None:
    assert [_bytes(n) for n in (0, 999, 1000, 256_000_000, 25 * 10**12)] == ["0 B", "999 B", "1 kB", "256 MB", "25 TB"]
