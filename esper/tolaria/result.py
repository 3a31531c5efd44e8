"""The result of a finished run."""

from __future__ import annotations

from typing import Any

from esper.tolaria.run import Run

__all__ = ["result_of"]


def result_of(run: Run, *, validation: tuple[float, float], test: tuple[float | None, float | None]) -> dict[str, Any]:
    """Metrics and costs of a finished run, as `RunEnded` describes them.

    Args:
        run: at its last step.
        validation: loss and accuracy.
        test: loss and accuracy; None if they could not be measured.
    """
    state, life = run.state, run.life
    return {
        "test_loss": test[0],
        "test_accuracy": test[1],
        "val_loss": validation[0],
        "val_accuracy": validation[1],
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
