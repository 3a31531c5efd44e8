"""Training batches of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from esper import hanging
from esper.configs import DatasetConfig
from esper.data.augment import hash_bits
from esper.data.loader import epoch_order
from esper.data.tokens import TokenSet

__all__ = ["TokenLoader"]

_NUM_SLOTS = 3
"""Pinned buffers for transfers to the device: the CPU runs at most this many steps ahead of it."""


class TokenLoader:
    """Training windows in random order; see `Loader`.

    A pass over the split takes each window once. Where the windows of a pass begin is shifted at random by up to a
    window, so that passes differ. An epoch is `dataset.epoch_windows` long, and a pass by default.

    Args:
        split: the training tokens; unless they are streamed, on the device.
        config: batch size, shuffling, length of an epoch.
        rng_seed: random seed of order and shift.
        device: destination of the batches.
        rows: this rank's rows of a batch.
    """

    def __init__(
        self,
        split: TokenSet,
        config: DatasetConfig,
        *,
        rng_seed: int,
        device: torch.device,
        rows: slice = slice(None),
    ) -> None:
        self._split = split
        self._config = config
        self._rng_seed = rng_seed
        self._device = device
        self._num_windows = (split.num_tokens - split.context) // split.context  # after any shift
        self._batches_in_pass = self._num_windows // config.batch_size
        place = split.tokens.device
        self._order = torch.arange(self._num_windows, device=place)
        self._order_of: int | None = None  # the pass whose order that is
        self._all_rows = torch.arange(config.batch_size, device=place)
        self._rows = self._all_rows[rows]
        self._transfer = _Transfer(len(self._rows), split, device) if split.is_streamed else None

    @property
    def batch_size(self) -> int:
        """Windows in a batch, over all ranks."""
        return self._config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        num_windows = self._config.epoch_windows
        return self._batches_in_pass if num_windows is None else max(1, num_windows // self.batch_size)

    def seek(self, epoch: int, index: int) -> None:
        """Send the order of the pass to the device, or, if the tokens are streamed, the batch."""
        self._seek_pass(epoch, index)
        if self._transfer is not None:
            self._transfer.send((epoch, index), lambda: self._read(self._rows, epoch, index))

    def _seek_pass(self, epoch: int, index: int) -> None:
        pass_number = (epoch * self.num_batches + index) // self._batches_in_pass
        if self._config.shuffle and pass_number != self._order_of:
            self._order.copy_(epoch_order(self._num_windows, epoch=pass_number, rng_seed=self._rng_seed))
            self._order_of = pass_number

    def batch(self, epoch: int | Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows of batch number `index` of an epoch: inputs and targets, int64 (B, T).

        If epoch and index are 0-dim int64 tensors, nothing is read from the device; call `seek` first.
        """
        if isinstance(epoch, int) and isinstance(index, int):
            self.seek(epoch, index)
        tokens = self._transfer.received.long() if self._transfer else self._read(self._rows, epoch, index)
        return tokens[:, :-1], tokens[:, 1:]

    def first_batches(self, epoch: int, num: int) -> Iterator[Tensor]:
        """Inputs of an epoch's first batches, over all ranks: int64 (B, T). The batch of `seek` stays."""
        for index in range(num):
            hanging.beat()
            self._seek_pass(epoch, index)
            yield self._read(self._all_rows, epoch, index)[:, :-1].to(self._device)

    def _read(self, rows: Tensor, epoch: int | Tensor, index: int | Tensor) -> Tensor:
        """Windows and the token behind each: int64 (B, T + 1)."""
        batch = torch.as_tensor(epoch * self.num_batches + index, device=rows.device)
        windows = self._order[rows + batch % self._batches_in_pass * self.batch_size]
        starts = windows * self._split.context
        if self._config.shuffle:
            starts = starts + hash_bits(batch // self._batches_in_pass, self._rng_seed) % self._split.context
        return self._split.read(starts, self._split.context + 1)


class _Transfer:
    """Owner of the buffers through which streamed windows reach the device; on CUDA, transfers are asynchronous.

    Args:
        num_rows: windows in a batch.
        split: their tokens.
        device: where they go.

    Attributes:
        received: the batch that was sent last, in the split's format: (B, T + 1).
    """

    def __init__(self, num_rows: int, split: TokenSet, device: torch.device) -> None:
        shape, dtype = (num_rows, split.context + 1), split.tokens.dtype
        is_cuda = device.type == "cuda"
        self.received = torch.empty(shape, dtype=dtype, device=device)
        self._slots = [torch.empty(shape, dtype=dtype, pin_memory=is_cuda) for _ in range(_NUM_SLOTS if is_cuda else 1)]
        self._sent = [torch.cuda.Event(blocking=True) for _ in self._slots] if is_cuda else []  # type: ignore[no-untyped-call]
        self._turn = 0
        self._current: tuple[int, int] | None = None

    def send(self, which: tuple[int, int], read: Callable[[], Tensor]) -> None:
        """Send a batch, unless it is there."""
        if which == self._current:
            return
        self._turn = (self._turn + 1) % len(self._slots)
        if self._sent:
            self._sent[self._turn].synchronize()  # deliberate: the last transfer from this slot may still be running
        self._slots[self._turn].copy_(read())
        self.received.copy_(self._slots[self._turn], non_blocking=True)
        if self._sent:
            self._sent[self._turn].record()
        self._current = which
