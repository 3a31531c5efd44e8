"""Base class of all modules that grow, and the `Blueprint` that describes and builds one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Blueprint", "Kernel", "Shape", "blueprint", "stride_between"]

Shape = tuple[int, int, int]
"""(channels, height, width) of one example."""


@functools.lru_cache(maxsize=4096)  # called for every blueprint at every site, with the same few shapes
def stride_between(in_shape: Shape, out_shape: Shape) -> int | None:
    """Stride of a convolution, padded by half its kernel size, that leads from one shape to the other; None: none does.

    Its output size is ceil(size / stride), for odd sizes too, as in ResNet: 7 becomes 4.
    """
    sizes = list(zip(in_shape[1:], out_shape[1:], strict=True))
    stride = max(math.ceil(in_size / out_size) for in_size, out_size in sizes)
    return stride if all(math.ceil(in_size / stride) == out_size for in_size, out_size in sizes) else None


class Kernel(nn.Module):
    """Base of all modules that grow: a branch whose output is added to the host's.

    The last operation is a gain per channel, the kernel's output scale. At 0 the output is exactly 0, because any bias
    added after it starts at 0.

    Shape: input (N, C, H, W), output (N, C', H', W').
    """

    @property
    def output_scale(self) -> nn.Parameter | None:
        """The gain of the last operation, (C',); None if there is no such gain."""
        raise NotImplementedError

    @property
    def regions(self) -> Sequence[nn.Module]:
        """The modules inside that are compiled, each for itself."""
        return [self]

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply the kernel's output: its output scale, and the bias of that layer if there is one."""
        scale = self.output_scale
        if scale is None:
            return
        scaled = [module for module in self.modules() if getattr(module, "weight", None) is scale]
        for bias in (module.bias for module in scaled):
            if isinstance(bias, Tensor):
                bias.mul_(factor)
        scale.mul_(factor)

    def combine(self, x: Tensor, y: Tensor) -> Tensor:
        """Output of a site with a kept kernel: y + f(x).

        Args:
            x: the kernel's input (N, C, H, W).
            y: the site's output without the kernel (N, C', H', W').
        """
        output = y + self(x)
        assert isinstance(output, Tensor)
        return output


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Recipe for a kernel.

    Attributes:
        blueprint_id: its name; of a declared one `name@hash`.
        category: residual, attention or normalization.
        complexity: 1 (a few vectors) to 5 (several convolutions).
        kinds: sites it fits: `after` a block, `beside` one, `parallel` to a convolution, in the `width` of a block.
        keeps_shape: its input and output shapes must be equal.
        min_positions: fewest positions (H × W) at which all its parameters get a gradient.
        max_positions: most positions it takes; None: no limit.
        foldable: a kept kernel can be folded into the host's layers at export; see `esper.kasmina.fold`.
        build: builds a kernel for an input and an output shape.
        admits: a further condition on the shapes; None: no condition.
        definition: JSON of a declared blueprint; None: it is written in Python.
        summary: description in one line.
        source: paper or origin.
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
        """Whether it can grow at a site of this kind and these shapes."""
        if kind not in self.kinds or (self.keeps_shape and in_shape != out_shape):
            return False
        positions = in_shape[1] * in_shape[2]
        if positions < self.min_positions or (self.max_positions is not None and positions > self.max_positions):
            return False
        if stride_between(in_shape, out_shape) is None:
            return False
        return self.admits is None or self.admits(in_shape, out_shape)


def blueprint(*, kinds: set[str], **fields: Any) -> Callable[[Callable[[Shape, Shape], Kernel]], Blueprint]:
    """Decorator that makes a `Blueprint` of the function that builds its kernels.

    Args:
        kinds: kinds of site it fits.
        fields: the other fields; the id is the function's name, the summary its docstring.
    """

    def declare(build: Callable[[Shape, Shape], Kernel]) -> Blueprint:
        name, summary = build.__name__, (build.__doc__ or "").rstrip(".")
        return Blueprint(blueprint_id=name, summary=summary, kinds=frozenset(kinds), build=build, **fields)

    return declare
