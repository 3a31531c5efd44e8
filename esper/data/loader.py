"""Batches from images that lie on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.augment import augment
from esper.data.splits import ImageSet

__all__ = ["Loader", "Preparation", "TrainLoader", "epoch_order"]


class Loader(Protocol):
    """Training batches by number: any batch of any epoch, the same every time.

    Where several processes train one network, each gets its rows of every batch.
    """

    @property
    def batch_size(self) -> int:
        """Images in a batch, those of other processes too."""

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; images that do not fill one are left out, others in every epoch."""

    def seek(self, epoch: int, index: int) -> None:
        """Make ready on the host, and send to the device, what batch number `index` of an epoch needs."""

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Batch number `index` of an epoch, or the rows of it: float32 (B, C, H, W) and int64 (B,).

        Where the numbers are 0-dim int64 tensors nothing is read from the device; `seek` must have been called.
        """

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """The images of an epoch's first whole batches, float32 (B, C, H, W); the batch that was sought stays ready."""


def epoch_order(num_images: int, *, epoch: int, rng_seed: int) -> Tensor:
    """The order of the training images in an epoch: int64 (N,), in the host's memory."""
    generator = torch.Generator().manual_seed(rng_seed * 1_000_003 + epoch)
    return torch.randperm(num_images, generator=generator)


class Preparation:
    """Turn stored images into what a network takes.

    Args:
        mean, std: of each channel, in units of [0, 1].
        normalize: standardise with them; otherwise only scale to [0, 1].
        channels_last: memory format of the result.
        device: where the images are.
    """

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        normalize: bool,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        scale = torch.tensor(std if normalize else [1.0] * len(std), device=device)
        shift = torch.tensor(mean if normalize else [0.0] * len(mean), device=device)
        # (x / 255 - mean) / std in one multiplication and one addition.
        self._factor = (1.0 / (255.0 * scale))[:, None, None]
        self._offset = (-shift / scale)[:, None, None]
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, H, W)."""
        prepared = torch.addcmul(self._offset, images.float(), self._factor).contiguous(memory_format=self._format)
        if prepared.shape[1] == 1 and self._format is torch.contiguous_format:
            # One channel is contiguous in either order; convolutions go by the strides: make them the plain ones.
            return prepared.squeeze(1).unsqueeze(1)
        return prepared

    def batches(self, split: ImageSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of a split in order, without augmentation; the last batch may be smaller."""
        for start in range(0, len(split), batch_size):
            yield self(split.images[start : start + batch_size]), split.labels[start : start + batch_size]


class TrainLoader:
    """Training batches of images that lie on the device; see `Loader`.

    Args:
        split: the training images, on the device.
        config: batch size, order, augmentation.
        rng_seed: random seed of order and augmentation.
        prepare: makes network input of images.
        rows: which rows of a batch this process trains on.
    """

    def __init__(
        self,
        split: ImageSet,
        config: DatasetConfig,
        *,
        rng_seed: int,
        prepare: Preparation,
        rows: slice = slice(None),
    ) -> None:
        self._split = split
        self._config = config
        self._rng_seed = rng_seed
        self._prepare = prepare
        self._order = torch.arange(len(split), device=split.labels.device)
        self._order_epoch: int | None = None
        self._within = torch.arange(config.batch_size, device=split.labels.device)
        self._rows = self._within[rows]

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self._config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; images that do not fill one are left out, others in every epoch."""
        return len(self._split) // self._config.batch_size

    def seek(self, epoch: int, index: int) -> None:  # noqa: ARG002  (a stream needs it)
        """Send the epoch's order to the device."""
        if not self._config.shuffle or epoch == self._order_epoch:
            return
        self._order.copy_(epoch_order(len(self._split), epoch=epoch, rng_seed=self._rng_seed))
        self._order_epoch = epoch

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Batch number `index` of an epoch, or the rows of it: float32 (B, C, H, W) and int64 (B,).

        Where the numbers are 0-dim int64 tensors nothing is read from the device; `seek` must have been called.
        """
        if isinstance(epoch, int) and isinstance(index, int):
            self.seek(epoch, index)
        return self._at(self._rows, epoch, index)

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """The images of an epoch's first whole batches."""
        for index in range(num):
            self.seek(epoch, index)
            yield self._at(self._within, epoch, index)[0]

    def _at(self, rows: Tensor, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        config = self._config
        chosen = self._order[rows + index * config.batch_size]
        images = self._split.images[chosen]
        if config.use_augmentation:
            images = augment(
                images,
                chosen,
                epoch=epoch,
                rng_seed=self._rng_seed,
                crop_padding=config.crop_padding,
                horizontal_flip=config.horizontal_flip,
            )
        return self._prepare(images), self._split.labels[chosen]
