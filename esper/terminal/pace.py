"""How far a training is, how fast, and how long it still takes."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """Steps done and to do; what a step takes is measured, with validations, since the first step or last growth.

    Attributes:
        step: optimizer steps done.
        total: steps of the whole training.
        step_s: seconds a step takes; None before the first.
    """

    def __init__(self) -> None:
        self.step = self.total = 0
        self.step_s: float | None = None
        self._began_s = self._reached_s = time.monotonic()
        self._base = (0, self._began_s)  # step and time since which steps are measured
        self._has_base = False

    def start(self, step: int, *, total: int) -> None:
        """Begin, or resume, at a step."""
        self.step, self.total = step, total
        self._reached_s = time.monotonic()
        self._base, self._has_base = (step, self._reached_s), False

    def change(self, step: int) -> None:
        """Note that steps take another time from here on."""
        self._base, self._has_base = (step, time.monotonic()), True

    def reach(self, step: int, *, total: int | None = None) -> None:
        """Note that a step is done."""
        self.total = self.total if total is None else total
        if step <= self.step:
            return
        now = time.monotonic()
        self.step, self._reached_s = step, now
        first, since_s = self._base
        if step > first:
            self.step_s = (now - since_s) / (step - first)
        if not self._has_base:  # the first steps take longer, and count only until there are others
            self._base, self._has_base = (step, now), True

    def elapsed_s(self) -> float:
        """Seconds in this process."""
        return time.monotonic() - self._began_s

    def seconds_left(self) -> float | None:
        """Seconds to the last step; None before the first."""
        if self.step_s is None:
            return None
        return max(0.0, self.step_s * (self.total - self.step) - (time.monotonic() - self._reached_s))

    def fractional_step(self) -> float:
        """The step, and how much of the next one should be done by now, so that a bar moves during long steps."""
        if self.step_s is None or self.step >= self.total:
            return self.step
        return self.step + min(0.99, (time.monotonic() - self._reached_s) / max(self.step_s, 1e-9))
