"""Transfers of batches from the CPU to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from esper import turns

__all__ = ["Transfer"]

_NUM_SLOTS = 3
"""Pinned buffers for transfers to the device: the CPU runs at most this many steps ahead of it."""


class Transfer:
    """Owner of the CPU buffers for transfers to the device; on CUDA they are pinned, and transfers asynchronous.

    Args:
        largest: the tensors of the largest batch; only their shapes and types matter.
        device: destination.
    """

    def __init__(self, largest: Sequence[Tensor], device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._device = device
        self._slots = [
            [torch.empty(t.shape, dtype=t.dtype, pin_memory=is_cuda) for t in largest]
            for _ in range(_NUM_SLOTS if is_cuda else 1)
        ]
        self._sent = [torch.cuda.Event(blocking=True) for _ in self._slots] if is_cuda else []  # type: ignore[no-untyped-call]
        self._slot = 0

    def send(self, fill: Callable[..., object], into: Sequence[Tensor]) -> None:
        """Let `fill` write a batch to CPU buffers, and copy these to tensors of the batch's size on the device."""
        self._slot = (self._slot + 1) % len(self._slots)
        if self._sent:
            turns.wait_for(self._sent[self._slot])  # deliberate: the last transfer from this slot may still be running
        buffers = [buffer[: len(tensor)] for buffer, tensor in zip(self._slots[self._slot], into, strict=True)]
        fill(*buffers)
        for tensor, buffer in zip(into, buffers, strict=True):
            tensor.copy_(buffer, non_blocking=bool(self._sent))  # MPS would read the buffer later, as it is refilled
        if self._sent:
            self._sent[self._slot].record(torch.cuda.current_stream(self._device))
