"""Residual branches: convolutions that end in a batch norm, whose gain is the output scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape, blueprint, stride_between

__all__ = [
    "ConvolutionBranch",
    "ResidualBlock",
    "basic_block",
    "bottleneck",
    "conv1x1",
    "convolution",
    "depthwise",
    "residual_block",
    "stride_of",
]


class ConvolutionBranch(Kernel):
    """Layers that end in a batch norm, whose gain scales the branch. Shape: (N, C, H, W) to (N, C', H/s, W/s)."""

    def __init__(self, *layers: nn.Module, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain of the last norm, (C',)."""
        return self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        output = self.norm(self.layers(x))
        assert isinstance(output, Tensor)
        return output


class ResidualBlock(Kernel):
    """Another basic block of the stage, as a branch: f(y) = relu(y + g(y)) - y.

    At output scale 0 the site is the identity for y >= 0, as after a block that ends in a ReLU. Layers are named as in
    torchvision's `BasicBlock`, which computes the same.

    Shape: (N, C, H, W), kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain of the last norm, (C,)."""
        return self.bn2.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        return self._block(x) - x

    def combine(self, x: Tensor, y: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ARG002
        """relu(y + g(y)), without the rounding error of subtracting and adding y; x equals y."""
        return self._block(y)

    def _block(self, y: Tensor) -> Tensor:
        return torch.relu(y + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(y))))))


def convolution(
    in_channels: int, out_channels: int, size: int | tuple[int, int], *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded by half its size, with He initialization."""
    padding = size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)
    conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=padding, groups=groups, bias=False)
    # torch's fan_out ignores groups: a depthwise convolution would be initialized too small.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")
    return conv


def stride_of(in_shape: Shape, out_shape: Shape) -> int:
    """The stride between two shapes at which the blueprint fits."""
    stride = stride_between(in_shape, out_shape)
    assert stride is not None, "call Blueprint.fits first"
    return stride


@blueprint(category="residual", complexity=5, kinds={"after", "beside"}, source="ResNet, arXiv:1512.03385")
def basic_block(in_shape: Shape, out_shape: Shape) -> Kernel:
    """Two 3x3 convolutions."""
    width = out_shape[0]
    return ConvolutionBranch(
        convolution(in_shape[0], width, 3, stride=stride_of(in_shape, out_shape)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        convolution(width, width, 3),
        channels=width,
    )


@blueprint(
    category="residual",
    complexity=5,
    kinds={"after"},
    keeps_shape=True,
    foldable=True,
    source="AutoGrow, arXiv:1906.02909",
)
def residual_block(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Another basic block of the stage, with its shortcut and last ReLU."""
    return ResidualBlock(in_shape[0])


@blueprint(category="residual", complexity=4, kinds={"after", "beside"}, source="ResNet, arXiv:1512.03385")
def bottleneck(in_shape: Shape, out_shape: Shape) -> Kernel:
    """1x1, 3x3 and 1x1 convolutions through a quarter of the channels, at least 4."""
    # At width 1 the norms cancel the size of every weight: only signs could be learned.
    width = max(4, out_shape[0] // 4)
    return ConvolutionBranch(
        convolution(in_shape[0], width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        convolution(width, width, 3, stride=stride_of(in_shape, out_shape)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        convolution(width, out_shape[0], 1),
        channels=out_shape[0],
    )


@blueprint(category="residual", complexity=2, kinds={"after", "beside"}, source="RepVGG, arXiv:2101.03697")
def conv1x1(in_shape: Shape, out_shape: Shape) -> Kernel:
    """A 1x1 convolution."""
    conv = convolution(in_shape[0], out_shape[0], 1, stride=stride_of(in_shape, out_shape))
    return ConvolutionBranch(conv, channels=out_shape[0])


@blueprint(category="residual", complexity=3, kinds={"after", "beside"}, source="MobileNet, arXiv:1704.04861")
def depthwise(in_shape: Shape, out_shape: Shape) -> Kernel:
    """A 3x3 convolution per channel, then a 1x1."""
    channels = in_shape[0]
    return ConvolutionBranch(
        convolution(channels, channels, 3, stride=stride_of(in_shape, out_shape), groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        convolution(channels, out_shape[0], 1),
        channels=out_shape[0],
    )
