"""Start a run from an earlier network, `model.init_from`: its weights and what it grew, nothing else of that run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from esper.build import require_recomputable
from esper.configs.identity import checkpoints_folder
from esper.contracts.lifecycle import LIVE
from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, ConfigError, RunError, SurgeryError, one_line
from esper.files import decoder, json_object, read_json
from esper.models import load_weights
from esper.tolaria.checkpoints import files
from esper.tolaria.checkpoints.contents import averaged, state_of
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.checkpoints.origin import Origin, as_given, home_of, read_origin, split_settings
from esper.tolaria.run import Run
from esper.tolaria.run_folder import recorded_config
from esper.tracking.files import GRAFT

__all__ = ["EarlierNetwork", "read_network", "start_from_network"]

_DESCRIPTION = decoder(json_object("Description", {"not_folded": list[GRAFT]}))
_NUM_SHOWN = 3
"""Tensors that a message names."""
_HOST_SETTINGS = (
    "source", "name", "stem", "widths", "depths", "patch_size", "width", "depth", "heads", "mlp_ratio", "positions"
)  # fmt: skip
"""Of the group `model`: they decide the tensors of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierNetwork:
    """A network that another run trained.

    Attributes:
        path: the checkpoint or export that holds it.
        weights: tensors by their names in a `MorphableModel`; the EMA, if the run kept one.
        recipe: what grew in it.
        digest: of weights and recipe.
        origin: what the run was trained on; None if unknown.
        model: settings of the group `model` of the run; empty if unknown.
    """

    path: Path
    weights: Mapping[str, Tensor]
    recipe: Sequence[Graft]
    digest: str
    origin: Origin | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_network(path: Path) -> EarlierNetwork:
    """Read a network from a run's folder (its newest checkpoint), a checkpoint, or what `esper export` wrote.

    `checkpoints/trunk` and `checkpoints/best` name the newest checkpoint of that kind.

    Raises:
        ConfigError: it is none of these, is damaged, or has a module that was neither kept nor culled yet.
    """
    try:
        if (path / "manifest.json").is_file():
            return _of_checkpoint(path, files.load_given(path), home_of(path))
        if path.is_dir() and (settings := recorded_config(path)):
            newest = files.find_checkpoints(_checkpoints(path, settings), complete=False)
            if not newest:
                raise CheckpointError("the run has no checkpoint yet; let it reach the end of an epoch")
            return _of_checkpoint(*files.load_newest(newest), path)
        if (path / "model.safetensors").is_file() or path.suffix == ".safetensors":
            return _of_export(path if path.is_file() else path / "model.safetensors")
        if path.name in ("best", "trunk") and (newest := files.find_checkpoints(path.parent, prefix=path.name)):
            return read_network(newest[0])
    except (CheckpointError, RunError) as error:
        raise ConfigError(f"model.init_from={path}: {error}") from None
    raise ConfigError(
        f"model.init_from={path}: not a run's folder, a checkpoint, or what esper export wrote; give one of these"
    )


def _checkpoints(run_dir: Path, settings: Mapping[str, Any]) -> Path:
    folder = settings.get("checkpoint", {}).get("checkpoint_dir")
    return checkpoints_folder(run_dir.absolute(), checkpoint_dir=folder)


def _of_checkpoint(path: Path, saved: Snapshot, run_dir: Path) -> EarlierNetwork:
    state, settings = state_of(saved), recorded_config(run_dir) or {}
    live = [site for site, slot in state["growth"]["slots"].items() if slot["state"] in LIVE]
    if live:
        raise CheckpointError(
            f"in {path.name} the module at {live[0]} was neither kept nor culled yet; use a later checkpoint"
        )
    decay = settings.get("optimization", {}).get("ema_decay")
    if state["average"] and decay is None:
        raise CheckpointError("the run kept an average of its weights (ema_decay); give the run's folder instead")
    weights = {name: tensor for name, tensor in saved.model.items() if _is_weight(name)} | averaged(saved, decay)
    digest = _digest(weights, saved.recipe)
    return EarlierNetwork(
        path=path,
        weights=weights,
        recipe=saved.recipe,
        digest=digest,
        origin=read_origin(run_dir),
        model=settings.get("model", {}),
    )


def _is_weight(name: str) -> bool:
    """Whether a tensor of a state dict belongs to the host or a kernel: not the alpha of a slot."""
    part, _, rest = name.partition(".")
    return part != "slots" or rest.count(".") > 1


def _of_export(file: Path) -> EarlierNetwork:
    description = file.with_name("model.json")
    try:
        not_folded = read_json(description, _DESCRIPTION)["not_folded"]
        weights = {f"host.{name}": tensor for name, tensor in load_file(file).items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename or error} is missing; give what esper export wrote") from None
    except (OSError, ValueError, RunError, SafetensorError) as error:
        raise CheckpointError(f"not what esper export wrote, or damaged: {one_line(error)}") from None
    if not_folded:
        raise CheckpointError(
            f"the module at {not_folded[0]['site']} could not be folded into the host; give the run's folder instead"
        )
    return EarlierNetwork(path=file, weights=weights, recipe=(), digest=_digest(weights, ()))


