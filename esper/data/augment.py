"""Augmentation as a pure function of (random seed, epoch, index of the image).

Offsets and flips come from an integer hash, not from a random generator. So a resumed run needs no saved state, an
image gets the same augmentation in any batch and on any rank, and nothing is read from the device, so a step can be
captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment", "hash_bits", "uniform"]

# Constants of MurmurHash3's 64-bit finaliser, as signed integers: products wrap around.
_MULTIPLIERS = (-49064778989728563, -4265267296055464877)
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio; separates successive words


def hash_bits(index: Tensor, *words: int | Tensor) -> Tensor:
    """Hash integers to 63 pseudorandom bits.

    Args:
        index: int64 of any shape.
        words: more integers or broadcastable int64 tensors, hashed in turn.

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


def uniform(bits: Tensor) -> Tensor:
    """Numbers uniformly distributed in [0, 1), float32, from the lowest 24 of random bits."""
    return (bits & 0xFFFFFF).float() / 2**24


def augment(
    images: Tensor, index: Tensor, *, epoch: int | Tensor, rng_seed: int, crop_padding: int, horizontal_flip: bool
) -> Tensor:
    """Random crop from images padded with black, and horizontal flip of half of them.

    Args:
        images: uint8 (B, C, H, W).
        index: each image's index in its dataset, int64 (B,).
        epoch: epoch, from 0.
        rng_seed: random seed of the run.
        crop_padding: pixels of padding on each side before the crop to the original size.
        horizontal_flip: whether to flip.

    Returns:
        uint8 (B, C, H, W).
    """
    b, _, h, w = images.shape
    bits = hash_bits(index, rng_seed, epoch)
    span = 2 * crop_padding + 1
    rows = torch.arange(h, device=images.device) + (bits % span)[:, None]
    columns = torch.arange(w, device=images.device).expand(b, w)
    if horizontal_flip:
        flipped = (bits >> 40 & 1).bool()[:, None]
        columns = torch.where(flipped, w - 1 - columns, columns)
    columns = columns + (bits // span % span)[:, None]
    padded = F.pad(images, [crop_padding] * 4)
    batch = torch.arange(b, device=images.device)[:, None, None]
    # Gather with channels last, and return a channels-last view: one pass, no copy.
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
