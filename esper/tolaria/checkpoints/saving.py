"""Save checkpoints of a run while it trains."""

from __future__ import annotations

from pathlib import Path

from esper import turns
from esper.contracts.events import CheckpointSaved
from esper.tolaria.checkpoints.contents import snapshot
from esper.tolaria.growth.refusals import on_trial
from esper.tolaria.metrics import require_finite
from esper.tolaria.run import Run

__all__ = ["finish_saving", "start_saving"]


def start_saving(run: Run, prefix: str = "step", *, is_finite: bool = False, is_same_network: bool = False) -> None:
    """Save a checkpoint in the background.

    Args:
        run: what to save.
        prefix: step, best, trunk or before.
        is_finite: whether the weights have been checked since they changed.
        is_same_network: whether nothing has changed them since the last call.

    Raises:
        DivergenceError: they are not finite.
    """
    if not is_finite:
        require_finite(run)
    if run.ranks.is_rank0:
        run.checkpoint_writer.start(
            snapshot(run),
            epoch=run.state.epoch,
            prefix=prefix,
            is_on_trial=prefix == "before" or bool(on_trial(run.model)),
            is_same_network=is_same_network,
        )


def finish_saving(run: Run) -> list[Path]:
    """Wait for the checkpoints that are being written; returns their paths."""
    with turns.paused():
        saved = run.checkpoint_writer.collect()
    for one in saved:
        shown = one.path.relative_to(run.run_dir) if one.path.is_relative_to(run.run_dir) else one.path
        run.emit(CheckpointSaved, epoch=one.epoch, path=str(shown), is_best=one.prefix == "best")
    return [one.path for one in saved]
