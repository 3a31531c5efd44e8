"""What readers of a run need to know about its metrics: how they are called, shown and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACCURACY", "MetricInfo", "headline_of", "metrics_of"]


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

    @property
    def title(self) -> str:
        """The label with a capital letter, for headings."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def sign(self) -> float:
        """1, or -1 if lower is better: values times it are the higher the better."""
        return 1.0 if self.higher_is_better else -1.0


ACCURACY = MetricInfo(name="accuracy", label="accuracy", unit="%", higher_is_better=True)
"""The only metric of runs of before there were tasks."""


def metrics_of(content: Mapping[str, Any] | None) -> tuple[MetricInfo, ...]:
    """The metrics that a `run_started` event or a result names; the first one leads."""
    entries = (content or {}).get("metrics") or ()
    names = [field.name for field in dataclasses.fields(MetricInfo)]
    found = [MetricInfo(**{name: entry[name] for name in names if name in entry}) for entry in entries]
    return tuple(found) or (ACCURACY,)


def headline_of(content: Mapping[str, Any] | None) -> MetricInfo:
    """The metric that leads, see `metrics_of`."""
    return metrics_of(content)[0]
