"""Measuring a model without changing it."""

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

    Parameters, buffers and the model's mode stay as they are. The forward pass is in float32, as judgements and results
    want it, unless the caller is in autocast.

    Returns:
        Losses (N,) float32 and hits (N,) bool, on the model's device.
    """
    losses, hits = [], []
    with evaluating(model), torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            hits.append(logits.argmax(dim=1) == labels)
    return torch.cat(losses), torch.cat(hits)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1]; see `example_losses`."""
    losses, hits = example_losses(model, batches)
    return float(losses.double().mean()), float(hits.double().mean())


def lowest(losses: Mapping[T, float]) -> T:
    """What has the lowest loss; one that is not finite is worse than any other."""
    return min(losses, key=lambda tried: (not math.isfinite(losses[tried]), losses[tried]))
