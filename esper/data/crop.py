"""Random resized crop on the device, from images that were squashed to a square.

Boxes are drawn in the coordinates of the original image, so their areas and aspect ratios are those of the usual crop.
Each is mapped to the square, and resizing restores the aspect ratio. As in `augment`, results are a pure function of
the random bits, and nothing is read from the device.

Source: Szegedy et al., Going Deeper with Convolutions, 2015; the details are torchvision's RandomResizedCrop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.data.augment import hash_bits
from esper.devices import sum_dtype

__all__ = ["crop_and_resize", "random_boxes"]

_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_NUM_TRIES = 10


def random_boxes(sizes: Tensor, bits: Tensor) -> Tensor:
    """Draw a box in each image: 8 to 100 % of its area, 3:4 to 4:3; after ten tries that do not fit, a centre crop.

    Args:
        sizes: heights and widths, int64 (B, 2).
        bits: random bits of each image, int64 (B,).

    Returns:
        Top, left, height and width, int64 (B, 4).
    """
    draws = hash_bits(bits[:, None], torch.arange(_NUM_TRIES + 1, device=bits.device))
    tries, position = draws[:, :-1], draws[:, -1]
    height, width = sizes.unbind(1)
    area = (height * width)[:, None] * _uniform(*_SCALE, tries)
    ratio = _uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), tries >> 24).exp()
    wide, high = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (wide > 0) & (wide <= width[:, None]) & (high > 0) & (high <= height[:, None])
    first = (fits * torch.arange(_NUM_TRIES, 0, -1, device=bits.device)).argmax(dim=1, keepdim=True)
    fitted = fits.any(dim=1)
    h = torch.where(fitted, high.gather(1, first)[:, 0], (width / _RATIO[0]).round().long().minimum(height))
    w = torch.where(fitted, wide.gather(1, first)[:, 0], (height * _RATIO[1]).round().long().minimum(width))
    top = torch.where(fitted, (position & 0x7FFFFFFF) % (height - h + 1), (height - h) // 2)
    left = torch.where(fitted, (position >> 31) % (width - w + 1), (width - w) // 2)
    return torch.stack([top, left, h, w], dim=1)


def crop_and_resize(canvases: Tensor, *, sizes: Tensor, boxes: Tensor, image_size: int, flipped: Tensor) -> Tensor:
    """Crop boxes from squashed images and resize them, bilinearly and without antialiasing.

    Args:
        canvases: uint8 (B, S, S, 3).
        sizes: heights and widths of the original images, int64 (B, 2).
        boxes: top, left, height and width in the original images, int64 (B, 4).
        image_size: height and width of the result.
        flipped: which images to flip horizontally, bool (B,).

    Returns:
        float32 (B, 3, H, W) in [0, 255].
    """
    side = canvases.shape[1]
    rows, columns = (
        _positions(boxes[:, axis], boxes[:, axis + 2], sizes[:, axis], side=side, num=image_size) for axis in (0, 1)
    )
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    shape = (len(boxes), image_size, image_size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=3)
    images = canvases.permute(0, 3, 1, 2).float()
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _positions(start: Tensor, length: Tensor, full: Tensor, *, side: int, num: int) -> Tensor:
    """Canvas positions of the result's pixels along one axis, in `grid_sample`'s coordinates: float32 (B, num)."""
    scale = side / full
    begin, extent = (start * scale)[:, None], (length * scale)[:, None]
    positions = begin + (torch.arange(num, device=start.device) + 0.5) * (extent / num) - 0.5
    inside = positions.maximum(begin).minimum(begin + (extent - 1).clamp(min=0))  # no pixels outside the box
    return (2 * inside + 1) / side - 1


def _uniform(low: float, high: float, bits: Tensor) -> Tensor:
    """Uniformly distributed numbers from the lowest 24 bits, of `sum_dtype`."""
    return low + (high - low) * ((bits & 0xFFFFFF).to(sum_dtype(bits.device)) / 2**24)
