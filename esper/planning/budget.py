"""A budget of compute in the unit that the user gave it in, and what to give instead of one that is too small."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["MOST_PILOTS", "PlanBudget"]

MOST_PILOTS = 0.5
"""Share of a budget for pilots, at most."""
_ROUNDING = 1 + 1e-9
"""What is advised is rounded up from so much more, so that it is enough whatever the order of multiplications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBudget:
    """How much compute may be spent.

    Attributes:
        amount: in its unit.
        macs_per_unit: MACs of one unit.
        option: of `esper plan`, which takes a budget in this unit.
        unit: its name.
        setting: where the amount is from; None: from the option.
        slack: factor on an amount that is advised; above 1 if the unit is measured anew by the next command.
    """

    amount: float
    macs_per_unit: float = 1.0
    option: str = "--compute"
    unit: str = "MACs"
    setting: str | None = None
    slack: float = 1.0

    @property
    def macs(self) -> float:
        """The budget in MACs."""
        return self.amount * self.macs_per_unit

    def too_little(self, needed: float, *, pilot_share: float) -> str:
        """Why the pilots cannot be paid, and what pays for them: a larger budget, or a larger share if one is allowed.

        Args:
            needed: MACs of the cheapest pilots.
            pilot_share: share of the budget for pilots.
        """
        enough = _rounded_up(self.slack * needed / (pilot_share * self.macs_per_unit))
        remedy = f"give {self.option}={enough:g}"
        share = math.ceil(100 * _ROUNDING * self.slack * needed / self.macs) / 100
        if share <= MOST_PILOTS:
            remedy += f" or --pilot-share={share:g}"
        return (
            f"{self.setting or self.option}={self.amount:g} at --pilot-share={pilot_share:g} leaves "
            f"{pilot_share * self.amount:.3g} {self.unit} for pilots, but the cheapest need "
            f"{needed / self.macs_per_unit:.3g}; {remedy}"
        )


def _rounded_up(value: float) -> float:
    """The next number of three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(_ROUNDING * value / unit) * unit:.3g}")
