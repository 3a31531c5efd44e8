"""More inner channels for a block, written as a path beside the ones it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape
from esper.urza.residual import convolution, stride_of

__all__ = ["InnerChannels", "widen"]


class InnerChannels(Kernel):
    """3×3, norm, ReLU, 3×3, times a gain per channel: what new channels add to a block's last convolution.

    Its sum with the block's own path is the block with all channels side by side, so that host weights, statistics and
    optimizer state are left as they are.

    Shape: (N, C, H, W) to (N, C', H/s, W/s), before the block's last norm.
    Source: function-preserving widening, Net2Net, arXiv:1511.05641.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride=stride)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, out_channels, 3)
        self.scale = nn.Parameter(torch.ones(out_channels))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per channel, (C',)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        # The gain acts on the weights: on the activations it would turn those of autocast back into float32.
        weight = self.conv2.weight * self.scale[:, None, None, None]
        return F.conv2d(torch.relu(self.norm(self.conv1(x))), weight, padding=1)


def widen(in_shape: Shape, out_shape: Shape) -> Kernel:
    """Half as many channels as the block puts out, rounded to a multiple of 8 that is at least 8.

    A basic block's inner width is that of its output; tensor cores want channels in eights.
    """
    width = max(8, 8 * round(out_shape[0] / 16))
    return InnerChannels(in_shape[0], width, out_shape[0], stride=stride_of(in_shape, out_shape))
