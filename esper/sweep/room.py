"""How many runs fit into the memory of a device side by side, from what the first one uses."""

from __future__ import annotations

import sys

import torch

from esper.tracking.formatting import memory
from esper.turns import Turns

__all__ = ["Room"]

_SETTLED_STEPS = 24
"""Steps after which a run has allocated what its steps need, and captured them."""
_GROWN, _STATIC = 2.5, 1.25
"""Memory that a run may need, as a multiple of what it uses then: growth at most doubles a chain of blocks."""
_SPARE = 0.05
"""Share of the device's memory that is left free."""
_MAX_RUNS = 16


class Room:
    """What the runs of this process use; `number` tells how many fit.

    Args:
        turns: the runs.
        grows: whether one of them may grow.
    """

    def __init__(self, turns: Turns, *, grows: bool) -> None:
        self._turns = turns
        self._factor = _GROWN if grows else _STATIC
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # members of another working directory may have trained before

    def number(self) -> int | None:
        """How many runs may train at once; None until the first has trained for some steps."""
        if self._turns.num_steps < _SETTLED_STEPS:
            return None
        if not torch.cuda.is_available():
            return _MAX_RUNS
        with self._turns.between():
            free, total = torch.cuda.mem_get_info()
            shared = sum(copy.nbytes for _, reference in self._turns.kept if (copy := reference()) is not None)
            available = free + torch.cuda.memory_reserved() - shared - _SPARE * total
            each = max(1, torch.cuda.max_memory_reserved() - shared)
        fitting = int(available / (self._factor * each))
        sys.stdout.write(f"a run uses {memory(each)} of {memory(total)}, so {fitting} fit\n")
        sys.stdout.flush()
        return min(max(1, fitting), _MAX_RUNS)
