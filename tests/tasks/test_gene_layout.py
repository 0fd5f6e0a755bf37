"""Gene sets as groups: which gene stands where, what padding gives, and a run with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.io.files import read_json
from gimp_ray.learn.gene_layout import arranged, layout_of_sets
from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.store import CohortStore
from tests.conftest import changed


@pytest.fixture
def store(store_path: Path) -> CohortStore:
    return CohortStore.open(store_path)


def _gmt(path: Path, store: CohortStore) -> Path:
    """Three sets: 5 genes; 3, one of them shared with the first; and one that the store has nothing of."""
    g = store.gene_ids
    path.write_text(
        f"ONE\thttp://x\t{chr(9).join(g[10:15])}\nTWO\tna\t{g[14]}\t{g[2]}\t{g[7]}\tNOT_HERE\nNO\tna\tNOBODY\n"
    )
    return path


def test_each_set_fills_one_group_and_the_rest_is_padding(store: CohortStore, tmp_path: Path) -> None:
    layout = layout_of_sets(_gmt(tmp_path / "s.gmt", store), store, fragments=4)
    assert layout.names == ("ONE", "TWO") and layout.fragments == 4
    assert layout.slots.tolist() == [[10, 11, 12, 13, 14, -1], [2, 7, 14, -1, -1, -1]]


def test_values_stand_in_their_slots_best_first_and_padding_is_zero(store: CohortStore, tmp_path: Path) -> None:
    layout = layout_of_sets(_gmt(tmp_path / "s.gmt", store), store, fragments=4)
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.rand(12, store.num_genes, generator=generator) * 9, torch.arange(12) % 2
    fitted = GeneInput.fit([(values, labels)], log=True, select_by="f_score", order="score", clip=5)
    z = fitted(values)
    of_gene = {int(gene): z[:, k] for k, gene in enumerate(fitted.select)}
    rank = {int(gene): k for k, gene in enumerate(fitted.select)}
    out = arranged(fitted, layout)(values).view(12, 2, 6)
    for row, genes in enumerate(([10, 11, 12, 13, 14], [2, 7, 14])):
        for slot, gene in enumerate(sorted(genes, key=rank.__getitem__)):
            torch.testing.assert_close(out[:, row, slot], of_gene[gene], rtol=0, atol=0)
        assert (out[:, row, len(genes) :] == 0).all()


def test_sets_of_other_genes_are_refused(store: CohortStore, tmp_path: Path) -> None:
    (tmp_path / "s.gmt").write_text("ONE\tna\tTP53\tEGFR\n")
    with pytest.raises(InputError, match="no gene of the gene sets") as caught:
        layout_of_sets(tmp_path / "s.gmt", store, 10)
    assert "TP53" in (caught.value.found or "") and caught.value.fix


@pytest.mark.slow
def test_a_run_with_gene_sets_trains_and_its_model_says_so(tiny: Config, store: CohortStore, tmp_path: Path) -> None:
    sets = _gmt(tmp_path / "s.gmt", store)
    run = pipeline.pretrain(changed(tiny, genes__sets=str(sets), train__epochs=1, genes__train__epochs=1))
    card = read_json(run.model_card("genes"))["genes"]
    assert card["gene_sets"]["names"] == ["ONE", "TWO"] and card["groups"] == 2
    assert card["fragments"] % 2 == 0 and card["num_kept"] % card["fragments"] == 0
    assert run.stage_done("pretrain")
    assert np.isfinite(read_json(run.record_file)["attempts"][-1].get("seconds", 0.0))
