"""Memory format of a network's activations: channels last (NHWC) or contiguous (NCHW)."""

from __future__ import annotations

import itertools

import torch
from torch import nn

__all__ = ["disable_inductor_layout_optimization", "memory_format"]

_SAFE_CHANNELS = 16


def memory_format(network: nn.Module, *, channels_last: bool, device: torch.device) -> torch.memory_format:
    """Channels last if configured and safe, else contiguous.

    On CPUs, oneDNN writes the channels-last gradient of a strided 1×1 convolution with few input channels (under 8 with
    AVX2, 16 with AVX-512) out of bounds: the process crashes, hangs or continues with corrupt weights
    (uxlfoundation/oneDNN#6035). A network with such a convolution stays contiguous. So does any network on MPS, where
    the format brings nothing and is little tested, and one whose weights include 3D kernels, which have another format.
    """
    is_unsafe = (
        device.type == "mps"
        or (device.type == "cpu" and any(_is_unsafe(module) for module in network.modules()))
        or any(tensor.dim() == 5 for tensor in itertools.chain(network.parameters(), network.buffers()))
    )
    return torch.channels_last if channels_last and not is_unsafe else torch.contiguous_format


def disable_inductor_layout_optimization(device: torch.device) -> None:
    """Keep torch.compile from converting convolutions on a CPU to channels last, which may be unsafe there."""
    if device.type == "cpu":
        import torch._inductor.config as inductor  # importing it takes seconds

        inductor.layout_optimization = False


def _is_unsafe(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < _SAFE_CHANNELS
    )
