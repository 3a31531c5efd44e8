"""Batch-norm statistics: estimating them anew, and keeping them safe meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["preserved_buffers", "reestimate_norms"]


def reestimate_norms(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace running means and variances of all batch norms by plain averages over some batches.

    After a branch is removed, statistics gathered with it are wrong for what remains. Parameters are not touched;
    the model's mode is restored, and norms that are not run (those of a kernel that incubates) keep what they have.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    was_training = model.training
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        model.train()
        with torch.no_grad():
            for batch in images:
                model(batch)
    finally:
        for norm, momentum, before in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0:
                norm.load_state_dict(before, strict=False)
        model.train(was_training)


@contextmanager
def preserved_buffers(model: nn.Module, *, but: nn.Module | None = None) -> Iterator[None]:
    """Give the model's buffers back bit-identical at the end, except those of one part of it."""
    free = {id(buffer) for buffer in but.buffers()} if but is not None else set()
    saved = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in free]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
