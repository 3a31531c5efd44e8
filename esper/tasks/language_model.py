"""Language modelling: the next token at every position, from logits (N, T, V)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.configs import TaskConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.tasks.task import Metric, Task

__all__ = ["build"]


def build(config: TaskConfig, spec: DataSpec, device: torch.device) -> Task:
    """Cross-entropy of every token; targets int64 (N, T).

    Raises:
        ConfigError: `class_weights` are set.
    """
    if config.class_weights:
        raise ConfigError("task.class_weights: tokens have no weights; leave it [] with task=language_model")
    num_bytes = torch.tensor(spec.token_bytes, device=device) if spec.token_bytes else None
    bits = Metric(
        name="bits_per_byte",
        label="bits a byte",
        higher_is_better=False,
        values=(lambda _, target: num_bytes[target]) if num_bytes is not None else None,
        figure=_bits_per_byte,
    )
    perplexity = Metric(name="perplexity", label="perplexity", higher_is_better=False, figure=_perplexity)
    smoothing = config.label_smoothing
    return Task(
        name=config.name,
        losses=_losses,
        metrics=(bits, perplexity),
        training_loss=functools.partial(_smoothed, smoothing=smoothing) if smoothing else None,
    )


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


def _smoothed(logits: Tensor, target: Tensor, *, smoothing: float) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=smoothing)


def _bits_per_byte(loss: float, means: Sequence[float]) -> float:
    """Mean loss of a token in bits, divided by the mean bytes of a token."""
    (bytes_per_token,) = means or (1.0,)
    return loss / math.log(2.0) / bytes_per_token


def _perplexity(loss: float, _means: Sequence[float]) -> float:
    return math.exp(loss) if loss < 700.0 else math.inf
