"""Copies of trained blocks of the host, set behind them: growth that starts from what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from esper.errors import SurgeryError
from esper.urza.kernel import ANY_RANK, Kernel, Shape, blueprint, main_tensor

__all__ = ["COPY", "CopiedBlocks", "copy"]

COPY = "copy"
"""Id of the blueprint below."""


class CopiedBlocks(Kernel):
    """A chain of blocks behind a block of the host, as a branch: f(y) = blocks(y) - y.

    Attributes:
        blocks: the copies, in forward order.
        origins: name of the host's block that each of them is a copy of.

    Shape: kept, whatever it is.
    """

    def __init__(self, blocks: Sequence[nn.Module], origins: Sequence[str]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.origins = tuple(origins)

    @property
    def output_scale(self) -> None:
        """None: a copy has no gain of its own; alpha alone scales it."""
        return

    @property
    def regions(self) -> list[nn.Module]:
        """Each block: they share the graphs of their sources."""
        return list(self.blocks)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the branch; see the class, and for the arguments the base's `branch`."""
        return self.combine(x, x, *args, **kwargs) - x

    def branch(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See the base."""
        output = self(x, *args, **kwargs)
        assert isinstance(output, Tensor)
        return output

    def combine(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """The chain's output, without the rounding error of subtracting and adding y; x equals y."""
        for block in self.blocks:
            y = main_tensor(block(y, *args, **kwargs))
        return y


@blueprint(
    category="copy",
    complexity=5,
    kinds={"after"},
    ranks=ANY_RANK,
    keeps_shape=True,
    foldable=True,
    source="G_stack, arXiv:2405.15319",
)
def copy(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Trained copies of blocks of the same stage."""
    raise SurgeryError("blueprint 'copy' is built from blocks of a network, not from shapes")
