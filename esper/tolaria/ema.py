"""Exponential moving average of the weights, keyed by parameter name, in step with growth.

a ← d a + (1 - d) w from a = 0, divided by 1 - d^n where it is used (as Adam does): the average of a module that grew is
over the steps since its birth, and its random initial weights weigh no more than any others.
Source: B. Polyak, A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; Adam, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["WeightAverage", "corrected"]


class WeightAverage:
    """Average of a network's parameters and batch-norm statistics.

    Args:
        model: the network.
        decay: d above.

    Attributes:
        sums: a above by state-dict name, shaped like the weights.
        born: step before which each of them was begun.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.sums: dict[str, Tensor] = {}
        self.born: dict[str, int] = {}
        self._model = model
        self._live: list[Tensor] = []
        self._averages: list[Tensor] = []
        self.follow(step=0)

    def follow(self, *, step: int) -> None:
        """Begin averages of what is new in the network at a step, forget those of what left."""
        weights = _averaged_tensors(self._model)
        for name in self.sums.keys() - weights.keys():
            del self.sums[name], self.born[name]
        for name in weights.keys() - self.sums.keys():
            self.sums[name] = torch.zeros_like(weights[name])
            self.born[name] = step
        self._live = list(weights.values())
        self._averages = [self.sums[name] for name in weights]

    def restart(self, *, step: int) -> None:
        """Begin anew: what was averaged so far belongs to another network."""
        torch._foreach_zero_(self._averages)
        self.born = dict.fromkeys(self.born, step)

    def is_empty(self, *, step: int) -> bool:
        """Whether nothing has been averaged yet before step `step`: the network's own weights stand in."""
        return all(born >= step for born in self.born.values())

    def load(self, sums: Mapping[str, Tensor], born: Mapping[str, int], *, step: int) -> None:
        """Take up saved averages before step `step`; of what was not averaged then, they begin there."""
        self.born = {name: born.get(name, step) for name in self.sums}
        for name in sums.keys() & self.sums.keys():
            self.sums[name].copy_(sums[name])

    def update(self) -> None:
        """Take in the weights after a step; nothing is read from the device."""
        torch._foreach_lerp_(self._averages, self._live, 1.0 - self.decay)

    @contextmanager
    def applied(self, *, step: int) -> Iterator[None]:
        """Give the network its averaged weights for a while; its own come back bit-identical."""
        saved = [tensor.detach().clone() for tensor in self._live]
        averaged = corrected(self.sums, self.born, decay=self.decay, step=step)
        with torch.no_grad():
            for live, name in zip(self._live, _averaged_tensors(self._model), strict=True):
                if name in averaged:
                    live.copy_(averaged[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for live, own in zip(self._live, saved, strict=True):
                    live.copy_(own)


def corrected(sums: Mapping[str, Tensor], born: Mapping[str, int], *, decay: float, step: int) -> dict[str, Tensor]:
    """Averages from sums and the steps at which they were begun, before step `step`; without what was just begun."""
    return {name: a / (1.0 - decay ** (step - born[name])) for name, a in sums.items() if step > born[name]}


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            for kind in ("running_mean", "running_var"):
                tensors[f"{name}.{kind}"] = getattr(module, kind)
    return tensors
