"""The closed set of operations that a declared blueprint may be made of.

Each operation says for a shape what it puts out, what it costs and how it is built; nothing is built to know a cost.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from esper.urza.attention import SpatialSelfAttention
from esper.urza.kernel import Shape
from esper.urza.residual import convolution

__all__ = ["OPERATIONS", "MisfitError", "Operation", "Piece", "Sum", "choices", "plan_chain"]

WIDTHS = (0.125, 0.25, 0.5, 1, 2, 4)
"""Channels of a convolution, as a share of those that the site puts out; none has fewer than 4 but the whole."""


class MisfitError(ValueError):
    """An operation cannot take this shape; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a kernel at one shape.

    Attributes:
        out: shape of what it puts out.
        num_parameters, num_macs: its size; multiply-accumulates of one example.
        num_values: values that it computes for one example, all of which a training step keeps.
        build: makes it.
    """

    out: Shape
    num_parameters: int = 0
    num_macs: int = 0
    num_values: int = 0
    build: Callable[[], nn.Module]


def _choice(*allowed: Any) -> Any:
    return dataclasses.field(metadata={"choices": allowed})


def choices(operation: type[Operation]) -> dict[str, tuple[Any, ...]]:
    """The fields of an operation that take one of some values, with these; all of them are needed."""
    fields = dataclasses.fields(operation)
    return {field.name: field.metadata["choices"] for field in fields if "choices" in field.metadata}


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations.

    Attributes:
        weight: how much it adds to a blueprint's complexity.
        carries_stride: how well it can carry the stride of a site: 0 not at all, the highest does.
    """

    weight: ClassVar[int] = 0
    carries_stride: ClassVar[int] = 0

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:
        """What it is at a shape.

        Args:
            shape: (C, H, W) of its input.
            channels: channels that the site puts out.
            stride: 1 unless it carries the site's.

        Raises:
            MisfitError: it cannot take this shape.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Convolution(Operation):
    """A convolution without bias, padded by half its size, to a share of the site's output channels."""

    size: int = _choice(1, 3, 5, 7)
    width: float = _choice(*WIDTHS)
    weight: ClassVar[int] = 1
    carries_stride: ClassVar[int] = 1

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:
        """See the base."""
        out = (channels if self.width == 1 else max(4, round(channels * self.width)), *_strided(shape, stride))
        weights = out[0] * shape[0] * self.size**2
        build = functools.partial(convolution, shape[0], out[0], self.size, stride=stride)
        return _piece(out, num_parameters=weights, num_macs=weights * out[1] * out[2], build=build)


@dataclass(frozen=True, slots=True)
class Depthwise(Operation):
    """A convolution of each channel by itself. Source: MobileNet, arXiv:1704.04861."""

    size: int = _choice(3, 5, 7)
    weight: ClassVar[int] = 1
    carries_stride: ClassVar[int] = 2

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        out, weights = (shape[0], *_strided(shape, stride)), shape[0] * self.size**2
        build = functools.partial(convolution, shape[0], shape[0], self.size, stride=stride, groups=shape[0])
        return _piece(out, num_parameters=weights, num_macs=weights * out[1] * out[2], build=build)


@dataclass(frozen=True, slots=True)
class BatchNorm(Operation):
    """Batch normalization with gain and bias."""

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        return _piece(shape, num_parameters=2 * shape[0], build=functools.partial(nn.BatchNorm2d, shape[0]))


