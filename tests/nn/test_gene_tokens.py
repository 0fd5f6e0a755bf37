"""Gene groups as tokens: the same CLS_ge as GroupMSA's, what a token depends on, and what is predicted of a group."""

import numpy as np
import pytest
import torch
from bag_checks import seeded
from contrast_checks import D, G, R, encoder, seeded_genes

from gimp_ray.nn.gene_input import GeneInput
from gimp_ray.nn.genes import (
    SNN,
    GeneEncoder,
    GroupMSA,
    GroupTargets,
    across_groups,
    group_means,
    group_tokens,
    grouped_net,
)


def make(**changes) -> GroupMSA:
    torch.manual_seed(0)
    return grouped_net(encoder(**changes)).double()


def test_cls_is_the_one_of_group_msa():
    net = make().eval()
    x = seeded_genes(4)
    found = across_groups(net, group_tokens(net, x))
    torch.testing.assert_close(found.cls, net(x), atol=1e-12, rtol=1e-12)
    assert found.tokens.shape == (4, R, D)


def test_tokens_and_attention_against_the_block_in_numpy():
    net = make().eval()
    groups = group_tokens(net, seeded_genes(1))
    found = across_groups(net, groups)
    w = {name: p.detach().numpy() for name, p in net.named_parameters()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = np.concatenate([w["cls_token"][None], groups[0].detach().numpy()])
    h = norm("inter.attention_norm", x)
    q = h @ w["inter.to_q.weight"].T + w["inter.to_q.bias"]
    k, v = h @ w["inter.to_k.weight"].T, h @ w["inter.to_v.weight"].T + w["inter.to_v.bias"]
    joined, looked = np.empty_like(x), np.zeros(R + 1)
    for head in range(2):
        at = slice(head * D // 2, (head + 1) * D // 2)
        a = np.exp(q[:, at] @ k[:, at].T / np.sqrt(D // 2))
        a /= a.sum(axis=1, keepdims=True)
        joined[:, at], looked = a @ v[:, at], looked + a[0] / 2
    x = x + joined @ w["inter.to_out.weight"].T + w["inter.to_out.bias"]
    h = norm("inter.feed_forward_norm", x) @ w["inter.feed_forward.0.weight"].T + w["inter.feed_forward.0.bias"]
    h = torch.nn.functional.gelu(torch.from_numpy(h)).numpy()
    x = norm("norm", x + h @ w["inter.feed_forward.3.weight"].T + w["inter.feed_forward.3.bias"])
    np.testing.assert_allclose(found.tokens[0].detach(), x[1:], atol=1e-10)
    np.testing.assert_allclose(found.attention[0].detach(), looked[1:], atol=1e-10)


def test_a_group_token_holds_its_own_genes_alone():
    net = make().eval()
    x = seeded_genes(1)
    a_group = net.num_fragments * net.fragment_size // R
    x[:, a_group] += 3.0
    moved = (group_tokens(net, x) - group_tokens(net, seeded_genes(1))).abs().amax(dim=-1)[0] > 0
    assert moved.tolist() == [False, True, False]


def test_groups_that_are_not_seen_do_not_reach_the_others():
    net = make().eval()
    groups, seen = group_tokens(net, seeded_genes(1)), torch.tensor([[True, False, True]])
    other = groups.clone()
    other[:, 1] = 100.0
    here, there = across_groups(net, groups, seen), across_groups(net, other, seen)
    torch.testing.assert_close(here.cls, there.cls, atol=0, rtol=0)
    torch.testing.assert_close(here.tokens[:, [0, 2]], there.tokens[:, [0, 2]], atol=0, rtol=0)
    assert here.attention[0, 1] == 0
    # and CLS is what it would be without that group at all
    whole = across_groups(net, groups[:, [0, 2]])
    torch.testing.assert_close(here.cls, whole.cls, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(here.cls, across_groups(net, groups).cls)


def test_every_parameter_gets_a_gradient():
    net = make().train()
    out = across_groups(net, group_tokens(net, seeded_genes(4)))
    (out.cls.square().sum() + out.tokens.pow(3).sum()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_group_means_leave_padding_out():
    order = torch.randperm(G, generator=torch.Generator().manual_seed(1))
    net = make(gene_order=order)
    x = seeded_genes(2)
    a_group = net.num_fragments * net.fragment_size // R
    assert a_group * R > G, "so the last group has padding"
    for b in range(2):
        laid_out = x[b, order].tolist()
        expected = [np.mean(laid_out[at : at + a_group]) for at in range(0, G, a_group)]
        np.testing.assert_allclose(group_means(net, x)[b], expected, atol=1e-12)


def test_targets_are_standardised_and_binned_by_training_quantiles():
    means = seeded(40, 2)
    means[:, 1] = 7.0  # a constant group
    fitted = GroupTargets.fit(means, bins=4)
    scaled = fitted.standardised(means.float())
    assert scaled[:, 0].mean().abs() < 1e-6 and (scaled[:, 0].std(correction=0) - 1).abs() < 1e-5
    assert scaled[:, 1].abs().max() < 1e-5
    bins = fitted.bin(means.float())
    assert torch.bincount(bins[:, 0], minlength=4).tolist() == [10] * 4
    assert bins[means[:, 0].argmin(), 0] == 0 and bins[means[:, 0].argmax(), 0] == 3
    # beyond what training showed: the outer bins
    assert fitted.bin(torch.tensor([[-99.0, 0.0], [99.0, 99.0]]))[:, 0].tolist() == [0, 3]
    again = GroupTargets(2, 4)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.bin(means.float()), bins)


def test_bad_input_is_refused():
    net = make()
    for call in (group_tokens, group_means):
        with pytest.raises(ValueError, match=f"{G}"):
            call(net, seeded(2, G + 1))
    with pytest.raises(ValueError, match="GroupMSA"):
        grouped_net(GeneEncoder(GeneInput(G), SNN(G, D)))
    for bad in (seeded(4), seeded(0, 3), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="finite"):
            GroupTargets.fit(bad)
    with pytest.raises(ValueError, match="2 bins"):
        GroupTargets(3, 1)
