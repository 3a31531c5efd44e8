"""Hidden layers of MLPs: pairs of linear layers with an activation function between them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.urza.activations import ACTIVATIONS
from esper.urza.kernel import Shape

__all__ = ["HiddenLayer", "HiddenLayers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenLayer:
    """A linear layer whose output only one other reads, through an activation function.

    Attributes:
        first, last: names of the two layers.
        activation: name in `esper.urza.activations`.
        has_bias: whether the first has a bias.
        in_shape, out_shape: (T, D) or (D,) of the input of the first and the output of the last.
    """

    first: str
    last: str
    activation: str
    has_bias: bool
    in_shape: Shape
    out_shape: Shape


class _Call(NamedTuple):
    """A call of a linear layer."""

    name: str
    has_bias: bool
    in_shape: Shape


class HiddenLayers:
    """Finds pairs of linear layers by value: the second reads an activation function of what the first puts out.

    So it finds functions as well as modules, and sees through dropout, which does nothing in eval mode.
    """

    def __init__(self, *, num_examples: int) -> None:
        self._found: list[HiddenLayer] = []
        self._num_examples = num_examples
        self._recent: deque[tuple[_Call, Tensor]] = deque(maxlen=4)
        self._runs: Counter[str] = Counter()

    def recorder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """Hook of a linear layer."""

        def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x = args[0]
            self._runs[name] += 1
            if x.dim() not in (2, 3) or len(x) != self._num_examples:
                return
            for first, y in self._recent:
                if (activation := _activation_between(y, x)) is not None:
                    pair = HiddenLayer(
                        first=first.name,
                        last=name,
                        activation=activation,
                        has_bias=first.has_bias,
                        in_shape=first.in_shape,
                        out_shape=tuple(output.shape[1:]),
                    )
                    self._found.append(pair)
            call = _Call(name, module.bias is not None, tuple(x.shape[1:]))
            self._recent.append((call, output.clone()))  # a copy: an in-place activation modifies it

        return record

    def found(self) -> list[HiddenLayer]:
        """The pairs, without layers that run twice or whose output two layers read."""
        firsts = Counter(pair.first for pair in self._found)
        return [
            pair for pair in self._found if firsts[pair.first] == self._runs[pair.first] == self._runs[pair.last] == 1
        ]


def _activation_between(y: Tensor, x: Tensor) -> str | None:
    """Name of the activation function that gives x for y."""
    if y.shape != x.shape or not (bool((y > 0).any()) and bool((y < 0).any())):
        return None
    return next((name for name, function in ACTIVATIONS.items() if torch.equal(function(y), x)), None)
