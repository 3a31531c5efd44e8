"""`esper.load`: the network of a run, or of what `esper export` wrote. Reads safetensors and JSON, never pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from esper import plugins
from esper.configs import DatasetConfig, ModelConfig
from esper.configs.check import check_group
from esper.configs.identity import checkpoints_folder, outputs_folder, with_defaults
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.data import DataSplits, load_splits
from esper.data.interface import INTERFACE, Interface, interface_of, read_interface
from esper.data.tokenizer import load_tokenizer
from esper.devices import select_device
from esper.errors import CheckpointError, DataError, RunError, SurgeryError, one_line
from esper.files import as_json, decoder, json_object, read_json, sha256
from esper.inference.network import Network
from esper.inference.rebuild import rebuilt
from esper.kasmina import MorphableModel, fold
from esper.models import load_weights
from esper.tolaria.checkpoints.contents import averaged, state_of
from esper.tolaria.checkpoints.files import Snapshot, find_checkpoints, load_newest
from esper.tolaria.run_folder import recorded_config
from esper.tracking.files import GRAFT

__all__ = ["DESCRIPTION", "SCHEMA", "TOKENIZER", "WEIGHTS", "Trained", "load", "own_splits", "trained"]

SCHEMA = 2
"""1: without how inputs are prepared, and without the settings of the host."""
DESCRIPTION = "model.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
_VERSION = decoder(json_object("Version", {"schema": int}))
_DESCRIPTION = decoder(
    json_object(
        "Description",
        {
            "schema": Literal[SCHEMA],
            "model": as_json(ModelConfig, extra="forbid"),
            "interface": INTERFACE,
            "channels_last": bool,
            "recipe": list[GRAFT],
            "sha256": str,
        },
    )
)


def load(
    path: Path | str,
    *,
    best: bool = False,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    device: str = "cpu",
) -> Network:
    """Load a trained network, in eval mode, with what it needs to predict.

    Args:
        path: folder of a run, finished or not, or of what `esper export` wrote.
        best: of a run, the checkpoint with the lowest validation loss instead of the newest one.
        model: what `fit(model=…)` got, if the network is one of your own that no plugin registers.
        device: as the setting of that name, whatever the run was trained on.

    Raises:
        ConfigError: the device is not there.
        RunError: it is neither, or its network is code that has not been imported.
        CheckpointError: a file is damaged, the run has no usable checkpoint, or a module in it is neither kept nor
            culled yet.
        DataError: the run was trained by a version that kept no `interface.json`, and its data is not there.
    """
    place, path = select_device(device), Path(path).expanduser()
    if (path / DESCRIPTION).is_file():
        return _of_export(path, model).to(place)
    if recorded_config(path) is None:
        raise RunError(
            f"{path} is neither the folder of a run (it has no config.yaml) nor what esper export wrote (it has no "
            f"{DESCRIPTION})"
        )
    found = trained(path, best=best, model=model)
    return _network(
        found.folded(),
        found.interface,
        found.config,
        channels_last=found.channels_last,
        tokenizer=found.settings["dataset"]["tokenizer"],
    ).to(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The network in a run's checkpoint.

    Attributes:
        model: as it was trained, with its slots.
        interface: what it reads and gives.
        settings: the run's.
        config: those of the host.
        saved: the checkpoint.
        path: its folder.
    """

    model: MorphableModel
    interface: Interface
    settings: Mapping[str, Any]
    config: ModelConfig
    saved: Snapshot
    path: Path

    @property
    def channels_last(self) -> bool:
        """As the setting of that name."""
        return bool(self.settings["channels_last"])

    def folded(self) -> nn.Module:
        """A plain network in eval mode, see `esper.kasmina.fold`.

        Raises:
            CheckpointError: a module in it is neither kept nor culled yet.
        """
        try:
            return fold(self.model)
        except SurgeryError as error:
            remedy = "resume it with the same command"
            raise CheckpointError(f"{self.path}: the run has not finished; {remedy} ({error})") from None


