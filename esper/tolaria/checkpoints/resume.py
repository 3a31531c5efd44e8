"""From a run to a checkpoint and back: what is saved, and how a run goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch

from esper.configs import CheckpointConfig
from esper.configs.identity import digest
from esper.errors import CheckpointError
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.optim import load_state_tensors, state_tensors
from esper.tolaria.run import Run

__all__ = ["own_checkpoint_asked", "restore", "resume", "snapshot"]


def snapshot(run: Run) -> checkpoint.Snapshot:
    """Everything that a resumed run needs to go on bit for bit (on a CPU)."""
    extra = {"rng|cpu": torch.get_rng_state(), "sums|epoch": run.step.sums.epoch, "sums|read": run.last_read}
    if run.parts.device.type == "cuda":
        extra["rng|cuda"] = torch.cuda.get_rng_state(run.parts.device)
    average = run.step.average
    if average is not None:
        extra |= {f"average|{name}": tensor for name, tensor in average.sums.items()}
    return checkpoint.Snapshot(
        step=run.state.global_step,
        model=run.model.state_dict(),
        optimizer=state_tensors(run.optimizer) | extra,
        state={
            "training": run.state.state_dict(),
            "growth": run.life.state_dict(),
            "scaler": run.step.scaler.state_dict(),
            "average": average.born if average is not None else {},
        },
        recipe=run.model.recipe,
        journal_offset=run.journal.size,  # the saver syncs it
        digest=digest(run.config),
    )


def restore(run: Run, saved: checkpoint.Snapshot) -> None:
    """Bring a run that has not trained yet to where a checkpoint stands.

    Raises:
        CheckpointError: the run has grown already, or the checkpoint holds another network.
    """
    if run.model.recipe:
        raise CheckpointError("a checkpoint is loaded into a network that has not grown; make a new trainer")
    run.model.replay(saved.recipe)
    mine = run.model.state_dict()
    different = [
        name
        for name in sorted(mine.keys() | saved.model.keys())
        if name not in mine or name not in saved.model or mine[name].shape != saved.model[name].shape
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint holds another network: {len(different)} tensors differ, e.g. {different[0]!r}; use the "
            "model settings it was trained with (config.yaml of its run)"
        )
    run.model.load_state_dict(dict(saved.model))
    run.life.load_state_dict(saved.state["growth"])
    tensors = dict(saved.optimizer)
    torch.set_rng_state(tensors.pop("rng|cpu"))
    cuda_state = tensors.pop("rng|cuda", None)
    if cuda_state is not None and run.parts.device.type == "cuda":
        torch.cuda.set_rng_state(cuda_state, run.parts.device)
    run.step.sums.epoch.copy_(tensors.pop("sums|epoch"))
    run.last_read.copy_(tensors.pop("sums|read"))
    born = saved.state.get("average", {})
    sums = {name: tensors.pop(f"average|{name}") for name in born}
    if run.step.average is not None:
        run.step.average.load(sums, born, step=saved.step)
    load_state_tensors(run.optimizer, tensors)
    run.step.scaler.load_state_dict(saved.state["scaler"])
    run.state.load_state_dict(saved.state["training"])


def resume(run: Run) -> str | None:
    """Go on where the run stood, or from the checkpoint asked for; returns which checkpoint that was.

    `checkpoint.resume_from` is where a run begins: its own newest sound checkpoint goes before, unless the one asked
    for is its own too, or `auto_resume` is off. Of the run itself, what came after is set aside, journal and
    checkpoints alike.

    Raises:
        CheckpointError: the checkpoint asked for cannot be used.
    """
    begin, damaged = run.ranks.first(lambda: _beginning(run))
    if begin is not None:
        restore(run, begin[1])
    for message in damaged:
        run.warn(message)
    return str(begin[0]) if begin else None


def _beginning(run: Run) -> tuple[tuple[Path, checkpoint.Snapshot] | None, list[str]]:
    """Where the run begins, and what is to be told; the run's folder and journal go back there."""
    config = run.config.checkpoint
    damaged: list[str] = []
    if own := own_checkpoint_asked(config, run.checkpoint_dir):
        start: tuple[Path, checkpoint.Snapshot] | None = (own, checkpoint.load(own))
    else:
        goes_on = config.auto_resume and not run.config.fresh
        start = _newest_sound(checkpoint.find_checkpoints(run.checkpoint_dir) if goes_on else [], damaged)
    begin = start
    if begin is None and config.resume_from is not None:
        other = Path(config.resume_from).expanduser()
        begin = (other, checkpoint.load(other))
    checkpoint.set_aside(run.checkpoint_dir, after_step=start[1].step if start else -1)
    run.journal.rewind(start[1].journal_offset if start else 0)
    return begin, [f"{message}; {f'went back to {start[0].name}' if start else 'began anew'}" for message in damaged]


def own_checkpoint_asked(config: CheckpointConfig, checkpoint_dir: Path) -> Path | None:
    """The checkpoint in `resume_from` if it is one of the run's own: the run is to go back there, finished or not."""
    asked = Path(config.resume_from).expanduser() if config.resume_from else None
    return asked if asked is not None and asked.resolve().parent == checkpoint_dir.resolve() else None


def _newest_sound(candidates: list[Path], damaged: list[str]) -> tuple[Path, checkpoint.Snapshot] | None:
    """The first checkpoint that can be read; `damaged` gets what is wrong with those before it."""
    for path in candidates:
        try:
            return path, checkpoint.load(path)
        except CheckpointError as error:
            damaged.append(str(error))
    return None
