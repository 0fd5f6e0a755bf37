"""The number formats a store may keep embeddings in, and the way there and back.

numpy knows no bfloat16: such values are stored as their 16 bits and read as float32, which holds each of them
exactly. Rounding to 16 bits is done on the bits of many values at a time: numpy's own way to float16 goes value by
value on most processors and would be the slowest step of an ingest; both give the same. Left out: scaling; a value
that the format cannot hold is refused, never changed into an infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# as the bytes lie in the part files, little-endian
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
DTYPES = tuple(STORED)
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895314e38, "float32": 3.4028235e38}
# all exponent bits set: NaN or Inf
_EXPONENT: dict[str, Any] = {
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
    "float32": np.uint32(0x7F800000),
}

# values rounded at a time: they and what is computed between stay in the processor's cache; a multiple of 8
_BLOCK = 1 << 16
# 2^-14, the smallest float16 with all its digits, as the bits of a float32
_SMALLEST = 0x38800000


def width(dim: int, dtype: str) -> int:
    """Bytes of one embedding."""
    return dim * STORED[dtype].itemsize


def largest(dtype: str) -> float:
    """The largest finite value of the format."""
    return _LARGEST[dtype]


def value_dtype(dtype: str) -> np.dtype[Any]:
    """What windows of a store come as: float16 as float16, bfloat16 and float32 as float32."""
    return np.dtype(np.float16 if dtype == "float16" else np.float32)


def encode(features: NDArray[np.generic], dtype: str) -> tuple[NDArray[np.generic], bool]:
    """Features as the store keeps them, rounded to the nearest (ties to even); beyond the range they become Inf.

    Returns:
        An array of the same shape and of `STORED[dtype]`, and whether it is finite throughout.
    """
    with np.errstate(all="ignore"):
        if dtype == "float32" or (dtype == "float16" and features.dtype != np.float32):
            stored = np.ascontiguousarray(features, dtype=STORED[dtype])
            flat = stored.reshape(-1)
            blocks = (flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK))
            return stored, not any(not_finite(block, dtype).any() for block in blocks)
        flat = np.ascontiguousarray(features, dtype="<f4").reshape(-1)
        bits, rounding = np.empty(flat.shape, "<u2"), _to_float16 if dtype == "float16" else _to_bfloat16
        size = min(_BLOCK, len(flat))
        room = np.empty(size, "<u4"), np.empty(size, "<u4"), np.empty(size, np.bool_)
        finite = True
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            one, two, mask = (array[: len(block)] for array in room)
            finite &= rounding(block, bits[start : start + len(block)], one, two, mask)
        return bits.view(STORED[dtype]).reshape(features.shape), finite


def decode(stored: NDArray[np.generic], dtype: str, out: NDArray[np.generic]) -> None:
    """Fill `out` (of `value_dtype`) with the values of a stored array of the same shape."""
    if dtype == "bfloat16":
        np.left_shift(stored, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        out[...] = stored


def not_finite(stored: NDArray[np.generic], dtype: str) -> NDArray[np.bool_]:
    """Where a stored array has NaN or Inf (by its bits, which is faster than isfinite)."""
    mask = _EXPONENT[dtype]
    return np.asarray((stored.view(mask.dtype) & mask) == mask)


def _to_float16(
    values: NDArray[Any], out: NDArray[Any], one: NDArray[Any], two: NDArray[Any], odd: NDArray[np.bool_]
) -> bool:
    """Fill `out` (n,) with the bits of float32 `values` (n,) as float16; the other arrays (n,) are room to work in.

    Returns whether all are finite.
    """
    bits = values.view("<u4")
    # half of the digits that fall away, less one in the last place where the digit kept is even
    np.right_shift(bits, np.uint32(13), out=one)
    np.bitwise_and(one, np.uint32(1), out=one)
    np.add(one, bits, out=one)
    np.add(one, np.uint32(0x1_0000_0FFF - _SMALLEST), out=one)  # wraps around: less the other format's exponents
    # beside the sign, what is no ordinary float16 (0, small, large, Inf, NaN) is now beyond those that are
    np.bitwise_and(one, np.uint32(0x7FFFFFFF), out=two)
    np.greater_equal(two, np.uint32(0x0F000000), out=odd)
    # of a negative value, the sign comes down from bit 31 to bit 28, beside the exponent
    np.subtract(one, np.uint32(0x70000000), out=two)
    np.minimum(one, two, out=one)
    np.right_shift(one, np.uint32(13), out=one)
    np.copyto(out, one, casting="unsafe")
    np.add(out, np.uint16(1 << 10), out=out)
    # eight at a time, because to find them one by one costs more than to round seven others again
    whole = len(values) // 8 * 8
    eights = np.flatnonzero(odd[:whole].view("<u8"))
    if len(eights) > len(values) >> 6:
        # zeros, as after a ReLU
        others = bits != 0
        np.multiply(out, others, out=out)
        np.logical_and(odd, others, out=odd)
        eights = np.flatnonzero(odd[:whole].view("<u8"))
    again = values[:whole].reshape(-1, 8)[eights].astype("<f2")
    out[:whole].reshape(-1, 8)[eights] = again.view("<u2")
    rest = values[whole:].astype("<f2")
    out[whole:] = rest.view("<u2")
    return not (not_finite(again, "float16").any() or not_finite(rest, "float16").any())


def _to_bfloat16(
    values: NDArray[Any], out: NDArray[Any], one: NDArray[Any], two: NDArray[Any], nan: NDArray[np.bool_]
) -> bool:
    """The same for bfloat16."""
    bits = values.view("<u4")
    np.right_shift(bits, np.uint32(16), out=one)
    np.bitwise_and(one, np.uint32(1), out=one)
    np.add(one, bits, out=one)
    np.add(one, np.uint32(0x7FFF), out=one)
    np.right_shift(one, np.uint32(16), out=one)
    np.copyto(out, one, casting="unsafe")
    # rounding up must not turn a NaN into something finite
    np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=two)
    np.greater(two, np.uint32(0x7F800000), out=nan)
    if nan.any():
        out[nan] = 0x7FC0
    return not not_finite(out, "bfloat16").any()
