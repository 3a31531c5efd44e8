"""What a checkpoint holds: `snapshot` collects it from a run, `restore` puts it back."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.configs.identity import digest
from esper.errors import CheckpointError
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.ema import bias_corrected
from esper.tolaria.optim import load_state_tensors, state_tensors
from esper.tolaria.run import Run

__all__ = ["averaged", "restore", "snapshot"]


def snapshot(run: Run) -> Snapshot:
    """Everything that a run needs to resume bit for bit (on a CPU)."""
    tensors = {"rng|cpu": torch.get_rng_state(), "sums|epoch": run.step.sums.epoch, "sums|read": run.last_read}
    if run.parts.device.type == "cuda":
        tensors["rng|cuda"] = torch.cuda.get_rng_state(run.parts.device)
    ema = run.step.ema
    if ema is not None:
        tensors |= {f"average|{name}": tensor for name, tensor in ema.sums.items()}
    return Snapshot(
        step=run.state.global_step,
        model=run.model.state_dict(),
        optimizer=state_tensors(run.optimizer) | tensors,
        state={
            "training": run.state.state_dict(),
            "growth": run.life.state_dict(),
            "scaler": run.step.scaler.state_dict(),
            "num_parts": run.step.num_parts,
            "average": ema.born if ema is not None else {},
        },
        recipe=run.model.recipe,
        journal_offset=run.journal.size,  # the writer syncs it
        digest=digest(run.config),
    )


def averaged(saved: Snapshot, ema_decay: float | None) -> dict[str, Tensor]:
    """The weights of the EMA in a checkpoint; empty without one."""
    born = saved.state.get("average", {})
    if ema_decay is None:
        return {}
    sums = {name: saved.optimizer[f"average|{name}"] for name in born}
    return bias_corrected(sums, born, decay=ema_decay, step=saved.step)


def restore(run: Run, saved: Snapshot) -> None:
    """Load a snapshot into a run that has not trained yet.

    Raises:
        CheckpointError: the run has grown already, or the checkpoint holds another network.
    """
    if run.model.recipe:
        raise CheckpointError("a checkpoint is loaded into a network that has not grown; make a new trainer")
    run.model.replay(saved.recipe)
    own = run.model.state_dict()
    different = [
        name
        for name in sorted(own.keys() | saved.model.keys())
        if name not in own or name not in saved.model or own[name].shape != saved.model[name].shape
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
    if run.step.ema is not None:
        run.step.ema.load(sums, born, step=saved.step)
    load_state_tensors(run.optimizer, tensors)
    run.step.scaler.load_state_dict(saved.state["scaler"])
    run.step.num_parts = saved.state.get("num_parts", 1)
    run.state.load_state_dict(saved.state["training"])
