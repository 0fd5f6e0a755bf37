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

# values rounded at a time: few enough that what is computed between stays in the processor's cache; a multiple of 8
_BLOCK = 1 << 17
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
        bits, round_block = np.empty(flat.shape, "<u2"), _to_float16 if dtype == "float16" else _to_bfloat16
        room, finite = _Room(min(_BLOCK, len(flat))), True
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            finite &= round_block(block, bits[start : start + len(block)], room)
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


class _Room:
    """Arrays of `size` values to work in, made once for all blocks."""

    def __init__(self, size: int) -> None:
        self.wide: NDArray[Any] = np.empty((2, size), dtype="<u4")
        self.narrow: NDArray[Any] = np.empty((3, size), dtype="<u2")
        self.masks: NDArray[Any] = np.empty((2, size), dtype=np.bool_)


def _to_float16(values: NDArray[Any], out: NDArray[Any], room: _Room) -> bool:
    """Fill `out` (n,) with the bits of float32 `values` (n,) as float16; returns whether all are finite.

    Numbers that are ordinary in both formats are rounded by adding half of the last digit kept. The others (0, small,
    large, Inf, NaN), and those in the middle between two, are left to numpy.
    """
    n, whole = len(values), len(values) // 8 * 8
    wide, (high, low, work), (other, middle) = room.wide[0, :n], room.narrow[:, :n], room.masks[:, :n]
    np.add(values.view("<u4"), _HALF_LESS_SMALLEST, wide)
    np.copyto(low, wide, casting="unsafe")
    np.right_shift(wide, _U4[16], wide)
    np.copyto(high, wide, casting="unsafe")
    np.bitwise_and(low, _U2[0x1FFF], work)
    np.equal(work, _U2[0], middle)
    np.bitwise_and(high, _U2[0x7FFF], work)
    np.greater_equal(work, _U2[0x0F00], other)
    np.logical_or(other, middle, other)
    # the exponent moves up by the three bits it is shorter, the digits follow from the lower half
    np.multiply(high, _U2[8], out)
    np.right_shift(low, _U2[13], low)
    np.add(out, low, out)
    np.add(out, _U2[0x0400], out)
    np.bitwise_and(high, _U2[0x8000], high)
    np.bitwise_or(out, high, out)
    # eight at a time, because to find them one by one costs more than to round seven others again
    eights = np.flatnonzero(other[:whole].view("<u8"))
    if len(eights) > n >> 6:
        # zeros, as after a ReLU
        np.not_equal(values.view("<u4"), _U4[0], middle)
        np.multiply(out, middle, out=out)
        np.logical_and(other, middle, other)
        eights = np.flatnonzero(other[:whole].view("<u8"))
    again, rest = values[:whole].reshape(-1, 8)[eights].astype("<f2"), values[whole:].astype("<f2")
    out[:whole].reshape(-1, 8)[eights] = again.view("<u2")
    out[whole:] = rest.view("<u2")
    return not (not_finite(again, "float16").any() or not_finite(rest, "float16").any())


def _to_bfloat16(values: NDArray[Any], out: NDArray[Any], room: _Room) -> bool:
    """The same for bfloat16."""
    n, bits = len(values), values.view("<u4")
    (one, two), nan = room.wide[:, :n], room.masks[0, :n]
    # half of what falls away, less one in the last place where the digit kept is even
    np.right_shift(bits, _U4[16], one)
    np.bitwise_and(one, _U4[1], one)
    np.add(one, bits, one)
    np.add(one, _U4[0x7FFF], one)
    np.right_shift(one, _U4[16], one)
    np.copyto(out, one, casting="unsafe")
    # rounding up must not turn a NaN into something finite
    np.bitwise_and(bits, _U4[0x7FFFFFFF], two)
    np.greater(two, _U4[0x7F800000], nan)
    if nan.any():
        out[nan] = 0x7FC0
    return not not_finite(out, "bfloat16").any()


# as arrays: to make sense of an integer takes numpy longer than to add a thousand values
_U2 = {value: np.array(value, "<u2") for value in (0, 8, 13, 0x0400, 0x0F00, 0x1FFF, 0x7FFF, 0x8000)}
_U4 = {value: np.array(value, "<u4") for value in (0, 1, 16, 0x7FFF, 0x7F800000, 0x7FFFFFFF)}
# to add half of the last digit kept and take the smallest exponent away, which wraps around
_HALF_LESS_SMALLEST = np.array((1 << 32) + 0x1000 - _SMALLEST, "<u4")
