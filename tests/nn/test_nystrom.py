"""Nystrom attention: parity with the package, independence of neighbours and padding, and the edges."""

import pytest
import torch
from nystrom_attention import NystromAttention as PackageNystrom

from gimp_ray.nn.attention import NystromAttention, masked_segment_means, pinv_product, segment_means

DIM = 32


def make(**changes) -> NystromAttention:
    torch.manual_seed(0)
    settings = {"heads": 4, "dim_head": 8, "num_landmarks": 8, "residual_kernel": 5} | changes
    return NystromAttention(DIM, **settings).eval()


def make_package(ours: NystromAttention, **changes) -> PackageNystrom:
    settings = {"heads": 4, "dim_head": 8, "num_landmarks": 8, "residual_conv_kernel": 5} | changes
    package = PackageNystrom(DIM, **settings).eval()
    package.load_state_dict(ours.state_dict())
    return package


def inverse(matrix: torch.Tensor, iterations: int, **changes) -> torch.Tensor:
    return pinv_product(
        matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand_as(matrix), iterations, **changes
    )


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [8, 16, 64])
def test_equals_the_package_with_its_scaling(n):
    ours = make(pinv_scale="batch")
    x = tokens(1, n)
    torch.testing.assert_close(ours(x), make_package(ours)(x), atol=1e-5, rtol=1e-5)


def test_equals_the_package_by_default_for_one_head():
    ours = make(heads=1)
    x = tokens(1, 64)
    torch.testing.assert_close(ours(x), make_package(ours, heads=1)(x), atol=1e-5, rtol=1e-5)


def test_equals_the_package_at_its_defaults():
    torch.manual_seed(0)
    ours = NystromAttention(64, pinv_scale="batch").eval()
    package = PackageNystrom(64, residual_conv_kernel=33).eval()
    package.load_state_dict(ours.state_dict())
    x = torch.randn(1, 512, 64)
    torch.testing.assert_close(ours(x), package(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [17, 30, 63])
def test_uneven_length_equals_the_package_told_which_tokens_are_real(n):
    # The last landmarks of the package then have tokens, so its empty rows (front) are all that could differ.
    ours = make(pinv_scale="batch", num_landmarks=4)
    x = tokens(1, n)
    theirs = make_package(ours, num_landmarks=4)(x, mask=torch.ones(1, n, dtype=torch.bool))
    torch.testing.assert_close(ours(x), theirs, atol=1e-5, rtol=1e-5)


def test_state_dict_keys_and_shapes_are_the_packages():
    ours = make()
    theirs = make_package(ours)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_multi_head_default_scaling_is_per_matrix():
    # One head with inflated queries changes the package's scale for all heads; ours inverts each on its own.
    matrices = torch.rand(3, 6, 6).softmax(-1)
    matrices[0] = torch.eye(6)
    together = inverse(matrices, iterations=2)
    alone = torch.cat([inverse(m[None], iterations=2) for m in matrices])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(inverse(matrices, iterations=2, scale="batch"), alone, atol=1e-4)


def test_pinv_inverts_and_keeps_zero_rows_and_columns():
    matrix = torch.eye(5, dtype=torch.float64) * 0.7 + torch.full((5, 5), 0.3 / 5, dtype=torch.float64)
    torch.testing.assert_close(inverse(matrix, 12), torch.linalg.inv(matrix))
    padded = torch.zeros(8, 8, dtype=torch.float64)
    padded[3:, 3:] = matrix
    found = inverse(padded, 12)
    torch.testing.assert_close(found[3:, 3:], torch.linalg.inv(matrix))
    assert found[:3].abs().max() == 0 and found[:, :3].abs().max() == 0


@pytest.mark.parametrize(("n", "expected"), [(6, [2, 2, 2]), (5, [1, 2, 2]), (7, [1, 3, 3]), (2, [1, 1]), (1, [1])])
def test_segment_means_put_the_incomplete_segment_first(n, expected):
    x = torch.arange(1.0, n + 1)[None, :, None]
    parts = torch.arange(1.0, n + 1).split(expected)
    wanted = torch.stack([part.mean() for part in parts])
    torch.testing.assert_close(segment_means(x, 3)[0, :, 0], wanted)
    means, has_tokens = masked_segment_means(x, torch.ones(1, n, dtype=torch.bool), 3)
    torch.testing.assert_close(means[has_tokens][:, 0], wanted)


def test_masked_segment_means_follow_each_samples_own_count():
    x = torch.arange(1.0, 11.0).expand(3, 10)[..., None]
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[0, :7] = True
    mask[1, [1, 3, 4, 8]] = True  # holes
    means, has_tokens = masked_segment_means(x, mask, 3)
    torch.testing.assert_close(means[0, :, 0], torch.tensor([1.0, 3.0, 6.0]))  # 1 | 2 3 4 | 5 6 7
    torch.testing.assert_close(means[1, :, 0], torch.tensor([0.0, 3.0, 7.0]))  # - | 2 4 | 5 9
    assert has_tokens.tolist() == [[True] * 3, [False, True, True], [False] * 3]


@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 10, 16, 23])
@pytest.mark.parametrize("pad", [0, 1, 5, 40])
def test_alone_equals_padded_whatever_stands_in_the_padding(n, pad):
    attention = make()
    x = tokens(1, n)
    padded = torch.cat([x, torch.full((1, pad, DIM), torch.nan)], dim=1)
    mask = torch.arange(n + pad)[None] < n
    out = attention(padded, mask)
    torch.testing.assert_close(out[:, :n], attention(x), atol=1e-5, rtol=1e-5)
    assert (out[:, n:] == 0).all()


