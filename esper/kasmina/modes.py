"""A module's mode, buffers and batch-norm statistics: saved, restored, re-estimated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["can_train", "evaluating", "is_frozen_norm", "preserved_buffers", "reestimate_norms", "unfrozen"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: put the model in eval mode, and restore its mode at the end."""
    was_training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(was_training)


def can_train(p: Tensor) -> bool:
    """Whether its number format allows a gradient: real or complex, but not whole numbers."""
    return p.is_floating_point() or p.is_complex()


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm whose parameters are frozen: its statistics are then those of evaluation, and stay."""
    parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
    return bool(parameters) and not any(p.requires_grad for p in parameters)


@contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """Context manager: let gradients flow through frozen parameters, to activations at any place; they stay frozen."""
    frozen = [p for p in model.parameters() if not p.requires_grad and can_train(p)]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def preserved_buffers(model: nn.Module, *, exclude: nn.Module | None = None) -> Iterator[None]:
    """Context manager: restore the model's buffers bit-identical at the end, except those of a submodule."""
    excluded = {id(buffer) for buffer in exclude.buffers()} if exclude is not None else set()
    saved = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in excluded]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def reestimate_norms(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running means and variances of all batch norms by plain averages over some batches.

    Needed after a branch is removed, as the old statistics include it. Parameters are not touched, the model's mode is
    restored, and norms that do not run (those of an incubating kernel) or are frozen keep their statistics.
    """
    norms = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not is_frozen_norm(m)
    ]
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
