"""Branches beside a convolution and its norm that can be written into their weights once training is over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape
from esper.urza.residual import convolution, stride_of

__all__ = ["ParallelBranch", "centred", "fold_1x1", "fold_3x3", "fold_asymmetric"]


class ParallelBranch(Kernel):
    """The norm of a sum of convolutions: linear in eval mode, so that it folds. Shape: as the convolution beside it.

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
        """The branch in eval mode as one convolution of an odd size: weight (C', C, height, width) and bias (C',).

        Both are float64. The size is at least that of each convolution of the branch.
        """
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        factor = self.norm.weight.double() / torch.sqrt(var.double() + self.norm.eps)
        kernels = []
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            kernels.append(centred(conv.weight.double(), height, width))
        weight = torch.stack(kernels).sum(0) * factor[:, None, None, None]
        return weight, self.norm.bias.double() - mean.double() * factor


def centred(weight: Tensor, height: int, width: int) -> Tensor:
    """A convolution's weight of odd size, with zeros around it: (C', C, h, w) to (C', C, height, width)."""
    rows, columns = (height - weight.shape[2]) // 2, (width - weight.shape[3]) // 2
    return F.pad(weight, (columns, columns, rows, rows))


def fold_1x1(in_shape: Shape, out_shape: Shape) -> Kernel:
    """One 1×1 convolution. Source: RepVGG, arXiv:2101.03697."""
    return _branch([1], in_shape, out_shape)


def fold_asymmetric(in_shape: Shape, out_shape: Shape) -> Kernel:
    """1×3 plus 3×1, which strengthen the convolution's cross. Source: ACNet, arXiv:1908.03930."""
    return _branch([(1, 3), (3, 1)], in_shape, out_shape)


def fold_3x3(in_shape: Shape, out_shape: Shape) -> Kernel:
    """One 3×3 convolution. Source: overparameterising by linear layers, ExpandNets, arXiv:1811.10495."""
    return _branch([3], in_shape, out_shape)


def _branch(sizes: list[int | tuple[int, int]], in_shape: Shape, out_shape: Shape) -> Kernel:
    stride = stride_of(in_shape, out_shape)
    convs = [convolution(in_shape[0], out_shape[0], size, stride=stride) for size in sizes]
    return ParallelBranch(*convs, channels=out_shape[0])
