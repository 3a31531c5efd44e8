"""Evaluate a model without changing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.modes import evaluating

__all__ = ["evaluate", "example_losses", "lowest"]

T = TypeVar("T")


def example_losses(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every example, and whether it was classified correctly, in eval mode.

    Parameters, buffers and the model's mode stay as they are. The forward pass is in float32 (as for verdicts and
    results), unless the caller is in autocast.

    Returns:
        Losses (N,) float32 and correct (N,) bool, on the model's device.
    """
    losses, correct = [], []
    with evaluating(model), torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(dim=1) == labels)
    return torch.cat(losses), torch.cat(correct)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1]; see `example_losses`."""
    losses, correct = example_losses(model, batches)
    return float(losses.double().mean()), float(correct.double().mean())


def lowest(losses: Mapping[T, float]) -> T:
    """The key with the lowest loss; a loss that is not finite is the highest."""
    return min(losses, key=lambda key: (not math.isfinite(losses[key]), losses[key]))
