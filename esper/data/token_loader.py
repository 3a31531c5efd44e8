"""Training batches of text."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from esper import hanging
from esper.configs import DatasetConfig
from esper.data.augment import hash_bits
from esper.data.loader import epoch_order
from esper.data.tokens import TokenSet
from esper.data.transfer import Transfer

__all__ = ["TokenLoader"]


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
        self._received: Tensor | None = None  # if streamed, the batch of the last `seek`: (B, T + 1)
        if split.is_streamed:
            shape, dtype = (len(self._rows), split.context + 1), split.tokens.dtype
            self._received = torch.empty(shape, dtype=dtype, device=device)
            self._transfer = Transfer([self._received], device)
        self._current: tuple[int, int] | None = None  # (epoch, index) of that batch

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
        if self._received is not None and self._current != (epoch, index):
            self._transfer.send(lambda buffer: buffer.copy_(self._read(self._rows, epoch, index)), [self._received])
            self._current = (epoch, index)

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
        received = self._received
        tokens = received.long() if received is not None else self._read(self._rows, epoch, index)
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
