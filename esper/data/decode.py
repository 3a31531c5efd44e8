"""From an image file to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esper.errors import DataError

__all__ = ["Chunk", "Form", "decode_chunk", "decode_whole", "unreadable"]

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # SyntaxError: Pillow, of PNGs
_REDUCING_GAP = 2.0
"""A strong reduction begins with whole factors, until this much above its target: faster, hardly to be seen."""

Chunk = tuple[Tensor, Tensor]
"""Decoded images: uint8 (N, S, S, 3), and the files' own heights and widths, int64 (N, 2)."""


@dataclass(frozen=True, slots=True)
class Form:
    """What becomes of an image of any size.

    Attributes:
        resize: pixels that the shorter side is resized to.
        crop: side of the square that is cut out of the centre; None: both sides are resized, whatever becomes of the
            proportions.
    """

    resize: int
    crop: int | None

    @property
    def side(self) -> int:
        """Height and width of the result."""
        return self.crop or self.resize


def decode_chunk(paths: Sequence[str], form: Form) -> Chunk:
    """Decode some files alike, fast: a JPEG that is much too large is reduced while it is decoded.

    Raises:
        DataError: a file is not a readable image.
    """
    images = np.empty((len(paths), form.side, form.side, 3), dtype=np.uint8)
    sizes = np.empty((len(paths), 2), dtype=np.int64)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as file:
                sizes[i] = file.size[::-1]
                file.draft(None, _scaled(file.size, form))
                image = file.convert("RGB")
        except _UNREADABLE as error:
            raise unreadable(path, error) from None
        images[i] = np.asarray(_shaped(image, _scaled((sizes[i, 1], sizes[i, 0]), form), form.crop, _REDUCING_GAP))
    return torch.from_numpy(images), torch.from_numpy(sizes)


def decode_whole(path: str, image_size: int | None) -> Tensor:
    """Decode one file in full; returns uint8 (3, H, W).

    Args:
        path: the file.
        image_size: shorter side is resized to this, then the centre is cropped; None: as it is.

    Raises:
        DataError: it is not a readable image.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except _UNREADABLE as error:
        raise unreadable(path, error) from None
    if image_size is not None:
        image = _shaped(image, _scaled(image.size, Form(image_size, image_size)), image_size, None)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def unreadable(path: str, error: Exception) -> DataError:
    """The error to raise for a file that cannot be used."""
    return DataError(f"{path}: not a readable image ({error}); mend or remove it")


def _scaled(size: tuple[int, int], form: Form) -> tuple[int, int]:
    """Width and height to resize an image of this width and height to."""
    if form.crop is None:
        return form.resize, form.resize
    scale = form.resize / min(size)
    width, height = (max(form.resize, round(side * scale)) for side in size)
    return width, height


def _shaped(image: Image.Image, size: tuple[int, int], crop: int | None, reducing_gap: float | None) -> Image.Image:
    image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=reducing_gap)
    if crop is None:
        return image
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return image.crop((left, top, left + crop, top + crop))
