"""Patch features as CLAM's `pt_files/*.pt`: one tensor (N, D) or (1, N, D) saved by torch.

Loads with `weights_only=True`, which refuses everything but plain tensors: no pickle is ever executed. Coordinates
come from `h5_files/SLIDE.h5` beside the file or beside its folder, as CLAM lays them; without one they are unknown.
Left out: dictionaries of tensors (other tools' `.pt`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gimp_ray.cohort.readers import patches_h5
from gimp_ray.cohort.readers.base import PatchAttributes, PatchSource, SourceChunk, bag_shape, unusable
from gimp_ray.errors import InputError

if TYPE_CHECKING:
    import torch


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size of a tensor file; its values stay on disk unless it is in torch's old format, which must be loaded whole."""
    tensor = _load(path, slide_id)
    n_patches, dim = bag_shape(tuple(tensor.shape), path, slide_id)
    dtype = str(tensor.dtype).removeprefix("torch.")
    source = PatchSource(slide_id, path, n_patches, dim, dtype, False, _chunks)
    folders = (path.parent / "h5_files", path.parent.parent / "h5_files")
    for candidate in (folder / f"{name}.h5" for folder in folders for name in (path.stem, slide_id)):
        if candidate.is_file():
            attributes = patches_h5.inspect_coords(candidate, slide_id, n_patches)
            if attributes is not None:
                return dataclasses.replace(source, has_coords=True, coords_path=candidate, attributes=attributes)
    return dataclasses.replace(source, attributes=PatchAttributes())


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    import torch

    tensor = _load(source.path, source.slide_id)
    tensor = tensor[0] if tensor.ndim == 3 else tensor
    coords = patches_h5.read_coords(source.coords_path, source.slide_id) if source.coords_path else None
    for start in range(0, source.n_patches, rows):
        part = tensor[start : start + rows]
        # numpy knows no bfloat16; float32 holds it exactly
        part = part.float() if part.dtype == torch.bfloat16 else part
        yield part.numpy(), None if coords is None else coords[start : start + rows]


def _load(path: Path, slide_id: str) -> torch.Tensor:
    import torch

    try:
        loaded = _torch_load(path)
    except Exception as error:  # unpickling raises whatever the bytes lead it to; none of it has run code
        raise _refused(path, slide_id, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not isinstance(loaded, torch.Tensor) or loaded.layout != torch.strided or not loaded.is_floating_point():
        dtype = f" of {loaded.dtype}" if isinstance(loaded, torch.Tensor) else ""
        raise _refused(path, slide_id, f"{type(loaded).__name__}{dtype}")
    return loaded.detach()


def _torch_load(path: Path) -> object:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickles; they are refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _refused(path: Path, slide_id: str, found: str) -> InputError:
    fix = "save the features alone: torch.save(features, path); a file that is not plain tensors is never loaded"
    expected = "one floating-point tensor (N, D) saved with torch.save"
    return unusable("the .pt file is not a plain tensor", path, slide_id, expected, found, fix)
