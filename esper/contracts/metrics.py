"""What readers of a run need to know about its metrics: how they are called, shown and compared."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACCURACY", "MetricInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """A metric of a task.

    Attributes:
        name: key in mappings of metrics, and part of the names in trackers (`val/accuracy`).
        label: how tables and pages call it.
        unit: `%` for a fraction in [0, 1], which is shown as a percentage; else what stands behind the number.
        higher_is_better: whether a higher value is the better one.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool


ACCURACY = MetricInfo(name="accuracy", label="accuracy", unit="%", higher_is_better=True)
"""The metric of all runs before there were tasks."""
