from __future__ import annotations

from typing import Any

import pytest

from esper.contracts.metrics import ACCURACY
from esper.report.runs import _curve


def event(kind: str, step: int, at: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "time_unix_s": at, **fields}


def test_a_pause_in_the_middle_of_an_epoch_changes_no_point_of_the_curve() -> None:
    begin = event("run_started", 0, 0.0, num_macs=10)
    scored = event("signals", 100, 1.0, cost_macs=500)
    first = event("validation", 100, 1.0, val_metrics={"accuracy": 0.5})
    logged = event("step", 150, 1.5)
    resumed = event("run_started", 190, 1000.0, num_macs=10)
    last = [event("validation", 200, 2.0, val_metrics={"accuracy": 0.7})]
    later = [event("validation", 200, 1000.1, val_metrics={"accuracy": 0.7})]
    straight = _curve([begin, scored, first, logged, *last], None, headline=ACCURACY, batch_size=1)
    paused = _curve([begin, scored, first, logged, resumed, *later], None, headline=ACCURACY, batch_size=1)
    assert [point.macs for point in paused] == [point.macs for point in straight] == [3500.0, 6500.0]
    assert [point.figure for point in paused] == [0.5, 0.7]
    assert paused[-1].seconds == pytest.approx(1.6)
