"""JPEGs: decoded fast, and checked for damage, which decoders repair without a word, with grey or shifted parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["describe_damage", "jpeg_damage", "plain_jpeg"]

_NUM_NAMED = 3
_WARNINGS = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
"""Beginnings of libjpeg's warnings about lost image data. Its other warnings are about unusual headers."""


_NOT_PLAIN = (b"\xff\xe1", b"MPF\0")
"""Segments with EXIF data or XMP, which may turn the image, and of files with several images."""


def plain_jpeg(path: str) -> NDArray[np.uint8] | None:
    """Decode a JPEG that is neither damaged nor in any way special; returns RGB, uint8 (H, W, 3).

    None: Pillow has to decode it, or to say what is wrong with it.
    """
    import simplejpeg  # lazily, as below

    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            data = file.read(3)
            if data != b"\xff\xd8\xff":
                return None
            data += file.read()
        if any(mark in data for mark in _NOT_PLAIN):
            return None
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True)
    except (OSError, ValueError):
        return None
    return pixels


def jpeg_damage(path: str, image: Image.Image) -> str | None:
    """What libjpeg warns of when it decodes a file; None: nothing, or it is no JPEG.

    Pillow drops these warnings, so that the file is decoded a second time, at the lowest scale.

    Args:
        path: the file.
        image: the file opened by Pillow.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    import simplejpeg  # lazily: of the datasets only folders with JPEGs need it

    try:
        data = Path(path).read_bytes()
        simplejpeg.decode_jpeg(data, colorspace="GRAY", fastdct=True, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(_WARNINGS) else None
    return None


def describe_damage(damaged: Mapping[str, str], *, folder: Path) -> str:
    """A line that counts damaged files.

    Args:
        damaged: path and damage of each.
        folder: folder of the dataset.
    """
    named = [f"{os.path.relpath(path, folder)}: {damage}" for path, damage in sorted(damaged.items())[:_NUM_NAMED]]
    more = ", …" if len(damaged) > _NUM_NAMED else ""
    return (
        f"dataset.data_dir={folder}: JPEG files damaged inside, used as far as they can be decoded: {len(damaged)} "
        f"({', '.join(named)}{more}); repair or remove them"
    )