def trained(run_dir: Path, *, best: bool = False, model: Any = None) -> Trained:
    """The network of a run; see `load`.

    Raises:
        RunError, CheckpointError, DataError: as there.
    """
    settings = _settings(run_dir)
    folder = checkpoints_folder(run_dir.absolute(), checkpoint_dir=settings["checkpoint"]["checkpoint_dir"])
    checkpoints = find_checkpoints(folder, prefix="best" if best else "step", complete=False)
    if not checkpoints:
        raise CheckpointError(
            f"{folder} has no {'best' if best else 'complete'} checkpoint; "
            f"{'leave --best out' if best else 'let the run reach the end of an epoch'}"
        )
    path, saved = load_newest(checkpoints)
    interface = read_interface(run_dir) or _found_in_data(run_dir, settings)
    config = ModelConfig(**settings["model"])
    _find_own(config, model, run_dir, settings["plugins"])
    try:
        states = state_of(saved)["growth"]["slots"]
        grown = rebuilt(
            config, interface.spec, sites=states, recipe=saved.recipe, channels_last=settings["channels_last"]
        )
        load_weights(grown, dict(saved.model) | averaged(saved, settings["optimization"]["ema_decay"]))
        for slot in grown.all_slots():
            slot.state = SeedLifecycleState(states[slot.site.name]["state"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit its run's config.yaml: {one_line(error)}") from None
    return Trained(model=grown, interface=interface, settings=settings, config=config, saved=saved, path=path)


def own_splits(run_dir: Path, settings: Mapping[str, Any]) -> DataSplits:
    """The data of a run, as its settings split it.

    Raises:
        DataError: they cannot be used, or were given to `fit` as objects.
    """
    config = DatasetConfig(**settings["dataset"])
    if config.name == "plugin" and plugins.find("dataset", config.source or "") is None:
        modules = settings["plugins"]
        remedy = f"name its module with {_plugin_options(modules)}" if modules else "they were given to fit as objects"
        raise DataError(f"{run_dir}: its data, {config.source!r}, are not registered in this process: {remedy}")
    outputs = outputs_folder(run_dir.absolute(), experiment_name=settings["experiment_name"])
    return load_splits(config, rng_seed=settings["rng_seed"], cache_dir=outputs / "cache")


def _settings(run_dir: Path) -> dict[str, Any]:
    """The run's settings."""
    recorded = recorded_config(run_dir)
    if recorded is None:
        raise RunError(f"{run_dir} is not a run folder: it has no config.yaml")
    settings = with_defaults(recorded)
    check_group(ModelConfig(**settings["model"]), prefix="model.")
    return settings


def _found_in_data(run_dir: Path, settings: Mapping[str, Any]) -> Interface:
    """The interface of a run of version 0.1.0, which recorded none."""
    try:
        splits = own_splits(run_dir, settings)
    except DataError as error:
        raise DataError(
            f"{run_dir} has no interface.json, as it was trained by an older version, and how its inputs are prepared "
            f"must be taken from its data: {error}"
        ) from None
    spec, num_classes = splits.spec, settings["model"]["num_classes"]
    spec = dataclasses.replace(spec, num_outputs=num_classes or spec.num_outputs)
    return interface_of(splits, spec, DatasetConfig(**settings["dataset"]), task=settings["task"]["name"])


def _find_own(config: ModelConfig, model: Any, path: Path, modules: Sequence[str]) -> None:
    """Refuse a network of the user's own that is not there; only what the user imports or gives is run."""
    if config.source != "plugin":
        return
    if model is not None:
        plugins.offer("model", config.name, model)
    if plugins.find("model", config.name) is None:
        named = f"import {', '.join(modules)} first (on the command line: {_plugin_options(modules)})"
        given = (
            f"esper.load({str(path)!r}, model={config.name}) gives it; or register it with "
            f'@esper.model("{config.name}") in a module, and name that with --plugins'
        )
        raise RunError(f"{path}: its network, {config.name}, is code of your own: {named if modules else given}")


def _plugin_options(modules: Sequence[str]) -> str:
    return " ".join(f"--plugins {module}" for module in modules)


def _of_export(folder: Path, model: Any) -> Network:
    file = folder / DESCRIPTION
    schema = _description(file, _VERSION)["schema"]
    if schema != SCHEMA:
        older = "an older version of Esper, without how inputs are prepared: export the run again"
        newer = f"a newer version of Esper (schema {schema}; this one reads {SCHEMA}): install that"
        raise RunError(f"{folder} was exported by {older if schema < SCHEMA else newer}")
    description = _description(file, _DESCRIPTION)
    config, interface = ModelConfig(**description["model"]), Interface.of_entry(description["interface"])
    _find_own(config, model, folder, description.get("plugins", []))
    recipe = [Graft(**entry) for entry in description["recipe"]]
    weights = folder / WEIGHTS
    try:
        check_group(config, prefix="model.")
        if sha256(weights) != description["sha256"]:
            raise CheckpointError(f"{weights} is damaged: its SHA-256 differs from {DESCRIPTION}; export the run again")
        sites = {graft.site for graft in recipe}
        grown = rebuilt(config, interface.spec, sites=sites, recipe=recipe, channels_last=description["channels_last"])
        tensors = load_file(weights)
        network = fold(grown, names=tensors)
        load_weights(network, tensors)
    except (KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {one_line(error)}; export the run again") from None
    tokenizer = folder / TOKENIZER
    return _network(
        network,
        interface,
        config,
        channels_last=description["channels_last"],
        tokenizer=str(tokenizer) if tokenizer.is_file() else None,
    )


def _description(file: Path, schema: TypeAdapter[dict[str, Any]]) -> dict[str, Any]:
    try:
        return read_json(file, schema)
    except RunError as error:
        raise RunError(f"{error}; export the run again") from None


def _network(
    network: nn.Module, interface: Interface, config: ModelConfig, *, channels_last: bool, tokenizer: str | None
) -> Network:
    if interface.values != "int64":
        return Network(network, interface, channels_last=channels_last)
    loaded = load_tokenizer(tokenizer)
    if config.num_classes is None and loaded.vocab_size != interface.outputs:
        raise CheckpointError(
            f"its tokenizer ({tokenizer or 'bytes'}) has {loaded.vocab_size:,} tokens, the network "
            f"{interface.outputs:,}; put back the {TOKENIZER} that it was trained with"
        )
    return Network(network, interface, channels_last=channels_last, tokenizer=loaded)