@dataclass(frozen=True, slots=True)
class GroupNorm(Operation):
    """Group normalization with gain and bias. Source: arXiv:1803.08494."""

    groups: int = _choice(1, 2, 4, 8, 16, 32)

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        if shape[0] % self.groups or math.prod(shape) == self.groups:
            raise MisfitError(f"group_norm cannot part {shape[0]} channels into {self.groups} groups")
        build = functools.partial(nn.GroupNorm, self.groups, shape[0])
        return _piece(shape, num_parameters=2 * shape[0], build=build)


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """A function of each value."""

    function: str = _choice("relu", "silu", "gelu", "hardswish")

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        made = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}
        return _piece(shape, build=made[self.function])


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """The mean or maximum of each position's neighbours."""

    function: str = _choice("mean", "max")
    size: int = _choice(3, 5)

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        made = nn.AvgPool2d if self.function == "mean" else nn.MaxPool2d
        return _piece(shape, build=lambda: made(self.size, stride=1, padding=self.size // 2))


@dataclass(frozen=True, slots=True)
class SqueezeExcite(Operation):
    """Channels reweighted by two layers on their means. Source: arXiv:1709.01507."""

    reduction: int = _choice(2, 4, 8, 16)
    weight: ClassVar[int] = 1

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        hidden = max(4, shape[0] // self.reduction)
        weights = 2 * shape[0] * hidden
        # SiLU, not ReLU: with few hidden units a dead one would be likely.
        build = functools.partial(SqueezeExcitation, shape[0], hidden, activation=nn.SiLU)
        return _piece(shape, num_parameters=weights + hidden + shape[0], num_macs=weights, build=build)


@dataclass(frozen=True, slots=True)
class SelfAttention(Operation):
    """Positions attend to each other, without position embedding. Source: arXiv:1711.07971."""

    heads: int = _choice(1, 2, 4, 8)
    weight: ClassVar[int] = 2

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        wide, positions = shape[0], shape[1] * shape[2]
        if wide % self.heads:
            raise MisfitError(f"self_attention cannot part {wide} channels among {self.heads} heads")
        if not 2 <= positions <= 1024:
            raise MisfitError(f"self_attention takes 2 to 1024 positions, not {positions}")
        return Piece(
            out=shape,
            num_parameters=3 * wide**2 + 3 * wide,
            num_macs=positions * (3 * wide**2 + 2 * positions * wide),
            num_values=positions * (5 * wide + 2 * self.heads * positions),
            build=functools.partial(SpatialSelfAttention, wide, num_heads=self.heads),
        )


@dataclass(frozen=True, slots=True)
class Sum(Operation):
    """Chains of operations side by side, whose outputs are added; a chain without operations is the identity."""

    branches: tuple[tuple[Operation, ...], ...]

    def plan(self, shape: Shape, *, channels: int, stride: int) -> Piece:  # noqa: ARG002
        """See the base."""
        planned = [plan_chain(branch, shape, channels=channels) for branch in self.branches]
        outs = {plan[-1].out if plan else shape for plan in planned}
        if len(outs) != 1:
            raise MisfitError(f"sum: its branches put out different shapes, {', '.join(map(str, sorted(outs)))}")
        pieces = [piece for plan in planned for piece in plan]
        return Piece(
            out=outs.pop(),
            num_parameters=sum(piece.num_parameters for piece in pieces),
            num_macs=sum(piece.num_macs for piece in pieces),
            num_values=sum(piece.num_values for piece in pieces) + math.prod(shape),
            build=lambda: Branches([nn.Sequential(*(piece.build() for piece in plan)) for plan in planned]),
        )


class Branches(nn.Module):
    """Modules whose outputs are added. Shape: (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Run all of them; see the class."""
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


def plan_chain(chain: Sequence[Operation], shape: Shape, *, channels: int, stride: int = 1) -> list[Piece]:
    """The pieces of operations one after the other; the best of them, the first of equals, carries the stride.

    Raises:
        MisfitError: one cannot take the shape that it gets, or none can carry the stride.
    """
    carrier = max(range(len(chain)), key=lambda i: _stride_rank(chain[i]), default=None)
    if stride > 1 and (carrier is None or not _stride_rank(chain[carrier])):
        raise MisfitError("without a convolution outside of sums it keeps its input's shape")
    pieces: list[Piece] = []
    for index, operation in enumerate(chain):
        pieces.append(operation.plan(shape, channels=channels, stride=stride if index == carrier else 1))
        shape = pieces[-1].out
    return pieces


def _stride_rank(operation: Operation) -> int:
    # A strided 1x1 convolution looks at a quarter of the positions only.
    return operation.carries_stride + (isinstance(operation, Convolution) and operation.size > 1)


def _strided(shape: Shape, stride: int) -> tuple[int, int]:
    return math.ceil(shape[1] / stride), math.ceil(shape[2] / stride)


def _piece(out: Shape, *, build: Callable[[], nn.Module], num_parameters: int = 0, num_macs: int = 0) -> Piece:
    """A piece that computes nothing but what it puts out."""
    return Piece(out=out, num_parameters=num_parameters, num_macs=num_macs, num_values=math.prod(out), build=build)
