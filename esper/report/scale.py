"""How values and differences of the leading metric are written; a positive difference is an improvement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esper.contracts.metrics import ACCURACY, MetricInfo

__all__ = ["MARGIN", "Scale"]

MARGIN = 0.002
"""Loss that still counts as not worse: of a percentage this many 1 / 100, of other metrics this share."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Scale of the figures of a comparison.

    Attributes:
        info: the metric.
    """

    info: MetricInfo = ACCURACY

    @property
    def factor(self) -> float:
        """By which differences are multiplied: those of percentages are in points."""
        return 100.0 if self.info.unit == "%" else 1.0

    @property
    def unit(self) -> str:
        """Of differences, with a space before it; may be empty."""
        unit = "points" if self.info.unit == "%" else self.info.unit
        return f" {unit}" if unit else ""

    @property
    def margin_text(self) -> str:
        """The loss that still counts as not worse."""
        return f"{100 * MARGIN:.1f} points" if self.info.unit == "%" else f"{100 * MARGIN:.1f} %"

    def margin(self, base: float) -> float:
        """The loss that still counts as not worse than `base`."""
        return MARGIN if self.info.unit == "%" else MARGIN * abs(base)

    def gain(self, ours: float, other: float) -> float:
        """How much better ours is."""
        return ours - other if self.info.higher_is_better else other - ours

    def signed(self, gain: float) -> str:
        """A difference as a number with its sign."""
        if math.isnan(gain):
            return "–"
        return f"{100 * gain:+.2f}" if self.info.unit == "%" else f"{gain:+.3g}"

    def signed_range(self, low: float, high: float) -> str:
        """The ends of an interval of differences: `-0.12 to +0.40`."""
        return "–" if math.isnan(low) else f"{self.signed(low)} to {self.signed(high)}"

    def phrase(self, gain: float) -> str:
        """A difference in words."""
        if self.info.unit == "%" and self.info.higher_is_better:
            return f"{self.signed(gain)} points of test {self.info.label}"
        word = "worse" if gain < 0 else "better"
        return f"test {self.info.label} {word} by {self.signed(abs(gain))[1:]}{self.unit}"

    def value(self, mean: float) -> str:
        """A mean of the metric."""
        if self.info.unit == "%":
            return f"{100 * mean:.2f} %"
        return f"{mean:.5g} {self.info.unit}".strip()

    def interval(self, value: tuple[float, float]) -> str:
        """Mean and half the interval: `93.21 ± 0.40 %`."""
        mean, half = value
        if math.isnan(mean):
            return "–"
        if math.isnan(half):
            return self.value(mean)
        if self.info.unit == "%":
            return f"{100 * mean:.2f} ± {100 * half:.2f} %"
        if half > 0 and 1e-3 <= abs(mean) < 1e5:  # decimals for two digits of the interval and three of the mean
            decimals = max(0, 1 - math.floor(math.log10(half)), 2 - math.floor(math.log10(abs(mean))))
            return f"{mean:.{decimals}f} ± {half:.{decimals}f} {self.info.unit}".strip()
        return f"{mean:.5g} ± {half:.2g} {self.info.unit}".strip()
