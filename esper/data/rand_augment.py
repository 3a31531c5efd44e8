"""RandAugment on the device, as a pure function of (random seed, epoch, index of the image).

Every image draws its own operations. Each operation is a warp, a table of grey levels, or a blend with another version
of the image; a batch goes through all three, which leave an image as it is whose operation is of another kind. So
nothing is read from the device, and no shape depends on what is drawn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.data.augment import hash_bits

__all__ = ["OPERATIONS", "apply_operations", "rand_augment"]

_RAND_AUGMENT = 3  # word of the hash, beside those of `mix`
_MAX_MAGNITUDE = 30
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""Operations of torchvision's `RandAugment`, in its order."""


def rand_augment(
    images: Tensor, index: Tensor, *, epoch: int | Tensor, rng_seed: int, num_ops: int, magnitude: int
) -> Tensor:
    """Apply randomly chosen operations to each image, one after the other, as torchvision's `RandAugment` does.

    Source: RandAugment, arXiv:1909.13719.

    Args:
        images: uint8 (B, C, H, W), of 1 or 3 channels.
        index: each image's index in its dataset, int64 (B,).
        epoch: epoch, from 0.
        rng_seed: random seed of the run.
        num_ops: operations for each image.
        magnitude: strength of all of them, 0 to 30.

    Returns:
        uint8 (B, C, H, W).
    """
    draws = hash_bits(index[:, None], rng_seed, epoch, _RAND_AUGMENT, torch.arange(num_ops, device=index.device))
    for draw in draws.unbind(1):
        images = apply_operations(images, draw % len(OPERATIONS), (draw >> 40) % 2 * 2 - 1, magnitude=magnitude)
    return images


def apply_operations(images: Tensor, operation: Tensor, sign: Tensor, *, magnitude: int) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 (B, C, H, W), of 1 or 3 channels.
        operation: position in OPERATIONS, int64 (B,).
        sign: -1 or 1, direction of operations that have two, (B,).
        magnitude: strength, 0 to 30.
    """
    chosen = {name: operation == number for number, name in enumerate(OPERATIONS)}
    strength = magnitude / _MAX_MAGNITUDE
    images = _warped(images, chosen, sign * strength)
    factor = 1 + 0.9 * strength * sign  # of brightness and other enhancements
    images = _mapped(images, chosen, factor, strength)
    return _blended(images, chosen, factor)


def _warped(images: Tensor, chosen: dict[str, Tensor], strength: Tensor) -> Tensor:
    """Shear, shift and rotate by nearest neighbour; what comes from outside is black."""
    b, c, height, width = images.shape
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    x = torch.arange(width, device=images.device) + 0.5
    level = strength[:, None, None]
    angle = torch.where(chosen["Rotate"], strength * (torch.pi / 6), 0.0)[:, None, None]
    from_centre = x - width / 2, y - height / 2
    source_x = angle.cos() * from_centre[0] - angle.sin() * from_centre[1] + width / 2
    source_y = angle.sin() * from_centre[0] + angle.cos() * from_centre[1] + height / 2
    source_x = source_x + torch.where(chosen["ShearX"][:, None, None], 0.3 * level * y, 0.0)
    source_y = source_y + torch.where(chosen["ShearY"][:, None, None], 0.3 * level * x, 0.0)
    reach = 150 / 331  # of a shift at full strength, as share of the side
    source_x = source_x - torch.where(chosen["TranslateX"][:, None, None], (reach * width * level).trunc(), 0.0)
    source_y = source_y - torch.where(chosen["TranslateY"][:, None, None], (reach * height * level).trunc(), 0.0)
    column, row = (source_x - 0.5).round().long(), (source_y - 0.5).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    position = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = images.flatten(2).gather(2, position.flatten(1)[:, None].expand(b, c, height * width)).view(images.shape)
    return moved * inside[:, None]


def _mapped(images: Tensor, chosen: dict[str, Tensor], factor: Tensor, strength: float) -> Tensor:
    """Operations that map grey levels by a table of each image and channel, uint8 (B, C, 256)."""
    flat = images.flatten(2).long()
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones((), dtype=torch.int32, device=images.device).expand_as(flat))
    levels = torch.arange(256, device=images.device).expand(histogram.shape)
    mean = _grey(images).mean((1, 2, 3))[:, None, None]
    ratio = factor[:, None, None]
    posterized = levels & (0xFF << round(4 * strength) & 0xFF)
    threshold = 255 * (1 - strength)
    tables = {
        "Brightness": (levels * ratio).clamp(0, 255),
        "Contrast": (levels * ratio + mean * (1 - ratio)).clamp(0, 255),
        "Posterize": posterized,
        "Solarize": torch.where(levels >= threshold, 255 - levels, levels),
        "AutoContrast": _stretched(flat, levels),
        "Equalize": _equalized(flat, histogram, levels),
    }
    table = levels.to(torch.uint8)
    for name, other in tables.items():
        table = torch.where(chosen[name][:, None, None], other.to(torch.uint8), table)
    return table.gather(2, flat).view(images.shape)


def _stretched(flat: Tensor, levels: Tensor) -> Tensor:
    """The table that maps a channel's darkest level to 0 and its brightest to 255."""
    low, high = flat.amin(2, keepdim=True).float(), flat.amax(2, keepdim=True).float()
    return torch.where(
        high > low, ((levels - low) / ((high - low) * (1 / 255)).clamp(min=1 / 255)).clamp(0, 255), levels
    )


def _equalized(flat: Tensor, histogram: Tensor, levels: Tensor) -> Tensor:
    """Pillow's table that makes a channel's grey levels about equally frequent."""
    total = histogram.cumsum(2)
    brightest = histogram.gather(2, flat.amax(2, keepdim=True))
    step = (total[:, :, -1:] - brightest) // 255
    before = F.pad(total[:, :, :-1], (1, 0))
    return torch.where(step > 0, ((before + step // 2) // step.clamp(min=1)).clamp(0, 255), levels)


def _blended(images: Tensor, chosen: dict[str, Tensor], factor: Tensor) -> Tensor:
    """Operations that blend with the image in grey, or blurred."""
    values = images.float()
    blurred = ((9 * F.avg_pool2d(values, 3, stride=1, padding=1) + 4 * values) / 13).round()
    for axis in (2, 3):  # the border stays
        position = torch.arange(images.shape[axis], device=images.device)
        is_border = (position == 0) | (position == images.shape[axis] - 1)
        blurred = torch.where(is_border.view(-1, 1) if axis == 2 else is_border, values, blurred)
    is_sharpness = chosen["Sharpness"][:, None, None, None]
    other = torch.where(is_sharpness, blurred, _grey(images))
    factor = torch.where(chosen["Sharpness"] | chosen["Color"], factor, 1.0)[:, None, None, None]
    return (values * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luminance in whole levels, float32 (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().chunk(3, 1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()
