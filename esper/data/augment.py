"""Augmentation as a pure function of (random seed, epoch, index of the image).

Offsets and flips come from an integer hash, not from a generator: there is no state to save, so a resumed run draws
what it would have drawn; an image gets the same augmentation whatever batch or rank it falls in; and nothing is read
back from the device, so a step can be captured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment", "hash_bits"]

# Constants of MurmurHash3's 64-bit finaliser, as signed integers: products wrap around.
_MULTIPLIERS = (-49064778989728563, -4265267296055464877)
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio; separates the words that are mixed in


def hash_bits(index: Tensor, *words: int | Tensor) -> Tensor:
    """Mix integers into 63 random-looking bits.

    Args:
        index: int64 of any shape.
        words: more integers, or 0-dim int64 tensors, mixed in one after the other.

    Returns:
        Non-negative int64, shaped like `index`.
    """
    bits = index
    for word in words:
        bits = bits * _GOLDEN + word
        for multiplier in _MULTIPLIERS:
            bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * multiplier
        bits = bits ^ ((bits >> 33) & 0x7FFFFFFF)
    return bits & 0x7FFFFFFFFFFFFFFF


def augment(
    images: Tensor, index: Tensor, *, epoch: int | Tensor, rng_seed: int, crop_padding: int, horizontal_flip: bool
) -> Tensor:
    """Shift images by up to `crop_padding` pixels, with black coming in, and mirror half of them.

    Args:
        images: uint8 (B, C, H, W).
        index: each image's index in its dataset, int64 (B,).
        epoch: epoch, from 0.
        rng_seed: random seed of the run.
        crop_padding: pixels of padding on each side before a random crop to the old size; 0: none.
        horizontal_flip: whether to mirror.

    Returns:
        uint8 (B, C, H, W).
    """
    b, _, h, w = images.shape
    bits = hash_bits(index, rng_seed, epoch)
    span = 2 * crop_padding + 1
    rows = torch.arange(h, device=images.device) + (bits % span)[:, None]
    columns = torch.arange(w, device=images.device).expand(b, w)
    if horizontal_flip:
        mirrored = (bits >> 40 & 1).bool()[:, None]
        columns = torch.where(mirrored, w - 1 - columns, columns)
    columns = columns + (bits // span % span)[:, None]
    padded = F.pad(images, [crop_padding] * 4)
    batch = torch.arange(b, device=images.device)[:, None, None]
    # Channels go last in the gather and come back as a channels-last view: one pass, no copy.
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
