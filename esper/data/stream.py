"""Batches of image files that are decoded during training."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing

import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.augment import hash_bits
from esper.data.crop import crop_and_resize, random_boxes
from esper.data.images import FileSet
from esper.data.loader import Preprocess, epoch_order
from esper.data.mix import Mixer, erase
from esper.data.pool import DecodePool, PendingBatch
from esper.data.rand_augment import rand_augment
from esper.data.transfer import Transfer

__all__ = ["StreamLoader", "stream_batches"]


class StreamLoader:
    """Training batches of image files; see `Loader`.

    Images arrive squashed to a square; the random resized crop is made on the device. `seek` copies the batch into
    static buffers, which a captured step reads.

    Args:
        split: the training images.
        config: batch size, shuffling, augmentation.
        rng_seed: random seed of shuffling and augmentation.
        prepare: converts images to network input.
        pool: decodes the files.
        device: destination of the batches.
        rows: this rank's rows of a batch.
        mixer: mixes the images of a batch; None: nothing is mixed.
    """

    def __init__(
        self,
        split: FileSet,
        config: DatasetConfig,
        *,
        rng_seed: int,
        prepare: Preprocess,
        pool: DecodePool,
        device: torch.device,
        rows: slice = slice(None),
        mixer: Mixer | None = None,
    ) -> None:
        self._split = split
        self._config = config
        self._rng_seed = rng_seed
        self._prepare = prepare
        self._mixer = mixer
        self._pool = pool
        self._device = device
        self._resize = split.squashed if config.use_augmentation else split.centre_crop
        self._rows = range(config.batch_size)[rows]
        self._images, self._metadata = _buffers(len(self._rows), self._resize.output_size, device)
        self._transfer = Transfer((self._images, self._metadata), device)
        self._current: tuple[int, int] | None = None  # (epoch, index) of the batch in the buffers
        self._next: tuple[int, int] | None = None  # (epoch, index) of the batch that is read next
        self._reading: Generator[PendingBatch, None, None] | None = None
        self._first_epoch = -1
        self._first: list[tuple[Tensor, Tensor]] = []  # first batches of that epoch, decoded, on the CPU

    @property
    def batch_size(self) -> int:
        """Images in a batch, over all ranks."""
        return self._config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; drops the last incomplete batch (different images each epoch)."""
        return len(self._split) // self._config.batch_size

    def seek(self, epoch: int, index: int) -> None:
        """Send a batch to the device, unless it is there; a jump restarts reading."""
        if self._current == (epoch, index):
            return
        if self._reading is None or self._next != (epoch, index):
            if self._reading is not None:
                self._reading.close()
            self._reading = self._pool.read(self._split, self._indices(epoch, index, self._rows), self._resize)
        self._current = self._next = None  # in case the next lines fail
        self._first.clear()
        self._transfer.send(next(self._reading).copy_to, (self._images, self._metadata))
        self._current = (epoch, index)
        self._next = (epoch, index + 1) if index + 1 < self.num_batches else (epoch + 1, 0)

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows of batch number `index` of an epoch, see `Loader.batch`."""
        if isinstance(epoch, int) and isinstance(index, int):
            self.seek(epoch, index)
        images, labels = self._prepared(self._images, self._metadata, epoch), self._metadata[:, 1].contiguous()
        return self._mixer(images, labels, self._metadata[:, 0], epoch=epoch) if self._mixer else (images, labels)

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """Images of an epoch's first batches, over all ranks; they stay decoded until the next `seek`."""
        if epoch != self._first_epoch:
            self._first_epoch, self._first = epoch, []
        batches = self._indices(epoch, len(self._first), range(self.batch_size))
        missing = itertools.islice(batches, max(0, num - len(self._first)))
        with closing(self._pool.read(self._split, missing, self._resize)) as reading:
            for i in range(num):
                if i == len(self._first):
                    decoded = _buffers(self.batch_size, self._resize.output_size, torch.device("cpu"))
                    next(reading).copy_to(*decoded)
                    self._first.append(decoded)
                images, metadata = self._first[i]
                yield self._prepared(images.to(self._device), metadata.to(self._device), epoch)

    def _indices(self, epoch: int, index: int, rows: range) -> Iterator[Tensor]:
        """Yield indices of the images in these rows of each batch, from this batch on, without end."""
        size = self.batch_size
        while True:
            order = torch.arange(len(self._split))
            if self._config.shuffle:
                order = epoch_order(len(self._split), epoch=epoch, rng_seed=self._rng_seed)
            for number in range(index, self.num_batches):
                yield order[number * size + rows.start : number * size + rows.stop]
            epoch, index = epoch + 1, 0

    def _prepared(self, images: Tensor, metadata: Tensor, epoch: int | Tensor) -> Tensor:
        config, index = self._config, metadata[:, 0]
        if config.use_augmentation:
            sizes, bits = metadata[:, 2:], hash_bits(index, self._rng_seed, epoch)
            cropped = crop_and_resize(
                images,
                sizes=sizes,
                boxes=random_boxes(sizes, bits),
                image_size=self._split.image_size,
                flipped=(bits >> 40 & int(config.horizontal_flip)).bool(),
            )
        else:
            cropped = images.permute(0, 3, 1, 2)
        if config.rand_augment_num_ops:
            cropped = rand_augment(
                cropped.round().to(torch.uint8),
                index,
                epoch=epoch,
                rng_seed=self._rng_seed,
                num_ops=config.rand_augment_num_ops,
                magnitude=config.rand_augment_magnitude,
            )
        prepared = self._prepare(cropped)
        if config.random_erasing:
            return erase(prepared, index, epoch=epoch, rng_seed=self._rng_seed, probability=config.random_erasing)
        return prepared


def stream_batches(
    split: FileSet, batch_size: int, *, prepare: Preprocess, pool: DecodePool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a whole split in order, centre-cropped: float32 (B, C, H, W), int64 (B,); the last may be smaller."""
    largest = _buffers(min(batch_size, len(split)), split.image_size, torch.device("meta"))
    transfer = Transfer(largest, device)
    with closing(pool.read(split, torch.split(torch.arange(len(split)), batch_size), split.centre_crop)) as reading:
        for batch in reading:
            images, metadata = _buffers(len(batch), split.image_size, device)
            transfer.send(batch.copy_to, (images, metadata))
            yield prepare(images.permute(0, 3, 1, 2)), metadata[:, 1].contiguous()


def _buffers(num: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Allocate images and metadata for `PendingBatch.copy_to`."""
    images = torch.empty((num, side, side, 3), dtype=torch.uint8, device=device)
    metadata = torch.empty((num, 4), dtype=torch.int64, device=device)
    return images, metadata
