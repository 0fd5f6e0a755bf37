"""GroupMSA: fragments, groups and tokens as in section 2.1, and the numbers for gene panels of any size."""

import pytest
import torch

from gimp_ray.nn.genes import GroupMSA, SelfAttentionBlock, fit_fragments


def make(num_genes: int = 50, **changes) -> GroupMSA:
    torch.manual_seed(0)
    settings = {"dim": 16, "num_fragments": 12, "num_groups": 3, "heads": 2} | changes
    return GroupMSA(num_genes, **settings).eval()


@pytest.mark.parametrize("num_genes", [1, 5, 12, 50, 60])
def test_shape_for_any_number_of_genes(num_genes):
    out = make(num_genes)(torch.randn(4, num_genes))
    assert out.shape == (4, 16) and torch.isfinite(out).all()


def test_block_is_a_vanilla_pre_norm_block_read_at_its_first_token():
    torch.manual_seed(0)
    ours = SelfAttentionBlock(16, heads=4, ff_mult=2.0, dropout=0.0).double()
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True).double()
    names = {"to_out": "self_attn.out_proj", "attention_norm": "norm1", "feed_forward_norm": "norm2"}
    names |= {"feed_forward.0": "linear1", "feed_forward.3": "linear2"}
    state = {
        f"{theirs_name}.{kind}": ours.get_parameter(f"{ours_name}.{kind}")
        for ours_name, theirs_name in names.items()
        for kind in ("weight", "bias")
    }
    qkv = (ours.to_q, ours.to_k, ours.to_v)
    state["self_attn.in_proj_weight"] = torch.cat([layer.weight for layer in qkv])
    state["self_attn.in_proj_bias"] = torch.cat([ours.to_q.bias, torch.randn(16).double(), ours.to_v.bias])
    theirs.load_state_dict(state)
    x = torch.randn(3, 7, 16).double()
    torch.testing.assert_close(ours(x), theirs(x)[:, 0])


def test_tokens_per_group_are_fragments_over_groups_plus_one():
    encoder = make()
    seen = []
    encoder.intra.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    encoder.inter.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    encoder(torch.randn(2, 50))
    assert encoder.tokens_per_group == 12 // 3 + 1
    assert seen == [(2 * 3, 12 // 3 + 1, 16), (2, 3 + 1, 16)]  # all groups in one call; CLS_ge and one token a group


def test_fragments_are_contiguous_share_one_projection_and_pad_the_tail():
    encoder = make(50)  # 12 fragments of ceil(50 / 12) = 5
    x = torch.randn(1, 50)
    tokens = encoder._fragment_tokens(x)[0] - encoder.position_FD
    assert encoder.fragment_size == 5
    torch.testing.assert_close(tokens[3], encoder.project(x[0, 15:20]))
    torch.testing.assert_close(tokens[10], encoder.project.bias)  # genes 50.. do not exist
    shifted = encoder._fragment_tokens(x.roll(5, dims=1))[0] - encoder.position_FD
    torch.testing.assert_close(shifted[4], tokens[3])


def test_groups_do_not_see_each_other_before_the_inter_group_block():
    encoder = make(60)
    x = torch.randn(1, 60)
    changed = x.clone()
    changed[0, 25] += 5  # fragment 5 of 12, so group 1 of 3
    before, after = (encoder._inside_groups(encoder._fragment_tokens(v))[0] for v in (x, changed))
    moved = (before - after).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [False, True, False]


def test_every_gene_reaches_the_output():
    encoder = make(50)
    x = torch.randn(1, 50, requires_grad=True)
    (encoder(x) * torch.randn(16)).sum().backward()
    assert (x.grad != 0).all()


def test_alone_equals_batched():
    encoder, x = make(), torch.randn(5, 50)
    torch.testing.assert_close(encoder(x)[3:4], encoder(x[3:4]), atol=1e-6, rtol=1e-5)


def test_gene_order_is_a_permutation_of_the_input_and_is_saved():
    order = torch.randperm(50)
    ordered, plain = make(gene_order=order), make()
    x = torch.randn(2, 50)
    torch.testing.assert_close(ordered(x), plain(x[:, order]))
    assert torch.equal(ordered.state_dict()["gene_order"], order) and "gene_order" not in plain.state_dict()
    with pytest.raises(ValueError, match="permutation"):
        make(gene_order=torch.zeros(50, dtype=torch.int64))


def test_backward_reaches_every_parameter():
    encoder = make(dropout=0.1, gene_dropout=0.1).train()
    (encoder(torch.randn(8, 50)) * torch.randn(16)).sum().backward()
    silent = [name for name, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize("where", ["dropout", "gene_dropout"])
def test_dropout_only_in_training(where):
    encoder, x = make(**{where: 0.5}), torch.randn(2, 50)
    torch.testing.assert_close(encoder(x), make()(x))
    assert not torch.allclose(encoder.train()(x), make()(x), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_groups": 5}, "multiple of num_groups"), ({"heads": 3}, "divide dim"), ({"num_groups": 0}, ">= 1")],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_wrong_number_of_genes_is_refused():
    with pytest.raises(ValueError, match="51 genes given"):
        make()(torch.randn(1, 51))


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ((60480, 1008, 24), (1008, 24)),  # the paper: 60 genes a fragment, 42 fragments a group
        ((60483, 1008, 24), (1008, 24)),
        ((25223, 1008, 24), (984, 24)),  # 26 a fragment fill 971
        ((1500, 1008, 24), (768, 24)),
        ((100, 1008, 24), (120, 24)),
        ((5, 1008, 24), (5, 5)),
        ((1, 1, 1), (1, 1)),
    ],
)
def test_fit_fragments(wish, expected):
    fragments, groups = fit_fragments(*wish)
    assert (fragments, groups) == expected
    size = -(-wish[0] // fragments)
    assert fragments * size - wish[0] < size * groups + fragments  # little but rounding is padding


def test_fit_fragments_always_builds():
    for num_genes in [*range(1, 80), 500, 1007, 1009]:
        fragments, groups = fit_fragments(num_genes, 24, 6)
        GroupMSA(num_genes, 4, fragments, groups, heads=1)
    with pytest.raises(ValueError, match=">= 1"):
        fit_fragments(0)
