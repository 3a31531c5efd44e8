"""Exponential moving average (EMA) of the weights, keyed by parameter name; growth adds and removes parameters.

a ← d a + (1 - d) w from a = 0, divided by 1 - d^n where it is used (bias correction, as in Adam): the average of a
grown module is over the steps since its birth, and its random initial weights count no more than any others.
Source: B. Polyak, A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; Adam, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.kasmina.modes import is_frozen_norm

__all__ = ["WeightEMA", "bias_corrected"]


class WeightEMA:
    """EMA of a network's parameters and batch-norm statistics, without frozen ones.

    Args:
        model: the network.
        decay: d above.

    Attributes:
        sums: a above by state-dict name, shaped like the weights.
        born: optimizer step before which each of them was started.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.sums: dict[str, Tensor] = {}
        self.born: dict[str, int] = {}
        self._model = model
        self._live: list[Tensor] = []
        self._averages: list[Tensor] = []
        self.sync_parameters(step=0)

    def sync_parameters(self, *, step: int) -> None:
        """Before step `step`, start averages of the network's new parameters and drop those of removed ones."""
        weights = _averaged_tensors(self._model)
        for name in self.sums.keys() - weights.keys():
            del self.sums[name], self.born[name]
        for name in weights.keys() - self.sums.keys():
            self.sums[name] = torch.zeros_like(weights[name])
            self.born[name] = step
        self._live = list(weights.values())
        self._averages = [self.sums[name] for name in weights]

    def restart(self, *, step: int) -> None:
        """Start all averages again before step `step`: those so far are of another network."""
        torch._foreach_zero_(self._averages)
        self.born = dict.fromkeys(self.born, step)

    def is_empty(self, *, step: int) -> bool:
        """Whether no step was averaged before step `step`; `applied` then leaves the network's own weights."""
        return all(born >= step for born in self.born.values())

    def load(self, sums: Mapping[str, Tensor], born: Mapping[str, int], *, step: int) -> None:
        """Restore saved averages before step `step`; those that were not saved start there."""
        self.born = {name: born.get(name, step) for name in self.sums}
        for name in sums.keys() & self.sums.keys():
            self.sums[name].copy_(sums[name])

    def update(self) -> None:
        """Average in the weights after a step, without reading the device."""
        torch._foreach_lerp_(self._averages, self._live, 1.0 - self.decay)

    @contextmanager
    def applied(self, *, step: int) -> Iterator[None]:
        """Context manager: give the network its averaged weights; its own come back bit-identical."""
        saved = [tensor.detach().clone() for tensor in self._live]
        averaged = bias_corrected(self.sums, self.born, decay=self.decay, step=step)
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


def bias_corrected(
    sums: Mapping[str, Tensor], born: Mapping[str, int], *, decay: float, step: int
) -> dict[str, Tensor]:
    """Averages before step `step` from sums and the steps they started at; without those that start now."""
    return {name: a / (1.0 - decay ** (step - born[name])) for name, a in sums.items() if step > born[name]}


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats and not is_frozen_norm(module):
            for kind in ("running_mean", "running_var"):
                tensors[f"{name}.{kind}"] = getattr(module, kind)
    return tensors
