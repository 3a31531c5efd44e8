"""Mixup, CutMix and random erasing on the device, as pure functions of (random seed, epoch, index of the image).

As in `augment`, nothing is read from the device, and no shape depends on what is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.augment import hash_bits, uniform

__all__ = ["Mixer", "cutmix_area", "erase"]

_MIX, _ERASE = 1, 2  # words of the hash: draws that are independent of crop and flip, and of each other
_NUM_QUANTILES = 4096
_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 3.3)


class Mixer:
    """Mix each image of a batch with the one before it: by mixup, CutMix, or, if both are on, one of them at random.

    Every image has its own share of the other one. The targets are mixed as the images are.
    Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899.

    Args:
        config: parameters of the Beta distributions of the shares; 0: off.
        rng_seed: random seed of the run.
        num_classes: width of the targets.
        device: of the batches.
    """

    def __init__(self, config: DatasetConfig, *, rng_seed: int, num_classes: int, device: torch.device) -> None:
        self._rng_seed = rng_seed
        self._num_classes = num_classes
        self._mixup = _quantiles(config.mixup_alpha, device)
        self._cutmix = _quantiles(config.cutmix_alpha, device)

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor, *, epoch: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: float32 (B, C, H, W).
            labels: their classes, int64 (B,).
            index: each image's index in its dataset, int64 (B,).
            epoch: epoch, from 0.

        Returns:
            float32 (B, C, H, W), and the probability of each class, float32 (B, num_classes).
        """
        draws = hash_bits(index[:, None], self._rng_seed, epoch, _MIX, torch.arange(4, device=index.device))
        which, share, row, column = uniform(draws).unbind(1)
        height, width = images.shape[2:]
        weights = torch.zeros((len(images), height, width), device=images.device)  # of the other image
        if self._mixup is not None:
            weights = weights + _at(self._mixup, share)[:, None, None]
        if self._cutmix is not None:
            area = cutmix_area(_at(self._cutmix, share), row, column, height=height, width=width)
            chosen = which < 0.5 if self._mixup is not None else torch.ones_like(which, dtype=torch.bool)
            weights = torch.where(chosen[:, None, None], area.float(), weights)
        mixed = images.lerp(images.roll(1, 0), weights[:, None])
        targets = F.one_hot(labels, self._num_classes).float()
        return mixed, targets.lerp(targets.roll(1, 0), weights.mean((1, 2))[:, None])


def cutmix_area(share: Tensor, row: Tensor, column: Tensor, *, height: int, width: int) -> Tensor:
    """The rectangles that are cut out of the other images, of the images' shape as far as they lie inside.

    Args:
        share: of the image that a rectangle would cover, (B,).
        row, column: its centre, in [0, 1), (B,).
        height, width: of the images.

    Returns:
        bool (B, H, W).
    """
    half = 0.5 * share.sqrt()
    row, column = (row * height).floor(), (column * width).floor()
    up, left = (half * height).floor(), (half * width).floor()
    rows, columns = _between(row - up, row + up, height), _between(column - left, column + left, width)
    return rows[:, :, None] & columns[:, None, :]


def erase(images: Tensor, index: Tensor, *, epoch: int | Tensor, rng_seed: int, probability: float) -> Tensor:
    """Set a random rectangle of some images to 0, the mean: 2 to 33 % of the area, 3:10 to 10:3, cut to the image.

    Source: random erasing, arXiv:1708.04896.

    Args:
        images: normalised, float32 (B, C, H, W).
        index: each image's index in its dataset, int64 (B,).
        epoch: epoch, from 0.
        rng_seed: random seed of the run.
        probability: share of the images.
    """
    _, _, height, width = images.shape
    draws = hash_bits(index[:, None], rng_seed, epoch, _ERASE, torch.arange(5, device=index.device))
    which, share, ratio, row, column = uniform(draws).unbind(1)
    low, high = _ERASED_SHARE
    area = height * width * (low + (high - low) * share)
    narrow, wide = map(math.log, _ERASED_RATIO)
    ratio = (narrow + (wide - narrow) * ratio).exp()
    h = (area * ratio).sqrt().round().clamp(max=height)
    w = (area / ratio).sqrt().round().clamp(max=width)
    top, left = (row * (height - h + 1)).floor(), (column * (width - w + 1)).floor()
    rows, columns = _between(top, top + h, height), _between(left, left + w, width)
    erased = rows[:, :, None] & columns[:, None, :] & (which < probability)[:, None, None]
    return images.masked_fill(erased[:, None], 0.0)


def _between(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Which positions of a side lie in [start, stop), (B,): bool (B, size)."""
    positions = torch.arange(size, device=start.device)
    return (positions >= start[:, None]) & (positions < stop[:, None])


def _quantiles(alpha: float, device: torch.device) -> Tensor | None:
    """Quantiles of Beta(alpha, alpha) at the centres of equal intervals, float32; None if alpha is 0."""
    if alpha == 0:
        return None
    from scipy.special import betaincinv  # takes time to import that most runs do not need

    centres = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, centres)).float().to(device)


def _at(quantiles: Tensor, draws: Tensor) -> Tensor:
    return quantiles[(draws * _NUM_QUANTILES).long()]
