"""Branches parallel to a convolution and its norm, folded into their weights at export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape, blueprint
from esper.urza.residual import convolution, stride_of

__all__ = ["ParallelBranch", "fold_1x1", "fold_3x3", "fold_asymmetric", "zero_pad"]


class ParallelBranch(Kernel):
    """The norm of a sum of convolutions, linear in eval mode. Shape: that of the parallel convolution.

    Source: ACNet, arXiv:1908.03930.
    """

    def __init__(self, *convs: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norm = nn.BatchNorm2d(channels)

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain of the norm, (C',)."""
        return self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        first, *others = self.convs
        total = first(x)
        for conv in others:
            total = total + conv(x)
        output = self.norm(total)
        assert isinstance(output, Tensor)
        return output

    def fused(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The branch in eval mode as a convolution of odd size: weight (C', C, height, width) and bias (C',), float64.

        The size must be at least that of each convolution of the branch.
        """
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        factor = self.norm.weight.double() / torch.sqrt(var.double() + self.norm.eps)
        kernels = []
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            kernels.append(zero_pad(conv.weight.double(), height, width))
        weight = torch.stack(kernels).sum(0) * factor[:, None, None, None]
        return weight, self.norm.bias.double() - mean.double() * factor


def zero_pad(weight: Tensor, height: int, width: int) -> Tensor:
    """Pad a convolution's weight of odd size with zeros: (C', C, h, w) to (C', C, height, width)."""
    rows, columns = (height - weight.shape[2]) // 2, (width - weight.shape[3]) // 2
    return F.pad(weight, (columns, columns, rows, rows))


@blueprint(category="residual", complexity=2, kinds={"parallel"}, foldable=True, source="RepVGG, arXiv:2101.03697")
def fold_1x1(in_shape: Shape, out_shape: Shape) -> Kernel:
    """A 1x1 convolution, folded into the host's convolution at export."""
    return _branch([1], in_shape, out_shape)


@blueprint(category="residual", complexity=4, kinds={"parallel"}, foldable=True, source="ACNet, arXiv:1908.03930")
def fold_asymmetric(in_shape: Shape, out_shape: Shape) -> Kernel:
    """1x3 plus 3x1 convolutions, folded into the host's convolution at export."""
    return _branch([(1, 3), (3, 1)], in_shape, out_shape)


@blueprint(category="residual", complexity=3, kinds={"parallel"}, foldable=True, source="ExpandNets, arXiv:1811.10495")
def fold_3x3(in_shape: Shape, out_shape: Shape) -> Kernel:
    """A 3x3 convolution, folded into the host's convolution at export."""
    return _branch([3], in_shape, out_shape)


def _branch(sizes: list[int | tuple[int, int]], in_shape: Shape, out_shape: Shape) -> Kernel:
    stride = stride_of(in_shape, out_shape)
    convs = [convolution(in_shape[0], out_shape[0], size, stride=stride) for size in sizes]
    return ParallelBranch(*convs, channels=out_shape[0])
