"""Trying something out in a training, and going back as if it had not happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from esper.tolaria.step import TrainStep

__all__ = ["rewound"]


@contextmanager
def rewound(model: nn.Module, optimizer: Optimizer, step: TrainStep) -> Iterator[None]:
    """Give weights, buffers, optimizer state, averages, sums, loss scale and random numbers back, bit-identical.

    What was added to the model or the optimizer meanwhile must be taken out again before the end.
    """
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    averages = step.ema.sums.values() if step.ema is not None else ()
    tensors = [*model.parameters(), *model.buffers(), *states, *averages, step.sums.epoch, step.sums.bad_step]
    saved = [tensor.detach().clone() for tensor in tensors]
    scale = step.scaler.state_dict()
    devices = [step.device] if step.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        step.scaler.load_state_dict(scale)
