"""Group normalization that every supported torch can train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GroupNormLayer"]


class GroupNormLayer(nn.GroupNorm):
    """As torch's, also of channels-last images on a CPU that need no gradient: torch 2.10 and 2.11 crash there.

    Their backward pass writes the gradient of the images although nobody asked for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.GroupNorm`."""
        if x.device.type == "cpu" and torch.is_grad_enabled() and not x.requires_grad:
            x = x.contiguous()
        return super().forward(x)
