"""Where a training is now, for those who watch it; unlike events, nothing of it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a training.

    Attributes:
        doing: what it does, such as `training` or `validating`.
        step: optimizer steps done; None before the run has started.
        total_steps: steps of the whole training, as far as growth is known.
        loss: mean over the last steps; None until it is known.
        metrics: means over the same steps, by name.
    """

    doing: str
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
