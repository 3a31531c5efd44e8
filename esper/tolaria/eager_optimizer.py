"""Torch's optimizers, without what they do for torch.compile."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["eager"]


@functools.cache
def eager(optimizer: type[Optimizer]) -> type[Optimizer]:
    """A subclass that computes the same, for steps that are not compiled themselves.

    Torch hides an optimizer's functions from torch.compile, for which it imports torch._dynamo, sympy and Triton in the
    first call: over a second before the first step. Esper compiles networks, never the optimizer's step.
    """
    run = inspect.unwrap(optimizer.step)

    @torch.no_grad()
    def step(self: Optimizer, closure: None = None) -> Any:
        return run(self, closure)

    methods = {"add_param_group", "zero_grad"}
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in methods}
    return type(optimizer.__name__, (optimizer,), {"__module__": optimizer.__module__, "step": step, **plain})