def test_alone_equals_in_any_batch():
    attention = make()
    lengths = [30, 1, 8, 17, 5]
    scales = [1, 30, 0.01, 3, 1]
    samples = [tokens(1, n, seed=n) * scale for n, scale in zip(lengths, scales, strict=True)]
    batch = torch.zeros(len(lengths), max(lengths), DIM)
    for row, sample in zip(batch, samples, strict=True):
        row[: sample.shape[1]] = sample[0]
    out = attention(batch, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    for i, sample in enumerate(samples):
        atol = 1e-5 * max(scales[i], 1)  # rounding grows with the values
        torch.testing.assert_close(out[i : i + 1, : lengths[i]], attention(sample), atol=atol, rtol=1e-5)
    same_length = torch.cat([samples[0], samples[0] * 50])
    torch.testing.assert_close(attention(same_length)[:1], attention(samples[0]), atol=1e-5, rtol=1e-5)


def test_the_packages_result_does_depend_on_the_batch():
    # What the test above guards against: without it that test might pass for any implementation.
    package = make_package(make())
    x = tokens(1, 32)
    assert not torch.allclose(package(torch.cat([x, x * 50]))[:1], package(x), atol=1e-3)


def test_holes_in_the_mask_are_ignored_by_attention():
    attention = make(residual_kernel=0)  # the convolution goes by position, attention by the real tokens alone
    x = tokens(1, 20)
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, [0, 3, 4, 11]] = False
    torch.testing.assert_close(attention(x, mask)[mask], attention(x[mask][None])[0], atol=1e-5, rtol=1e-5)


def test_fully_masked_sample_is_finite_and_zero_in_value_and_gradient():
    attention = make().train()
    x = tokens(2, 20).requires_grad_()
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1] = False
    out = attention(x, mask)
    assert (out[1] == 0).all()
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in attention.parameters())
    assert (x.grad[1] == 0).all() and torch.isfinite(x.grad).all() and x.grad[0].abs().max() > 0


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fewer_tokens_than_landmarks_is_exact_softmax_attention(n):
    # With one landmark a token, kernel @ pinv(kernel) @ kernel is the kernel itself. Many iterations: no approximation.
    torch.manual_seed(0)
    attention = NystromAttention(DIM, 2, 8, num_landmarks=256, pinv_iterations=30, residual_kernel=0).double().eval()
    x = tokens(1, n).double() * 3
    q, k, v = attention.to_qkv(x).view(1, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
    exact = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(x), attention.to_out(exact.transpose(1, 2).reshape(1, n, 16)))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked):
    torch.manual_seed(0)
    attention = NystromAttention(4, 2, 3, num_landmarks=3, residual_kernel=3).double()
    x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [4]]) if masked else None
    assert torch.autograd.gradcheck(lambda x, *_: attention(x, mask), (x, *attention.parameters()))


def test_autocast_keeps_the_pseudo_inverse_in_float32():
    attention = make(num_landmarks=16)
    x = tokens(2, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = attention(x)
        half_masked = attention(x, torch.ones(2, 50, dtype=torch.bool))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attention(x), atol=0.03, rtol=0.03)
    torch.testing.assert_close(half_masked.float(), half.float(), atol=0.03, rtol=0.03)


def test_dropout_is_on_the_output_and_in_training_only():
    attention = make(dropout=0.5)
    x = tokens(1, 10)
    torch.testing.assert_close(attention(x), make()(x))
    dropped = attention.train()(x) == 0
    assert 0.3 < dropped.float().mean() < 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"residual_kernel": 4}, "odd"), ({"pinv_scale": "head"}, "pinv_scale"), ({"num_landmarks": 0}, ">= 1")],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_input_is_refused():
    attention = make()
    with pytest.raises(ValueError, match="0 tokens"):
        attention(torch.zeros(1, 0, DIM))
    with pytest.raises(ValueError, match="bool"):
        attention(tokens(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="mask must be"):
        attention(tokens(1, 4), torch.ones(1, 5, dtype=torch.bool))


@pytest.mark.parametrize("iterations", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_gradients_of_the_pseudo_inverse_are_those_of_its_iterations_written_out(iterations, batch):
    generator = torch.Generator().manual_seed(iterations)
    scores, y, weight = (torch.randn(*batch, 9, n, dtype=torch.float64, generator=generator) for n in (9, 4, 4))

    def written_out(x):
        bound = x.sum(dim=-1).amax(dim=-1) * x.sum(dim=-2).amax(dim=-1)
        z = x.mT / bound[..., None, None]
        for _ in range(iterations):
            a, identity = x @ z, torch.eye(9, dtype=x.dtype)
            z = z @ (13 * identity - a @ (15 * identity - a @ (7 * identity - a))) / 4
        return z @ y

    found = []
    for function in (written_out, lambda x: pinv_product(x, y, iterations)):
        y.grad, kernel = None, scores.softmax(dim=-1).requires_grad_()
        y.requires_grad_()
        out = function(kernel)
        (out * weight).sum().backward()
        found.append((out.detach(), kernel.grad, y.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-8)
