"""Base class of all modules that grow, and the `Blueprint` that describes and builds one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ANY_RANK",
    "Blueprint",
    "Kernel",
    "Shape",
    "blueprint",
    "main_tensor",
    "num_channels",
    "num_positions",
    "stride_between",
]

Shape = tuple[int, ...]
"""Sizes of one example: (C, H, W) of images, (T, D) of tokens, (D,) of rows, or (C, ...) of a higher rank."""

ANY_RANK = frozenset(range(1, 8))


def num_channels(shape: Shape) -> int:
    """C of (C, H, W), D of (T, D) and of (D,)."""
    return shape[0] if len(shape) > 2 else shape[-1]


def num_positions(shape: Shape) -> int:
    """H × W of (C, H, W), T of (T, D), 1 of (D,)."""
    return math.prod(shape) // num_channels(shape)


def main_tensor(output: Any) -> Tensor:
    """The output of a block that continues the network: a tensor, or the first item of a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


@functools.lru_cache(maxsize=4096)  # called for every blueprint at every site, with the same few shapes
def stride_between(in_shape: Shape, out_shape: Shape) -> int | None:
    """Stride of a convolution, padded by half its kernel size, that leads from one shape to the other; None: none does.

    Its output size is ceil(size / stride), for odd sizes too, as in ResNet: 7 becomes 4. Shapes other than (C, H, W)
    need the same positions, and the stride is 1.
    """
    if len(in_shape) != len(out_shape):
        return None
    if len(in_shape) != 3:
        is_first = len(in_shape) > 3
        positions = [shape[1:] if is_first else shape[:-1] for shape in (in_shape, out_shape)]
        return 1 if positions[0] == positions[1] else None
    sizes = list(zip(in_shape[1:], out_shape[1:], strict=True))
    stride = max(math.ceil(in_size / out_size) for in_size, out_size in sizes)
    return stride if all(math.ceil(in_size / stride) == out_size for in_size, out_size in sizes) else None


class Kernel(nn.Module):
    """Base of all modules that grow: a branch whose output is added to the host's.

    The last operation is a gain per channel, the kernel's output scale. At 0 the output is exactly 0, because any bias
    added after it starts at 0.

    Shape: input (N, C, H, W), output (N, C', H', W'); (N, T, D) and (N, T, D'); or (N, D) and (N, D').
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

    def adapt(self, *, activation: str | None, has_bias: bool, is_causal: bool) -> None:
        """Adopt what the host computes at the site; most kernels have no such choice.

        Args:
            activation: name in `esper.urza.activations` of the function between the layers of an MLP that it widens.
            has_bias: whether the first of these layers has a bias.
            is_causal: whether no position may depend on later ones.
        """

    def branch(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """The branch's output f(x).

        Args:
            x: the kernel's input.
            args, kwargs: what else the host gives to the site's block, such as masks; only copies of the block use it.
        """
        output = self(x)
        assert isinstance(output, Tensor)
        return output

    def combine(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output of a site with a kept kernel: y + f(x).

        Args:
            x: the kernel's input.
            y: the site's output without the kernel.
            args, kwargs: see `branch`.
        """
        return y + self.branch(x, *args, **kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Recipe for a kernel.

    Attributes:
        blueprint_id: its name; of a declared one `name@hash`.
        category: residual, attention or normalization.
        complexity: 1 (a few vectors) to 5 (several convolutions).
        kinds: sites it fits: `after` a block, `beside` one, `parallel` to a convolution, in the `width` of a block.
        ranks: ranks of the shapes it fits: 3 of (C, H, W), 2 of (T, D), 1 of (D,).
        keeps_shape: its input and output shapes must be equal.
        min_positions: fewest positions (H × W, or T) at which all its parameters get a gradient.
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
    ranks: frozenset[int] = frozenset({3})
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
        if kind not in self.kinds or not {len(in_shape), len(out_shape)} <= self.ranks:
            return False
        if self.keeps_shape and in_shape != out_shape:
            return False
        positions = num_positions(in_shape)
        if positions < self.min_positions or (self.max_positions is not None and positions > self.max_positions):
            return False
        if stride_between(in_shape, out_shape) is None:
            return False
        return self.admits is None or self.admits(in_shape, out_shape)


def blueprint(
    *, kinds: set[str], ranks: Collection[int] = (3,), **fields: Any
) -> Callable[[Callable[[Shape, Shape], Kernel]], Blueprint]:
    """Decorator that makes a `Blueprint` of the function that builds its kernels.

    Args:
        kinds: kinds of site it fits.
        ranks: ranks of the shapes it fits.
        fields: the other fields; the id is the function's name, the summary its docstring.
    """

    def declare(build: Callable[[Shape, Shape], Kernel]) -> Blueprint:
        name, summary = build.__name__, (build.__doc__ or "").rstrip(".")
        return Blueprint(
            blueprint_id=name, summary=summary, kinds=frozenset(kinds), ranks=frozenset(ranks), build=build, **fields
        )

    return declare
