"""Where the validation loss jumps after something germinated, in words."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator

from esper.report.run_record import RunRecord
from esper.tracking.history import GrownModule

__all__ = ["jumps"]

_SHARE = 0.05
"""Rise, as a share of the loss before, from which it may be a jump."""
_USUAL = 2.0
"""It must also exceed this many times the median change from one validation to the next."""
_MAX_NAMED = 3


def jumps(record: RunRecord) -> Iterator[str]:
    """A sentence for every germination after which the validation loss rose by more than it usually changes."""
    steps, losses = record.series("validation", "val_loss")
    known = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    changes = [abs(after[1] - before[1]) for before, after in itertools.pairwise(known)]
    epochs = {event["step"]: event["epoch"] for event in record.of_kind("validation")}
    born: dict[int, list[GrownModule]] = {}
    for module in record.history.modules:
        born.setdefault(module.step, []).append(module)
    for step, modules in born.items():
        before = [loss for at, loss in known if at <= step]
        after = [(at, loss) for at, loss in known if at > step]
        if not before or not after:
            continue
        first, reached = before[-1], after[0][1]
        if reached - first <= max(_SHARE * abs(first), _USUAL * statistics.median(changes)):
            continue
        names = [f"{module.blueprint_id} at {module.site}" for module in modules[:_MAX_NAMED]]
        more = len(modules) - len(names)
        what = ", ".join(names) + (f" and {more} more" if more else "")
        back = next((at for at, loss in after[1:] if loss <= first), None)
        end = "it has not come back to that since" if back is None else f"it was back at that by epoch {epochs[back]}"
        share = f" ({100 * (reached / first - 1):+.0f} %)" if first > 0 else ""
        yield (
            f"The validation loss jumped from {first:.4g} to {reached:.4g}{share} after {what} germinated "
            f"(step {step:,}); {end}."
        )
