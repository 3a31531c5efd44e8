"""In which order a network's activations lie in memory."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["compile_as_it_lies", "memory_format"]

_SAFE_CHANNELS = 16


def memory_format(network: nn.Module, *, channels_last: bool, device: torch.device) -> torch.memory_format:
    """Channels last where that was asked for and is sound.

    On a CPU the gradient of a strided 1×1 convolution with few input channels (under 8 with AVX2, 16 with AVX-512) is
    written past the end of its memory there: the process crashes, hangs or goes on with wrong weights
    (uxlfoundation/oneDNN#6035). A network with such a convolution stays contiguous.
    """
    unsound = device.type == "cpu" and any(_is_unsound(module) for module in network.modules())
    return torch.channels_last if channels_last and not unsound else torch.contiguous_format


def compile_as_it_lies(device: torch.device) -> None:
    """Keep torch.compile from laying convolutions on a CPU channels last by itself, sound or not."""
    if device.type == "cpu":
        import torch._inductor.config as inductor  # takes seconds

        inductor.layout_optimization = False


def _is_unsound(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < _SAFE_CHANNELS
    )
