"""The learning rate as a pure function of step and budget: the host's, and the warm-up of newborn parameters.

PyTorch's schedulers keep state per parameter group and break when a group is added (pytorch#53712); a function of
(step, what is spent, step of the group's birth) has nothing to break or to save.
"""

from __future__ import annotations

import math

from esper.configs import OptimizationConfig
from esper.tolaria.budget import Budget

__all__ = ["decay_start", "learning_rate", "newborn_warmup"]


def decay_start(config: OptimizationConfig) -> float | None:
    """Share of training after which a constant learning rate decays; None: it does not."""
    return 1.0 - config.decay_fraction if config.scheduler == "wsd" else None


def learning_rate(config: OptimizationConfig, step: int, *, budget: Budget, spent: int) -> float:
    """The host's learning rate at an optimizer step.

    Args:
        config: peak learning rate, scheduler, decay.
        step: its number, from 0.
        budget: of the whole training.
        spent: what is used of it before the step.
    """
    if step < budget.warmup_steps:
        return config.learning_rate * (step + 1) / budget.warmup_steps
    total = budget.total
    left = max(0.0, (total - spent) / max(1, total - budget.warmup))  # 1 after the warm-up, 0 at the end
    if config.scheduler == "cosine":
        return config.learning_rate * 0.5 * (1.0 - math.cos(math.pi * left))
    if config.scheduler == "linear":
        return config.learning_rate * left
    if config.scheduler == "wsd":
        return config.learning_rate * min(1.0, max(0.0, (total - spent) / (config.decay_fraction * total)))
    return config.learning_rate


def newborn_warmup(*, step: int, born_step: int | None, warmup_steps: int) -> float:
    """Factor on the learning rate of parameters added during training: a linear warm-up of their own.

    It is 1 for the host's parameters (`born_step` None) and for modules that were there from step 0.
    """
    if not born_step or warmup_steps == 0:
        return 1.0
    return min(1.0, (step - born_step + 1) / warmup_steps)
