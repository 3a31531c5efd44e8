"""Training batches from images on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from esper import hanging
from esper.configs import DatasetConfig, derive_seed
from esper.data.augment import augment
from esper.data.images import ImageSet
from esper.data.mix import Mixer, erase
from esper.data.rand_augment import rand_augment

__all__ = ["Loader", "Preprocess", "TrainLoader", "epoch_order"]


class Loader(Protocol):
    """Random access to training batches: epoch and batch number determine the batch.

    In distributed training each rank gets its rows of every batch.
    """

    @property
    def batch_size(self) -> int:
        """Images in a batch, over all ranks."""

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; drops the last incomplete batch (different images each epoch)."""

    def seek(self, epoch: int, index: int) -> None:
        """Send to the device what batch number `index` of an epoch needs."""

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows of batch number `index` of an epoch: float32 (B, C, H, W) and int64 (B,).

        Targets are float32 (B, num_classes) if images are mixed.
        If epoch and index are 0-dim int64 tensors, nothing is read from the device; call `seek` first.
        """

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """Images of an epoch's first batches, over all ranks: float32 (B, C, H, W). The batch of `seek` stays."""


def epoch_order(num_images: int, *, epoch: int, rng_seed: int) -> Tensor:
    """Shuffle order of the training images in an epoch: int64 (N,), on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, epoch))
    return torch.randperm(num_images, generator=generator)


class Preprocess:
    """Convert stored images to network input.

    Args:
        mean, std: of each channel, in units of [0, 1].
        normalize: standardise with them; otherwise only scale to [0, 1].
        channels_last: memory format of the result.
        device: device of the images.
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
        """Images (B, C, H, W) or rows (B, D) to float32 of that shape."""
        if images.ndim == 2:  # rows
            return torch.addcmul(self._offset.flatten(), images, self._factor.flatten())
        prepared = torch.addcmul(self._offset, images.float(), self._factor).contiguous(memory_format=self._format)
        if prepared.shape[1] == 1 and self._format is torch.contiguous_format:
            # One channel is contiguous in both formats, but convolutions look at the strides: restore the plain ones.
            return prepared.squeeze(1).unsqueeze(1)
        return prepared

    def undone(self, images: Tensor) -> Tensor:
        """Network input (C, H, W) or (B, C, H, W) as it was stored, but float32."""
        return (images - self._offset) / self._factor

    def batches(self, split: ImageSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a whole split in order, without augmentation; the last may be smaller."""
        for start in range(0, len(split), batch_size):
            hanging.beat()
            rows = slice(start, start + batch_size)
            yield self(split.at(rows)), split.labels[rows]


class TrainLoader:
    """Training batches of images in device memory; see `Loader`.

    Args:
        split: the training images, on the device.
        config: batch size, shuffling, augmentation.
        rng_seed: random seed of shuffling and augmentation.
        prepare: converts images to network input.
        rows: this rank's rows of a batch.
        mixer: mixes the images of a batch; None: nothing is mixed.
    """

    def __init__(
        self,
        split: ImageSet,
        config: DatasetConfig,
        *,
        rng_seed: int,
        prepare: Preprocess,
        rows: slice = slice(None),
        mixer: Mixer | None = None,
    ) -> None:
        self._split = split
        self._config = config
        self._rng_seed = rng_seed
        self._prepare = prepare
        self._mixer = mixer
        self._order = torch.arange(len(split), device=split.labels.device)
        self._order_epoch: int | None = None
        self._all_rows = torch.arange(config.batch_size, device=split.labels.device)
        self._rows = self._all_rows[rows]

    @property
    def batch_size(self) -> int:
        """Images in a batch, over all ranks."""
        return self._config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; drops the last incomplete batch (different images each epoch)."""
        return len(self._split) // self._config.batch_size

    def seek(self, epoch: int, index: int) -> None:  # noqa: ARG002  (StreamLoader needs it)
        """Send the epoch's shuffle order to the device."""
        if not self._config.shuffle or epoch == self._order_epoch:
            return
        self._order.copy_(epoch_order(len(self._split), epoch=epoch, rng_seed=self._rng_seed))
        self._order_epoch = epoch

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows of batch number `index` of an epoch: float32 (B, C, H, W) and int64 (B,).

        Targets are float32 (B, num_classes) if images are mixed.
        If epoch and index are 0-dim int64 tensors, nothing is read from the device; call `seek` first.
        """
        if isinstance(epoch, int) and isinstance(index, int):
            self.seek(epoch, index)
        images, selected = self._gather(self._rows, epoch, index)
        labels = self._split.labels[selected]
        return self._mixer(images, labels, selected, epoch=epoch) if self._mixer else (images, labels)

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """Images of an epoch's first batches, over all ranks."""
        for index in range(num):
            hanging.beat()
            self.seek(epoch, index)
            yield self._gather(self._all_rows, epoch, index)[0]

    def _gather(self, rows: Tensor, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """These rows of a batch, augmented but not mixed, and the images' indices in the split."""
        config = self._config
        selected = self._order[rows + index * config.batch_size]
        images = self._split.at(selected)
        if config.use_augmentation and images.dtype == torch.uint8:
            images = augment(
                images,
                selected,
                epoch=epoch,
                rng_seed=self._rng_seed,
                crop_padding=config.crop_padding,
                horizontal_flip=config.horizontal_flip,
            )
        if config.rand_augment_num_ops:
            images = rand_augment(
                images,
                selected,
                epoch=epoch,
                rng_seed=self._rng_seed,
                num_ops=config.rand_augment_num_ops,
                magnitude=config.rand_augment_magnitude,
            )
        images = self._prepare(images)
        if config.random_erasing:
            images = erase(images, selected, epoch=epoch, rng_seed=self._rng_seed, probability=config.random_erasing)
        return images, selected
