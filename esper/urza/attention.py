"""Attention branches f of y = h + f(h)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.group_norm import GroupNormLayer
from esper.urza.kernel import Kernel, Shape, blueprint
from esper.urza.residual import ConvolutionBranch

__all__ = ["ChannelAttention", "SpatialSelfAttention", "efficient_channel", "spatial_self_attention", "squeeze_excite"]


class ChannelAttention(Kernel):
    """Reweight channels: f(h) = scale * h * tanh(z), where z is computed from the channels' means.

    h + f(h) = h * (1 + scale * tanh(z)) is a gate around 1, between 0 and 2 at scale 1. The usual sigmoid gate would
    halve the activations at first.

    Shape: (N, C, H, W), kept.
    """

    def __init__(self, gate: nn.Module, *, channels: int) -> None:
        super().__init__()
        self.gate = gate
        self.scale = nn.Parameter(torch.ones(channels))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per channel, (C,)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        weights = torch.tanh(self.gate(x.mean(dim=(2, 3))))
        return x * (self.scale * weights)[:, :, None, None]


class _ChannelConvolution(nn.Module):
    """A convolution along the channel axis. Shape: (N, C), kept."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(x[:, None, :])[:, 0, :]
        assert isinstance(mixed, Tensor)
        return mixed


@blueprint(
    category="attention",
    complexity=2,
    kinds={"after"},
    keeps_shape=True,
    source="SENet, arXiv:1709.01507",
)
def squeeze_excite(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Channels reweighted by a two-layer network of their means."""
    channels = in_shape[0]
    hidden = max(4, channels // 8)
    # SiLU, not ReLU: with few hidden units a dead one would be likely.
    gate = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))
    return ChannelAttention(gate, channels=channels)


@blueprint(category="attention", complexity=1, kinds={"after"}, keeps_shape=True, source="ECA-Net, arXiv:1910.03151")
def efficient_channel(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Channels reweighted by the means of their five neighbours."""
    return ChannelAttention(_ChannelConvolution(5), channels=in_shape[0])


class SpatialSelfAttention(nn.Module):
    """Multi-head self-attention over positions, without position embedding. Shape: (N, C, H, W), kept."""

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNormLayer(1, channels)
        # No bias for the keys: it cancels in the softmax and would never get a gradient.
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; see the class."""
        n, c, h, w = x.shape
        x = self.norm(x)
        query, key, value = (
            layer(x).reshape(n, self.num_heads, c // self.num_heads, h * w).transpose(2, 3)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(2, 3).reshape(n, c, h, w)


@blueprint(
    category="attention",
    complexity=4,
    kinds={"after"},
    keeps_shape=True,
    min_positions=2,  # a softmax over one position is constant
    max_positions=1024,
    source="non-local networks, arXiv:1711.07971",
)
def spatial_self_attention(in_shape: Shape, out_shape: Shape) -> Kernel:
    """Multi-head self-attention over positions."""
    channels = in_shape[0]
    num_heads = next(heads for heads in (4, 2, 1) if channels % heads == 0)
    project = nn.Conv2d(channels, out_shape[0], 1, bias=False)
    return ConvolutionBranch(SpatialSelfAttention(channels, num_heads=num_heads), project, channels=out_shape[0])
