"""Faults of training: too little memory, and values that are not finite because of growth."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from esper import turns
from esper.contracts.events import GrowthUndone
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, DivergenceError, MemoryLimitError, one_line
from esper.kasmina import SeedSlot
from esper.tolaria.checkpoints import files
from esper.tolaria.growth.refusals import MAX_RETURNS, Refusals, on_trial
from esper.tolaria.memory import is_out_of_memory
from esper.tolaria.run import Run

__all__ = ["WayBack", "do_step", "find_way_back"]

_FIRST_STEPS = 4
"""Steps after which all memory of a network is allocated: on CUDA three run eagerly, and the next is captured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """How to undo a growth.

    Attributes:
        checkpoint: of before the growth.
        refusals: what is not to grow again, this growth among it.
        fault_step: optimizer steps done when the fault was noticed.
        reason: the fault.
    """

    checkpoint: Path
    refusals: Refusals
    fault_step: int
    reason: str

    def arrive(self, run: Run) -> None:
        """Refuse the growth in the run, which is back before it, and journal this."""
        state = run.state
        if state.step == 0:  # the epoch was over
            state.total_seconds, state.epoch_seconds = state.total_seconds + state.epoch_seconds, 0.0
        modules = [key for key in self.refusals.reasons if key not in run.life.refusals.reasons]
        run.life.refusals = self.refusals
        named = ", ".join(f"{blueprint_id} at {site}" for site, blueprint_id in modules)
        run.emit(
            GrowthUndone,
            epoch=state.epoch,
            modules=modules,
            fault_step=self.fault_step,
            reason=self.reason,
            message=f"{named}: {self.reason}; back at step {state.global_step}, before it grew, and not tried there "
            f"again in this run (it went back {self.refusals.num_returns} of at most {MAX_RETURNS} times)",
        )


def do_step(run: Run) -> None:
    """Do the next training step; one that runs out of memory is tried again with a split batch.

    Raises:
        MemoryLimitError: that did not help, growth is to be undone because of it, or other runs share the device.
    """
    state, problem = run.state, ""
    do = functools.partial(
        run.step.forward_backward_update, epoch=state.epoch, index=state.step, step=state.global_step
    )
    try:
        do()
    except MemoryLimitError as error:
        if turns.is_shared() or not run.step.can_split or find_way_back(run, error):
            raise
        problem = str(error)
    if problem:  # outside of `except`: the error keeps activations alive
        run.step.split()
        run.warn(
            f"out of memory ({problem}): from this step on, each batch of {run.config.dataset.batch_size} is trained "
            "in two halves whose gradients are added up; batch norm normalises each half by itself, so in networks "
            "that have it this is not quite training on whole batches"
        )
        do()


def find_way_back(run: Run, error: Exception) -> WayBack | None:
    """The way back from a fault; None if it is not put down to growth, or the run went back often enough.

    A value that is not finite is put down to the newest growth as long as one of its modules is neither kept nor
    removed; too little memory, if one of them has trained in the network for fewer than a few steps.
    """
    life, undone = run.life, on_trial(run.model)
    if not undone or life.refusals.num_returns >= MAX_RETURNS:
        return None
    if isinstance(error, DivergenceError):
        reason = str(error).partition(";")[0]
    elif turns.is_shared():
        return None  # alone it may fit
    elif _is_memory(run, error) and any(_is_new(run, run.model.slot(graft.site)) for graft in undone):
        reason = f"out of memory: {one_line(error, max_length=200)}"
    else:
        return None
    run.checkpoint_writer.wait()
    checkpoint = run.ranks.on_rank0(lambda: _checkpoint_before(run.checkpoint_dir, undone))
    if checkpoint is None:
        return None
    refusals = Refusals(reasons=dict(life.refusals.reasons), num_returns=life.refusals.num_returns + 1)
    refusals.add(undone, reason)
    return WayBack(checkpoint=checkpoint, refusals=refusals, fault_step=run.state.global_step, reason=reason)


def _is_memory(run: Run, error: Exception) -> bool:
    """Whether it is a lack of memory that all ranks know of."""
    return isinstance(error, MemoryLimitError) or (run.ranks.size == 1 and is_out_of_memory(error))


def _is_new(run: Run, slot: SeedSlot) -> bool:
    if slot.state is SeedLifecycleState.TRAINING:
        return True
    return slot.blend_start is not None and run.state.global_step - slot.blend_start < _FIRST_STEPS


def _checkpoint_before(folder: Path, undone: list[Graft]) -> Path | None:
    """The newest checkpoint that was saved before a growth, and loads."""
    graft_ids = {graft.graft_id for graft in undone}
    for path in files.find_checkpoints(folder, prefix="before"):
        try:
            manifest = files.verify(path)
        except CheckpointError:
            continue
        grown = {graft["graft_id"] for graft in manifest["recipe"]}
        if manifest["step"] <= undone[0].born_step and not grown & graft_ids:
            return path
    return None
