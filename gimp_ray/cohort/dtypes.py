"""The number formats a store may keep embeddings in, and the way there and back.

numpy knows no bfloat16: such values are stored as their 16 bits and read as float32, which holds each of them
exactly. Left out: scaling; a value that the format cannot hold is refused, never changed into an infinity.
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


def width(dim: int, dtype: str) -> int:
    """Bytes of one embedding."""
    return dim * STORED[dtype].itemsize


def largest(dtype: str) -> float:
    """The largest finite value of the format."""
    return _LARGEST[dtype]


def value_dtype(dtype: str) -> np.dtype[Any]:
    """What windows of a store come as: float16 as float16, bfloat16 and float32 as float32."""
    return np.dtype(np.float16 if dtype == "float16" else np.float32)


def encode(features: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """Features as the store keeps them, rounded to the nearest (ties to even); beyond the range they become Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "bfloat16":
            return np.ascontiguousarray(features, dtype=STORED[dtype])
        bits = np.ascontiguousarray(features, dtype="<f4").view("<u4")
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        # rounding up must not turn a NaN into something finite
        nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        return np.where(nan, np.uint32(0x7FC0), rounded).astype("<u2")


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
