"""Rounding to the stored formats: the same bits as numpy's own, value by value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gimp_ray.store.dtypes import decode, encode, not_finite


def _near_halves() -> np.ndarray:
    """Every float16 as float32, and the float32 at, just below and just above the middle to its neighbours."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32).astype(np.int64)
    steps = [0, 1, -1, 0xFFF, 0x1000, 0x1001, -0xFFF, -0x1000, -0x1001, 0x1FFF]
    return np.concatenate([halves + step for step in steps]).clip(0, 2**32 - 1).astype(np.uint32).view(np.float32)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits by comparing with both neighbours in float64."""
    low = values.view(np.uint32) >> 16
    below, above = ((low + i) << 16 for i in (np.uint32(0), np.uint32(1)))
    a, b = (np.abs(part.view(np.float32).astype(np.float64) - values) for part in (below, above))
    return np.where((a < b) | ((a == b) & (low % 2 == 0)), low, low + 1).astype(np.uint16)


@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-5, 1e4, 1e6])
def test_float16_is_numpys_rounding(scale: float) -> None:
    values = np.random.default_rng(0).standard_normal((321, 517)).astype(np.float32) * np.float32(scale)
    values[::7] = np.maximum(values[::7], 0)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    got, finite = encode(values, "float16")
    assert (got.dtype, got.shape, finite) == (np.float16, values.shape, bool(np.isfinite(expected).all()))
    np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))


def test_float16_of_values_that_lie_between_two() -> None:
    values = _near_halves()
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(encode(values, "float16")[0].view(np.uint16), expected.view(np.uint16))


@settings(max_examples=60, deadline=None)
@given(bits=hnp.arrays(np.uint32, st.integers(1, 70), elements=st.integers(0, 2**32 - 1)))
def test_any_float32_becomes_the_float16_numpy_makes_of_it(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    got, finite = encode(values, "float16")
    np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))
    assert finite == np.isfinite(expected).all()
    # from the middle between the largest bfloat16 and the next on, a value becomes Inf
    assert encode(values, "bfloat16")[1] == ((bits & 0x7FFFFFFF) < 0x7F7F8000).all()
    assert encode(values, "float32")[1] == np.isfinite(values).all()


def test_bfloat16_rounds_to_the_nearest_and_keeps_nan() -> None:
    bits = np.random.default_rng(0).integers(0, 0x7F7F0000, 200_000, dtype=np.uint32)
    bits[::2] &= np.uint32(0xFFFF8000)  # many in the middle between two
    values = np.concatenate([bits.view(np.float32), -bits.view(np.float32)])
    np.testing.assert_array_equal(encode(values, "bfloat16")[0], _bfloat16(values))
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38], dtype=np.float32)
    back = np.empty(5, dtype=np.float32)
    decode(encode(odd, "bfloat16")[0], "bfloat16", back)
    np.testing.assert_array_equal(back, np.array([np.nan, np.nan, np.inf, -np.inf, np.inf], dtype=np.float32))
    assert not_finite(encode(odd, "bfloat16")[0], "bfloat16").all()


@pytest.mark.parametrize("kind", ["<f2", "<f8", ">f4", ">f8"])
def test_other_floats_round_once(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((300, 11)).astype(kind)
    np.testing.assert_array_equal(encode(values, "float16")[0], values.astype(np.float16))
    np.testing.assert_array_equal(encode(values[:, ::2], "float32")[0], values[:, ::2].astype(np.float32))


def test_columns_that_do_not_lie_together_are_rounded_in_order() -> None:
    values = np.random.default_rng(0).standard_normal((500, 300)).astype(np.float32)
    np.testing.assert_array_equal(encode(values.T, "float16")[0], values.T.astype(np.float16))
