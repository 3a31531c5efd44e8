"""Batches of images that are decoded while training goes on."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing

import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.augment import hash_bits
from esper.data.crop import cut_out, random_boxes
from esper.data.files import FileSet
from esper.data.loader import Preparation, epoch_order
from esper.data.pool import DecodePool, Decoding

__all__ = ["StreamLoader", "stream_batches"]

_NUM_SLOTS = 3
"""Batches in pinned memory on their way to the device: the host stays at most that many steps ahead of it."""


class StreamLoader:
    """Training batches of image files; see `Loader`.

    Images come squashed to a square; a box of random size and shape is cut out of each on the device. `seek` copies the
    batch into buffers that stay where they are, so a captured step reads it there.

    Args:
        split: the training images.
        config: batch size, order, augmentation.
        rng_seed: random seed of order and augmentation.
        prepare: makes network input of images.
        pool: decodes.
        device: where batches go.
        rows: which rows of a batch this process trains on.
    """

    def __init__(
        self,
        split: FileSet,
        config: DatasetConfig,
        *,
        rng_seed: int,
        prepare: Preparation,
        pool: DecodePool,
        device: torch.device,
        rows: slice = slice(None),
    ) -> None:
        self._split = split
        self._config = config
        self._rng_seed = rng_seed
        self._prepare = prepare
        self._pool = pool
        self._device = device
        self._form = split.squashed if config.use_augmentation else split.centre
        self._rows = range(config.batch_size)[rows]
        self._transfer = _Transfer(len(self._rows), self._form.side, device)
        self._images, self._facts = _buffers(len(self._rows), self._form.side, device)
        self._at: tuple[int, int] | None = None  # what lies there
        self._next: tuple[int, int] | None = None  # what is read next
        self._reading: Generator[Decoding, None, None] | None = None
        self._first_epoch = -1
        self._first: list[tuple[Tensor, Tensor]] = []  # that epoch's first batches, decoded, on the host

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self._config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; images that do not fill one are left out, others in every epoch."""
        return len(self._split) // self._config.batch_size

    def seek(self, epoch: int, index: int) -> None:
        """Send a batch to the device, unless it is there; after a jump, reading begins anew."""
        if self._at == (epoch, index):
            return
        if self._reading is None or self._next != (epoch, index):
            if self._reading is not None:
                self._reading.close()
            self._reading = self._pool.read(self._split, self._indices(epoch, index, self._rows), self._form)
        self._at = self._next = None  # should what follows fail
        self._first.clear()
        self._transfer.send(next(self._reading), (self._images, self._facts))
        self._at = (epoch, index)
        self._next = (epoch, index + 1) if index + 1 < self.num_batches else (epoch + 1, 0)

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Batch number `index` of an epoch: float32 (B, C, H, W) and int64 (B,)."""
        if isinstance(epoch, int) and isinstance(index, int):
            self.seek(epoch, index)
        return self._prepared(self._images, self._facts, epoch), self._facts[:, 1].contiguous()

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """The images of an epoch's first whole batches; until the next `seek` they are decoded once."""
        if epoch != self._first_epoch:
            self._first_epoch, self._first = epoch, []
        whole = self._indices(epoch, len(self._first), range(self.batch_size))
        wanted = itertools.islice(whole, max(0, num - len(self._first)))
        with closing(self._pool.read(self._split, wanted, self._form)) as reading:
            for i in range(num):
                if i == len(self._first):
                    decoded = _buffers(self.batch_size, self._form.side, torch.device("cpu"))
                    next(reading).fill(*decoded)
                    self._first.append(decoded)
                images, facts = self._first[i]
                yield self._prepared(images.to(self._device), facts.to(self._device), epoch)

    def _indices(self, epoch: int, index: int, rows: range) -> Iterator[Tensor]:
        """Which images those rows of the batches from this one on hold, epoch after epoch."""
        size = self.batch_size
        while True:
            order = torch.arange(len(self._split))
            if self._config.shuffle:
                order = epoch_order(len(self._split), epoch=epoch, rng_seed=self._rng_seed)
            for number in range(index, self.num_batches):
                yield order[number * size + rows.start : number * size + rows.stop]
            epoch, index = epoch + 1, 0

    def _prepared(self, images: Tensor, facts: Tensor, epoch: int | Tensor) -> Tensor:
        if not self._config.use_augmentation:
            return self._prepare(images.permute(0, 3, 1, 2))
        index, sizes = facts[:, 0], facts[:, 2:]
        bits = hash_bits(index, self._rng_seed, epoch)
        return self._prepare(
            cut_out(
                images,
                sizes=sizes,
                boxes=random_boxes(sizes, bits),
                image_size=self._split.image_size,
                mirrored=(bits >> 40 & int(self._config.horizontal_flip)).bool(),
            )
        )


def stream_batches(
    split: FileSet, batch_size: int, *, prepare: Preparation, pool: DecodePool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a split in order, centre-cropped: float32 (B, C, H, W), int64 (B,); the last batch may be smaller."""
    transfer = _Transfer(min(batch_size, len(split)), split.image_size, device)
    with closing(pool.read(split, torch.split(torch.arange(len(split)), batch_size), split.centre)) as reading:
        for decoding in reading:
            images, facts = _buffers(len(decoding), split.image_size, device)
            transfer.send(decoding, (images, facts))
            yield prepare(images.permute(0, 3, 1, 2)), facts[:, 1].contiguous()


class _Transfer:
    """Owner of the host's memory through which batches go to the device; on CUDA they go while the host goes on."""

    def __init__(self, batch_size: int, side: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        cpu = torch.device("cpu")
        self._slots = [_buffers(batch_size, side, cpu, pinned=is_cuda) for _ in range(_NUM_SLOTS if is_cuda else 1)]
        self._sent = [torch.cuda.Event(blocking=True) for _ in self._slots] if is_cuda else []  # type: ignore[no-untyped-call]
        self._turn = 0

    def send(self, batch: Decoding, into: tuple[Tensor, Tensor]) -> None:
        """Copy a batch to tensors of its size on the device; only the waiting for the decoders is waited for."""
        self._turn = (self._turn + 1) % len(self._slots)
        if self._sent:
            self._sent[self._turn].synchronize()  # deliberate: what is in this slot may still be on its way
        images, facts = (buffer[: len(batch)] for buffer in self._slots[self._turn])
        batch.fill(images, facts)
        into[0].copy_(images, non_blocking=True)
        into[1].copy_(facts, non_blocking=True)
        if self._sent:
            self._sent[self._turn].record()


def _buffers(num: int, side: int, device: torch.device, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
    """Memory for images, and for what `Decoding.fill` tells of them."""
    images = torch.empty((num, side, side, 3), dtype=torch.uint8, device=device, pin_memory=pinned)
    facts = torch.empty((num, 4), dtype=torch.int64, device=device, pin_memory=pinned)
    return images, facts
