"""Normalization branches f of y = h + f(h)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.urza.group_norm import GroupNormLayer
from esper.urza.kernel import Kernel, Shape, blueprint, num_channels

__all__ = ["GroupNormBranch", "LayerScale", "group_norm", "layer_scale"]


class GroupNormBranch(Kernel):
    """f(h) = GroupNorm(h). Shape: (N, C, H, W), kept."""

    def __init__(self, num_groups: int, channels: int) -> None:
        super().__init__()
        self.norm = GroupNormLayer(num_groups, channels)

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
    """f(h) = scale * h. Shape: (N, C, H, W), (N, T, C) or (N, C), kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per channel, (C,)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        return x * (self.scale[:, None, None] if x.dim() == 4 else self.scale)


@blueprint(
    category="normalization",
    complexity=1,
    kinds={"after"},
    keeps_shape=True,
    min_positions=2,  # a group of one value is normalised to 0
    source="arXiv:1803.08494",
)
def group_norm(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Group normalization of the input."""
    channels = in_shape[0]
    num_groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
    return GroupNormBranch(num_groups, channels)


@blueprint(
    category="normalization",
    complexity=1,
    kinds={"after"},
    ranks={1, 2, 3},
    keeps_shape=True,
    source="CaiT, arXiv:2103.17239",
)
def layer_scale(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """A gain per channel."""
    return LayerScale(num_channels(in_shape))
