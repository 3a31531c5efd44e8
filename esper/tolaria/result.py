"""The result of a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from esper.tolaria.run import Run

__all__ = ["result_of"]


def result_of(
    run: Run, *, validation: tuple[float, Mapping[str, float]], test: tuple[float | None, Mapping[str, float | None]]
) -> dict[str, Any]:
    """Metrics and costs of a finished run, as `RunEnded` describes them.

    Args:
        run: at its last step.
        validation: loss and metrics.
        test: loss and metrics; None if they could not be measured.
    """
    state, life = run.state, run.life
    return {
        "metrics": [dataclasses.asdict(metric.info) for metric in run.parts.task.metrics],
        "test_loss": test[0],
        **{f"test_{name}": value for name, value in test[1].items()},
        "val_loss": validation[0],
        **{f"val_{name}": value for name, value in validation[1].items()},
        "epochs": state.epoch,
        "num_parameters_before": run.host_cost.num_parameters,
        "num_parameters": life.cost.num_parameters,
        "num_macs_before": run.host_cost.num_macs,
        "num_macs": life.cost.num_macs,
        "num_grown": life.num_germinated,
        "num_kept": len(run.model.recipe),
        "peak_parameters": state.peak_parameters,
        **state.ledger.totals(),
        "seconds": state.total_seconds,
    }
