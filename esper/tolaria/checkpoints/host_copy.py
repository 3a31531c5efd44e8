"""Copies of a training's tensors in host memory, made while training continues."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["HostCopy"]

_MAX_DEVICE_BYTES = 2**29
"""Memory that a copy may take on the device for the moment."""


class HostCopy:
    """A copy of tensors in host memory, each contiguous, as safetensors needs them.

    On CUDA the caller does not wait: the tensors are gathered on the device in a few kernels, and copied to the host on
    a stream of its own, while the next steps change them. Where that would take much memory, they are copied one by
    one, on the stream of training.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
            for name, tensor in tensors.items()
            if not tensor.is_cuda
        }
        self._gathered: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None
        on_device = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_cuda}
        if not on_device:
            return
        try:
            is_small = sum(tensor.nbytes for tensor in on_device.values()) <= _MAX_DEVICE_BYTES
            stream = self._copy_gathered(on_device) if is_small else self._copy_each(on_device)
        except torch.OutOfMemoryError:
            stream = self._copy_each(on_device)
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._copied.record(stream)

    def wait(self) -> dict[str, Tensor]:
        """The copies, when they are complete; safe to call twice, but not at the same time."""
        if self._copied is not None:
            self._copied.synchronize()
        self._gathered.clear()
        return self._copies

    def _copy_gathered(self, tensors: Mapping[str, Tensor]) -> torch.cuda.Stream:
        hosts = []
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
            group = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
            gathered = torch.cat([tensor.reshape(-1) for tensor in group.values()])
            host = torch.empty(gathered.shape, dtype=dtype, pin_memory=True)
            parts = torch.split(host, [tensor.numel() for tensor in group.values()])
            self._copies |= {name: part.view(group[name].shape) for name, part in zip(group, parts, strict=True)}
            self._gathered.append(gathered)
            hosts.append(host)
        device = self._gathered[0].device
        # Of another priority: torch reuses streams, and one of the default priority may be a training's that captures.
        stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for host, gathered in zip(hosts, self._gathered, strict=True):
                host.copy_(gathered, non_blocking=True)
        return stream

    def _copy_each(self, tensors: Mapping[str, Tensor]) -> torch.cuda.Stream:
        self._gathered.clear()
        for name, tensor in tensors.items():
            self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copies[name].copy_(tensor, non_blocking=True)
        return torch.cuda.current_stream(next(iter(tensors.values())).device)
