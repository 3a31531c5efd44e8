"""What a checkpoint holds: `snapshot` collects it from a run, `restore` puts it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from esper.configs.identity import digest
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.costs import Ledger
from esper.devices import in_double
from esper.errors import CheckpointError, EsperError, one_line
from esper.files import Count, Number, decoder, first_problem, json_object
from esper.kasmina import MorphableModel
from esper.models import load_weights
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.ema import bias_corrected
from esper.tolaria.optim import is_alike, load_state_tensors, state_tensors

if TYPE_CHECKING:
    from esper.tolaria.run import Run

__all__ = ["averaged", "rebuild", "restore", "snapshot", "state_of"]

_COUNTS = ("epoch", "step", "global_step", "epochs_since_best", "adaptations_this_epoch", "total_adaptations")
_TRAINING = json_object(
    "Training",
    {
        **dict.fromkeys([*_COUNTS, "peak_parameters", *(field.name for field in dataclasses.fields(Ledger))], Count),
        "skipped_macs": NotRequired[Count],  # not in 0.1.0
        **dict.fromkeys(["epoch_seconds", "total_seconds"], Number),
        "best_accuracy": NotRequired[Number],  # instead of best_metrics, before there were tasks
        "best_metrics": NotRequired[dict[str, float]],
        "best_loss": Annotated[float, Field(gt=float("-inf"))],  # infinite before the first validation
        "last_adaptation_epoch": Annotated[int, Field(ge=-1, lt=2**63)],
        "last_consultation": NotRequired[Number | None],  # not in 0.1.0
    },
    extra="forbid",
)
_SLOT = json_object(
    "Slot",
    {
        "state": Literal[tuple(state.value for state in SeedLifecycleState)],
        "epoch": Count,
        "blend_start": Count | None,
    },
)
_REFUSALS = json_object(
    "Refusals",
    {
        "reasons": list[Annotated[list[str], Field(min_length=3, max_length=3)]],
        "num_returns": Count,
    },
)
_GROWTH = json_object(
    "Growth",
    {
        "num_germinated": Count,
        "num_verdicts": Count,
        "last_adaptation": dict[str, Count],
        "refusals": NotRequired[_REFUSALS],  # not in 0.1.0
        "slots": dict[str, _SLOT],  # type: ignore[valid-type]
    },
)
_SCALER = json_object(
    "Scaler",
    {
        **dict.fromkeys(("scale", "growth_factor", "backoff_factor"), NotRequired[Number]),
        **dict.fromkeys(("growth_interval", "_growth_tracker"), NotRequired[Count]),
    },
)
_STATE = decoder(
    json_object(
        "State",
        {
            "training": _TRAINING,
            "growth": _GROWTH,
            "scaler": _SCALER,
            "num_parts": NotRequired[Annotated[int, Field(ge=1, lt=2**31)]],  # not in 0.1.0
            "average": dict[str, Annotated[int, Field(gt=-(2**63), lt=2**63)]],  # below 0: in an earlier run
        },
    )
)


def snapshot(run: Run) -> Snapshot:
    """Everything that a run needs to resume bit for bit (on a CPU)."""
    device, sums = run.parts.device, {"sums|epoch": run.step.sums.epoch, "sums|read": run.last_read}
    tensors = {"rng|cpu": torch.get_rng_state(), **{name: in_double(tensor) for name, tensor in sums.items()}}
    if device.type != "cpu":
        tensors[f"rng|{device.type}"] = torch.get_device_module(device).get_rng_state(device)
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
            "num_parts": run.step.num_splits,
            "average": ema.born if ema is not None else {},
        },
        recipe=run.model.recipe,
        journal_offset=run.journal.size,  # the writer syncs it
        digest=digest(run.config),
    )


def state_of(saved: Snapshot) -> dict[str, Any]:
    """The state in a checkpoint, checked.

    Raises:
        CheckpointError: something in it is missing, of another type or out of range.
    """
    try:
        state = _STATE.validate_python(saved.state, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint's state.json is damaged: {first_problem(error)}") from None
    if state["training"]["global_step"] != saved.step:
        raise CheckpointError(f"the checkpoint's state.json is of another step: {state['training']['global_step']}")
    return state


def rebuild(model: MorphableModel, recipe: Sequence[Graft]) -> None:
    """Grow what a checkpoint's network had grown; its weights are to be loaded.

    Raises:
        CheckpointError: the recipe is not one of this host.
    """
    try:
        model.replay(recipe)
    except (EsperError, LookupError, RuntimeError, ValueError) as error:  # what recipes say that no run has written
        raise CheckpointError(f"the checkpoint's growth recipe does not fit the network: {one_line(error)}") from None


def averaged(saved: Snapshot, ema_decay: float | None) -> dict[str, Tensor]:
    """The weights of the EMA in a checkpoint; empty without one.

    Raises:
        CheckpointError: one of them is missing.
    """
    born, tensors = state_of(saved)["average"], dict(saved.optimizer)
    if ema_decay is None:
        return {}
    sums = {name: _pop(tensors, f"average|{name}") for name in born}
    return bias_corrected(sums, born, decay=ema_decay, step=saved.step)


def restore(run: Run, saved: Snapshot) -> None:
    """Load a snapshot into a run that has not trained yet.

    Raises:
        CheckpointError: the run has grown already, the checkpoint is damaged, or it holds another network.
    """
    if run.model.recipe:
        raise CheckpointError("a checkpoint is loaded into a network that has not grown; make a new trainer")
    state = state_of(saved)
    rebuild(run.model, saved.recipe)
    own, model, growth = run.model.state_dict(), dict(saved.model), state["growth"]
    if not growth["slots"]:  # of a run without growth, whose network may grow from now on
        model |= {name: tensor for name, tensor in own.items() if name.startswith("slots.")}
        growth = {**growth, "slots": run.life.state_dict()["slots"]}
    different = [
        name
        for name in sorted(own.keys() | model.keys())
        if name not in own or name not in model or not is_alike(own[name], model[name])
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint holds another network: {len(different)} tensors differ, e.g. {different[0]!r}"
        )
    load_weights(run.model, model)
    if growth["slots"].keys() != {slot.site.name for slot in run.model.all_slots()}:
        raise CheckpointError("the checkpoint holds the seeds of another network")
    run.life.load_state_dict(growth)
    tensors = dict(saved.optimizer)
    _restore_random_states(run.parts.device, tensors)
    for name, target in (("sums|epoch", run.step.sums.epoch), ("sums|read", run.last_read)):
        target.copy_(_pop(tensors, name, like=in_double(target)))
    born, ema = state["average"], run.step.ema
    sums = {name: _pop(tensors, f"average|{name}", like=ema.sums.get(name) if ema else None) for name in born}
    if ema is not None:
        ema.load(sums, born, step=saved.step)
    load_state_tensors(run.optimizer, tensors)
    if run.step.scaler.is_enabled() and not state["scaler"]:
        raise CheckpointError("the checkpoint was saved without a gradient scaler; resume in its number format")
    run.step.scaler.load_state_dict(state["scaler"])
    run.step.num_splits = state.get("num_parts", 1)
    run.state.load_state_dict(state["training"])


def _restore_random_states(device: torch.device, tensors: dict[str, Tensor]) -> None:
    """Restore the generators' states, and remove them from the tensors."""
    states = {name: tensors.pop(f"rng|{name}", None) for name in ("cpu", "cuda", "mps")}
    if states["cpu"] is None:
        raise CheckpointError("the checkpoint is damaged: it has no rng|cpu")
    try:
        torch.set_rng_state(states["cpu"])
        if device.type != "cpu" and (state := states[device.type]) is not None:
            torch.get_device_module(device).set_rng_state(state, device)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"the checkpoint is damaged: a random state: {one_line(error)}") from None


def _pop(tensors: dict[str, Tensor], name: str, *, like: Tensor | None = None) -> Tensor:
    """Take a tensor out of a checkpoint's."""
    found = tensors.pop(name, None)
    if found is None or (like is not None and not is_alike(found, like)):
        raise CheckpointError(f"the checkpoint is damaged: {name} is missing, or not of its shape and type")
    return found
