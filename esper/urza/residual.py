"""Residual branches: convolutions whose last batch norm's gain is the output scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape, stride_between

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
    """One more basic block of the stage, written as what it adds: f(y) = relu(y + g(y)) - y.

    At output scale 0 it is the identity for y >= 0, as behind a block that ends in a ReLU. Layers are named as in
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

    def combine(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """relu(y + g(y)), without the rounding of subtracting y and adding it again; x is y."""
        return self._block(y)

    def _block(self, y: Tensor) -> Tensor:
        return torch.relu(y + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(y))))))


def convolution(
    in_channels: int, out_channels: int, size: int | tuple[int, int], *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded by half its size, whose weights start at He's scale."""
    padding = size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)
    conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=padding, groups=groups, bias=False)
    # torch's fan_out ignores groups: the weights of a depthwise convolution would start too small.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out" if groups == 1 else "fan_in", nonlinearity="relu")
    return conv


def stride_of(in_shape: Shape, out_shape: Shape) -> int:
    """The stride that leads from one shape to the other, where the blueprint fits."""
    stride = stride_between(in_shape, out_shape)
    assert stride is not None, "Blueprint.fits was not asked"
    return stride


def basic_block(in_shape: Shape, out_shape: Shape) -> Kernel:
    """3×3, norm, ReLU, 3×3, norm. Source: ResNet's basic block, arXiv:1512.03385."""
    width = out_shape[0]
    return ConvolutionBranch(
        convolution(in_shape[0], width, 3, stride=stride_of(in_shape, out_shape)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        convolution(width, width, 3),
        channels=width,
    )


def residual_block(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """A basic block with its shortcut and last ReLU: depth. Source: growing depth, AutoGrow, arXiv:1906.02909."""
    return ResidualBlock(in_shape[0])


def bottleneck(in_shape: Shape, out_shape: Shape) -> Kernel:
    """1×1 to a quarter of the channels (at least 4), 3×3, 1×1 back. Source: ResNet's bottleneck, arXiv:1512.03385."""
    # At width 1 the norms cancel the size of every weight, so that nothing but signs could be learned.
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


def conv1x1(in_shape: Shape, out_shape: Shape) -> Kernel:
    """One linear map per position. Source: RepVGG's 1×1 branch, arXiv:2101.03697."""
    conv = convolution(in_shape[0], out_shape[0], 1, stride=stride_of(in_shape, out_shape))
    return ConvolutionBranch(conv, channels=out_shape[0])


def depthwise(in_shape: Shape, out_shape: Shape) -> Kernel:
    """3×3 per channel, norm, ReLU, 1×1 across channels. Source: MobileNet, arXiv:1704.04861."""
    channels = in_shape[0]
    return ConvolutionBranch(
        convolution(channels, channels, 3, stride=stride_of(in_shape, out_shape), groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        convolution(channels, out_shape[0], 1),
        channels=out_shape[0],
    )
