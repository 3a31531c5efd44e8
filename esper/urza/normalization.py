"""Normalization branches, written as what they add."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape

__all__ = ["GroupNormBranch", "LayerScale", "group_norm", "layer_scale"]


class GroupNormBranch(Kernel):
    """f(h) = GroupNorm(h). Shape: (N, C, H, W), kept."""

    def __init__(self, num_groups: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels)

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain of the norm, (C,)."""
        return self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        output = self.norm(x)
        assert isinstance(output, Tensor)
        return output


class LayerScale(Kernel):
    """f(h) = scale * h. Shape: (N, C, H, W), kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per channel, (C,)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        return x * self.scale[:, None, None]


def group_norm(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Groups of channels, normalised per image. Source: arXiv:1803.08494."""
    channels = in_shape[0]
    num_groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
    return GroupNormBranch(num_groups, channels)


def layer_scale(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """A gain per channel. Source: CaiT, arXiv:2103.17239."""
    return LayerScale(in_shape[0])