def _digest(weights: Mapping[str, Tensor], recipe: Sequence[Graft]) -> str:
    """16 hex digits of a SHA-256."""
    digest = hashlib.sha256(json.dumps([graft.entry() for graft in recipe]).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# --- starting ---------------------------------------------------------------------------------------------------------


def start_from_network(run: Run) -> list[tuple[str, str]]:
    """Give a run that has not trained yet the network in `model.init_from`; returns what the user should know.

    Raises:
        ConfigError: it cannot be read, is not the one that the run began with, or does not fit.
    """
    config = run.config.model
    if config.init_from is None:
        return []
    path = Path(config.init_from)
    network = run.ranks.on_rank0(functools.partial(read_network, path))
    if config.init_digest not in (None, network.digest):
        raise ConfigError(f"model.init_from={path}: holds another network than when the run was launched; start again")
    where = f"model.init_from={path}"
    head = _require_same(run, network, where, prefix="host.")
    _require_growable(run, network, where)
    try:
        run.life.adopt(network.recipe)
    except SurgeryError as error:
        raise ConfigError(f"{where}: {error}") from None
    _require_same(run, network, where, prefix="slots.")
    weights = {name: tensor for name, tensor in network.weights.items() if name not in head}
    load_weights(run.model, run.model.state_dict() | weights)
    origin = f"{network.path.name}, digest {network.digest}, grown modules: {len(network.recipe)}"
    notices = [("INFO", f"starts from {path} ({origin})")]
    if head:
        names = ", ".join(name.removeprefix("host.") for name in head)
        notices.append(("INFO", f"another number of classes: {names} start from initial weights"))
    if leak := _leak(run, network.origin):
        notices.append(("WARNING", f"{where}: {leak}; validation may be too good, and the judge misled"))
    return notices


def _leak(run: Run, origin: Origin | None) -> str:
    """What is known of images that are held out here and were trained on there; "" if there are none."""
    splits, name, settings = run.parts.splits, run.config.dataset.name, split_settings(run)
    if origin is None:
        return f"which {splits.noun} it was trained on is not known, perhaps some that are held out here"
    if changed := origin.changed_data(splits, run.config.dataset):
        leak = f"its data was other ({changed}), with {splits.noun} perhaps that are held out here"
        return leak if origin.dataset == name else ""
    if leaked := origin.num_leaked(splits):
        return (
            f"was trained on {leaked} of the {len(splits.held_out)} {splits.noun} that are held out here "
            f"({origin.changed_split(settings)}; the same split: {origin.same_split(settings)})"
        )
    return ""


def _require_growable(run: Run, network: EarlierNetwork, where: str) -> None:
    """Refuse modules at sites that this network lacks, and modules that would keep blocks from being copied."""
    if missing := [graft.site for graft in network.recipe if not run.model.has_site(graft.site)]:
        raise ConfigError(
            f"{where}: has a module at {missing[0]}, a site that this network lacks; use the model settings of the "
            "earlier run"
        )
    require_recomputable(network.recipe, run.config.model, where)
    growth, others = run.config.morphogenetic, [graft for graft in network.recipe if not graft.sources]
    if growth.enable_tamiyo and growth.grows_copies and others:
        raise ConfigError(
            f"{where}: blocks with {others[0].blueprint_id} at {others[0].site} cannot be copied; let other "
            "blueprints grow than copy, or start from a network that grew nothing but copies"
        )


def _require_same(run: Run, given: EarlierNetwork, where: str, *, prefix: str) -> list[str]:
    """Compare names and shapes of tensors; returns those that differ only by the number of classes."""
    own = {n: list(t.shape) for n, t in run.model.state_dict().items() if n.startswith(prefix) and _is_weight(n)}
    theirs = {name: list(tensor.shape) for name, tensor in given.weights.items() if name.startswith(prefix)}
    differing = [name for name in own | theirs if own.get(name) != theirs.get(name)]  # in forward order
    if not differing:
        return []
    if all(name in own and name in theirs for name in differing) and _differ_by_classes(run, own, theirs, differing):
        return differing
    own_settings = {name: getattr(run.config.model, name) for name in _HOST_SETTINGS}
    changed = [name for name in _HOST_SETTINGS if given.model.get(name, own_settings[name]) != own_settings[name]]
    if changed:
        settings = ", ".join(
            f"model.{n} is {as_given(given.model[n])}, here {as_given(own_settings[n])}" for n in changed
        )
        remedy = " ".join(f"model.{name}={as_given(given.model[name])}" for name in changed)
        raise ConfigError(f"{where}: holds another network: {settings}; give {remedy}")
    shown = [
        f"{name.removeprefix(prefix)} is {theirs.get(name, 'missing')}, here {own.get(name, 'missing')}"
        for name in differing
    ]
    more = f"; {len(shown) - _NUM_SHOWN} more" if len(shown) > _NUM_SHOWN else ""
    raise ConfigError(
        f"{where}: holds another network: {'; '.join(shown[:_NUM_SHOWN])}{more}; use the model settings of the earlier "
        "run (config.yaml in its folder)"
    )


def _differ_by_classes(
    run: Run, own: Mapping[str, list[int]], theirs: Mapping[str, list[int]], differing: Iterable[str]
) -> bool:
    """Whether shapes differ only where those of a host with one class more do."""
    assert run.model.build_host is not None
    spec = dataclasses.replace(run.parts.spec, num_outputs=run.parts.spec.num_outputs + 1)
    with torch.random.fork_rng(devices=[]):
        other = run.model.build_host(spec=spec).state_dict()
    for name in differing:
        larger = other.get(name.removeprefix("host."))
        if larger is None or len(own[name]) != len(theirs[name]):
            return False
        if any(a != b and a == c for a, b, c in zip(own[name], theirs[name], larger.shape, strict=True)):
            return False
    return True
