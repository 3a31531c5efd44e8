"""What every module that grows has in common."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Blueprint", "Kernel", "Shape", "stride_between"]

Shape = tuple[int, int, int]
"""(channels, height, width) of one example."""


@functools.lru_cache(maxsize=4096)  # asked for every blueprint at every site, always about the same few shapes
def stride_between(in_shape: Shape, out_shape: Shape) -> int | None:
    """Stride at which a convolution padded by half its size leads from one shape to the other; None: none does.

    Such a convolution makes ceil(size / stride) positions of an odd size too, as ResNet's do: 7 become 4.
    """
    sizes = list(zip(in_shape[1:], out_shape[1:], strict=True))
    stride = max(math.ceil(size / wanted) for size, wanted in sizes)
    return stride if all(math.ceil(size / stride) == wanted for size, wanted in sizes) else None


class Kernel(nn.Module):
    """Base of all modules that grow: a branch whose output is added to the host's.

    The last operation is a gain per channel, the kernel's one output scale; at 0 the output is exactly 0, because
    every bias behind it starts at 0.

    Shape: input (N, C, H, W), output (N, C', H', W').
    """

    @property
    def output_scale(self) -> nn.Parameter:
        """The gain of the last operation, (C',)."""
        raise NotImplementedError

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply what the kernel's last operation puts out: its gain, and the bias that may stand behind it."""
        for module in self.modules():
            if getattr(module, "weight", None) is self.output_scale and isinstance(module.bias, Tensor):
                module.bias.mul_(factor)
        self.output_scale.mul_(factor)

    def combine(self, x: Tensor, y: Tensor) -> Tensor:
        """Output of a site with the kernel added in full: y + f(x).

        Args:
            x: the kernel's input (N, C, H, W).
            y: the site's output without it (N, C', H', W').
        """
        output = y + self(x)
        assert isinstance(output, Tensor)
        return output


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Recipe for a kernel.

    Attributes:
        blueprint_id: its name.
        category: residual, attention or normalization.
        complexity: 1 (a few vectors) to 5 (several convolutions).
        kinds: sites it fits: `after` a block, `beside` one, `parallel` to a convolution, in the `width` of a block.
        keeps_shape: whether its output must have its input's shape.
        min_positions: fewest positions (H × W) at which all its parameters can learn.
        max_positions: most positions it can take; None: any.
        foldable: whether a kept one can be written into the host's own layers at export; see `esper.kasmina.fold`.
        build: makes a kernel for an input and an output shape.
        admits: whether one can be built for these shapes, besides; None: always.
        definition: what it was declared as, in JSON; None: it is written in Python.
        summary: what it is, in a line.
        source: where it comes from.
    """

    blueprint_id: str
    category: str
    complexity: int
    kinds: frozenset[str]
    keeps_shape: bool = False
    min_positions: int = 1
    max_positions: int | None = None
    foldable: bool = False
    build: Callable[[Shape, Shape], Kernel]
    admits: Callable[[Shape, Shape], bool] | None = None
    definition: str | None = None
    summary: str
    source: str

    def fits(self, kind: str, in_shape: Shape, out_shape: Shape) -> bool:
        """Whether a kernel can be built for a site of this kind and these shapes."""
        if kind not in self.kinds or (self.keeps_shape and in_shape != out_shape):
            return False
        positions = in_shape[1] * in_shape[2]
        if positions < self.min_positions or (self.max_positions is not None and positions > self.max_positions):
            return False
        if stride_between(in_shape, out_shape) is None:
            return False
        return self.admits is None or self.admits(in_shape, out_shape)
