"""GeneInput: what it fits, that it fits it in one pass, and that test rows change nothing."""

import math

import pytest
import torch

from gimp_ray.nn.gene_input import GeneInput


def expression(rows: int = 40, genes: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(rows, genes, generator=generator) * torch.arange(1, genes + 1) * 10
    x[:, 4] = 2.5  # constant
    return x


def test_z_score_of_training_rows_and_constant_genes():
    x = expression()
    fitted = GeneInput.fit(x, log=False)
    z = fitted(x)
    keep = torch.arange(12) != 4
    torch.testing.assert_close(z[:, keep].mean(0), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(z[:, keep].std(0, correction=0), torch.ones(11), atol=1e-4, rtol=0)
    assert (z[:, 4] == 0).all() and fitted.std[4] == 1
    assert (fitted(x + 7)[:, 4] == 0).all()  # not learned from, so it must not speak at test time either


def test_log_is_applied_before_the_statistics_and_before_the_score():
    x = expression()
    torch.testing.assert_close(
        GeneInput.fit(x, log=True)(x), GeneInput.fit(torch.log2(x + 1), log=False)(torch.log2(x + 1))
    )
    assert not torch.allclose(GeneInput.fit(x, log=True)(x), GeneInput.fit(x, log=False)(x), atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_chunks_give_the_statistics_of_the_whole(offset):
    x = expression().double() + offset
    whole = GeneInput.fit(x, log=False)
    chunked = GeneInput.fit(iter(x.split(7)), log=False)
    torch.testing.assert_close(chunked.state_dict(), whole.state_dict())
    torch.testing.assert_close(whole.std[:4], x.std(0, correction=0)[:4].float())


def test_most_variable_genes_are_kept_in_stored_order():
    x = expression()
    fitted = GeneInput.fit(x, log=False, top_genes=3)
    assert fitted.select.tolist() == x.var(0).topk(3).indices.sort().values.tolist()
    assert fitted.num_kept == 3 and fitted(x).shape == (40, 3)
    torch.testing.assert_close(fitted(x), GeneInput.fit(x, log=False)(x)[:, fitted.select])


@pytest.mark.parametrize("top_genes", [0, 5])
def test_order_by_score_puts_the_best_gene_first(top_genes):
    x = expression()
    best_first = x.var(0).argsort(descending=True)[: top_genes or 12]
    fitted = GeneInput.fit(x, log=False, top_genes=top_genes, order="score")
    assert torch.equal(fitted.select, best_first)
    torch.testing.assert_close(fitted(x), GeneInput.fit(x, log=False)(x)[:, best_first])


def test_f_score_keeps_the_genes_that_separate_the_classes():
    from sklearn.feature_selection import f_classif

    x, labels = expression(), torch.arange(40) % 3
    x[:, 7] += labels * 30
    x[:, 2] += labels * 10
    reference = torch.tensor(f_classif(x[:, torch.arange(12) != 4].numpy(), labels.numpy())[0])
    best = reference.topk(4).indices
    expected = (best + (best >= 4)).sort().values.tolist()
    fitted = GeneInput.fit(zip(x.split(9), labels.split(9), strict=True), log=False, top_genes=4, select_by="f_score")
    assert fitted.select.tolist() == expected and {2, 7} <= set(expected)
    assert GeneInput.fit(x, log=False, top_genes=4, select_by="f_score", labels=labels).select.tolist() == expected


def test_clip_bounds_the_scores():
    x = expression()
    fitted = GeneInput.fit(x, log=False, clip=1.0)
    z, free = fitted(x * 3), GeneInput.fit(x, log=False)(x * 3)
    assert free.abs().max() > 1
    torch.testing.assert_close(z, free.clamp(-1, 1))


def test_state_dict_carries_everything():
    fitted = GeneInput.fit(expression(), log=True, top_genes=5, clip=2.0)
    again = GeneInput.from_state_dict(fitted.state_dict(), num_genes=12)
    x = expression() * 2
    assert torch.equal(again(x), fitted(x)) and again.num_genes == 12
    assert list(fitted.parameters()) == []


def test_plain_constructor_is_the_identity():
    x = expression()
    assert torch.equal(GeneInput(12)(x), x) and GeneInput(12).clip == math.inf


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (torch.zeros(0, 3), {}, "no training rows"),
        (torch.tensor([[1.0, torch.nan]]), {}, "NaN"),
        (torch.tensor([[1.0, -1.0]]), {"log": True}, "negative"),
        (iter([torch.zeros(2, 3), torch.zeros(2, 4)]), {}, r"\(cases, 3\)"),
        (torch.rand(4, 3), {"select_by": "f_score", "top_genes": 1}, "labels"),
        (torch.rand(4, 3), {"select_by": "p_value"}, "p_value"),
        (torch.rand(4, 3), {"order": "length"}, "length"),
    ],
)
def test_nonsense_is_refused(values, settings, message):
    with pytest.raises(ValueError, match=message):
        GeneInput.fit(values, **({"log": False} | settings))


def test_wrong_number_of_genes_is_refused():
    with pytest.raises(ValueError, match="fitted on 12"):
        GeneInput.fit(expression(), log=False, top_genes=5)(torch.zeros(1, 5))
