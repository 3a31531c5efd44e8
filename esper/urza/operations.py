"""The closed set of operations that a declared blueprint may be made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from esper.urza.attention import SpatialSelfAttention
from esper.urza.group_norm import GroupNormLayer
from esper.urza.kernel import Shape
from esper.urza.residual import convolution

__all__ = ["OPERATIONS", "MisfitError", "Operation", "Piece", "Sum", "build_chain", "choices"]

WIDTHS = (0.125, 0.25, 0.5, 1, 2, 4)
"""Output channels of a convolution, as a share of the site's; at least 4, unless the share is 1."""


class MisfitError(ValueError):
    """An operation cannot take this shape; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """An operation built for one shape.

    Attributes:
        module: built on torch's default device.
        out_shape: (C, H, W) of its output.
        num_values: activations of one example that a training step keeps, intermediate ones included.
    """

    module: nn.Module
    out_shape: Shape
    num_values: int


def _choice(*allowed: Any) -> Any:
    return dataclasses.field(metadata={"choices": allowed})


def choices(operation: type[Operation]) -> dict[str, tuple[Any, ...]]:
    """The fields of an operation that take one of a few values, with these values; all are required."""
    fields = dataclasses.fields(operation)
    return {field.name: field.metadata["choices"] for field in fields if "choices" in field.metadata}


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations.

    Attributes:
        weight: how much it adds to a blueprint's complexity.
        stride_priority: the operation of a chain with the highest priority carries the site's stride; 0: cannot.
    """

    weight: ClassVar[int] = 0
    stride_priority: ClassVar[int] = 0

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:
        """Build it for an input shape.

        Args:
            shape: (C, H, W) of its input.
            channels: output channels of the site.
            stride: the site's stride if this operation carries it, else 1.

        Raises:
            MisfitError: it cannot take this shape.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Convolution(Operation):
    """A convolution without bias, padded by half its size."""

    size: int = _choice(1, 3, 5, 7)
    width: float = _choice(*WIDTHS)
    weight: ClassVar[int] = 1
    stride_priority: ClassVar[int] = 1

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:
        """See the base."""
        out_channels = channels if self.width == 1 else max(4, round(channels * self.width))
        module = convolution(shape[0], out_channels, self.size, stride=stride)
        return _piece(module, (out_channels, *_strided(shape, stride)))


@dataclass(frozen=True, slots=True)
class Depthwise(Operation):
    """A convolution of each channel by itself. Source: MobileNet, arXiv:1704.04861."""

    size: int = _choice(3, 5, 7)
    weight: ClassVar[int] = 1
    stride_priority: ClassVar[int] = 2

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        module = convolution(shape[0], shape[0], self.size, stride=stride, groups=shape[0])
        return _piece(module, (shape[0], *_strided(shape, stride)))


@dataclass(frozen=True, slots=True)
class BatchNorm(Operation):
    """Batch normalization with gain and bias."""

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        return _piece(nn.BatchNorm2d(shape[0]), shape)


@dataclass(frozen=True, slots=True)
class GroupNorm(Operation):
    """Group normalization with gain and bias. Source: arXiv:1803.08494."""

    groups: int = _choice(1, 2, 4, 8, 16, 32)

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        if shape[0] % self.groups or math.prod(shape) == self.groups:
            raise MisfitError(f"group_norm cannot split {shape[0]} channels into {self.groups} groups")
        return _piece(GroupNormLayer(self.groups, shape[0]), shape)


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """An element-wise nonlinearity."""

    function: str = _choice("relu", "silu", "gelu", "hardswish")

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        modules = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}
        return _piece(modules[self.function](), shape)


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """Mean or maximum over each position's neighbourhood, at stride 1."""

    function: str = _choice("mean", "max")
    size: int = _choice(3, 5)

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        pool = nn.AvgPool2d if self.function == "mean" else nn.MaxPool2d
        return _piece(pool(self.size, stride=1, padding=self.size // 2), shape)


@dataclass(frozen=True, slots=True)
class SqueezeExcite(Operation):
    """Channels reweighted by two layers on their means. Source: arXiv:1709.01507."""

    reduction: int = _choice(2, 4, 8, 16)
    weight: ClassVar[int] = 1

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        from torchvision.ops import SqueezeExcitation  # lazily: it takes time to import

        hidden = max(4, shape[0] // self.reduction)
        # SiLU, not ReLU: with few hidden units a dead one would be likely.
        return _piece(SqueezeExcitation(shape[0], hidden, activation=nn.SiLU), shape)


@dataclass(frozen=True, slots=True)
class SelfAttention(Operation):
    """Self-attention over positions, without position embedding. Source: arXiv:1711.07971."""

    heads: int = _choice(1, 2, 4, 8)
    weight: ClassVar[int] = 2

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        in_channels, positions = shape[0], shape[1] * shape[2]
        if in_channels % self.heads:
            raise MisfitError(f"self_attention cannot split {in_channels} channels among {self.heads} heads")
        if not 2 <= positions <= 1024:
            raise MisfitError(f"self_attention takes 2 to 1024 positions, not {positions}")
        return Piece(
            module=SpatialSelfAttention(in_channels, num_heads=self.heads),
            out_shape=shape,
            # Norm, query, key, value and output; logits and weights of each head.
            num_values=positions * (5 * in_channels + 2 * self.heads * positions),
        )


@dataclass(frozen=True, slots=True)
class Sum(Operation):
    """Parallel chains of operations whose outputs are added; an empty chain is the identity."""

    branches: tuple[tuple[Operation, ...], ...]

    def build(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        chains = [build_chain(branch, shape, channels=channels) for branch in self.branches]
        out_shapes = {chain[-1].out_shape if chain else shape for chain in chains}
        if len(out_shapes) != 1:
            raise MisfitError(f"sum: its branches have different output shapes, {sorted(out_shapes)}")
        return Piece(
            module=Branches([nn.Sequential(*(piece.module for piece in chain)) for chain in chains]),
            out_shape=out_shapes.pop(),
            num_values=sum(piece.num_values for chain in chains for piece in chain) + math.prod(shape),
        )


class Branches(nn.Module):
    """Modules whose outputs are added. Shape: (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs; see the class."""
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        assert isinstance(total, Tensor)
        return total


OPERATIONS: dict[str, type[Operation]] = {
    "activation": Activation,
    "batch_norm": BatchNorm,
    "convolution": Convolution,
    "depthwise": Depthwise,
    "group_norm": GroupNorm,
    "pool": Pool,
    "self_attention": SelfAttention,
    "squeeze_excite": SqueezeExcite,
    "sum": Sum,
}


def build_chain(chain: Sequence[Operation], shape: Shape, *, channels: int, stride: int = 1) -> list[Piece]:
    """Build operations that run one after another; the first of the highest stride priority carries the stride.

    Raises:
        MisfitError: one cannot take its input shape, or none can carry the stride.
    """
    carrier = max(range(len(chain)), key=lambda i: _stride_priority(chain[i]), default=None)
    if stride > 1 and (carrier is None or not _stride_priority(chain[carrier])):
        raise MisfitError("without a convolution outside of sums it keeps its input's shape")
    pieces: list[Piece] = []
    for index, operation in enumerate(chain):
        pieces.append(operation.build(shape, channels=channels, stride=stride if index == carrier else 1))
        shape = pieces[-1].out_shape
    return pieces


def _stride_priority(operation: Operation) -> int:
    # A strided 1x1 convolution reads only a quarter of the positions.
    return operation.stride_priority + (isinstance(operation, Convolution) and operation.size > 1)


def _strided(shape: Shape, stride: int) -> tuple[int, int]:
    return math.ceil(shape[1] / stride), math.ceil(shape[2] / stride)


def _piece(module: nn.Module, out_shape: Shape) -> Piece:
    """A piece whose only activations are its output."""
    return Piece(module=module, out_shape=out_shape, num_values=math.prod(out_shape))
