"""Export the network of a run's checkpoint, with its kernels folded into the host where possible.

    model.safetensors     parameters and buffers, with torchvision's names if everything could be folded
    model.json            host, stages, classes, growth recipe, and the grafts that could not be folded
    tokenizer.json        of a language model that does not read bytes

Needs neither the data nor a GPU. In eval mode, the exported network computes the same as the run's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from esper.configs import ModelConfig
from esper.configs.check import check_group
from esper.configs.dataset import DATASETS
from esper.configs.identity import checkpoints_folder, with_defaults
from esper.configs.model import SITE_KINDS
from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import CheckpointError, RunError, SurgeryError, one_line
from esper.files import write_atomically
from esper.kasmina import MorphableModel, SeedSlot, find_sites, fold
from esper.models import build_host, host_family
from esper.tolaria.checkpoints.contents import averaged, rebuild, state_of
from esper.tolaria.checkpoints.files import Snapshot, find_checkpoints, load_newest
from esper.tolaria.run_folder import recorded_config

__all__ = ["DESCRIPTION", "TOKENIZER", "WEIGHTS", "export", "folded_network"]

SCHEMA = 1
DESCRIPTION = "model.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"


def export(run_dir: Path, out: Path, *, best: bool = False) -> Path:
    """Write a run's network into a new or empty folder; returns the folder.

    Args:
        run_dir: folder of the run, finished or not.
        out: folder to write to.
        best: export the checkpoint with the lowest validation loss instead of the newest one.

    Raises:
        RunError: `run_dir` is not a run, or `out` cannot be used.
        CheckpointError: there is no usable checkpoint, or a module in it is neither kept nor culled yet.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} already exists and is not an empty folder; choose another with --out, or remove it")
    network, saved, settings = folded_network(run_dir, best=best)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    description = _description(ModelConfig(**settings["model"]), saved, network)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / WEIGHTS)
        if settings["dataset"]["tokenizer"] is not None:
            shutil.copyfile(settings["dataset"]["tokenizer"], out / TOKENIZER)
        write_atomically(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write in {out}: {error}; choose another folder with --out") from None
    return out


def folded_network(run_dir: Path, *, best: bool = False) -> tuple[nn.Module, Snapshot, dict[str, Any]]:
    """The network of a run's checkpoint, folded, in eval mode; the checkpoint; and the run's settings.

    Raises:
        RunError, CheckpointError: see `export`.
    """
    settings = _settings(run_dir)
    folder = checkpoints_folder(run_dir.absolute(), checkpoint_dir=settings["checkpoint"]["checkpoint_dir"])
    checkpoints = find_checkpoints(folder, prefix="best" if best else "step", complete=False)
    if not checkpoints:
        raise CheckpointError(
            f"{folder} has no {'best' if best else 'complete'} checkpoint; "
            f"{'export without --best' if best else 'let the run reach the end of an epoch'}"
        )
    path, saved = load_newest(checkpoints)
    try:
        network = fold(_rebuilt(settings, saved))
    except SurgeryError as error:
        raise CheckpointError(f"{path}: the run has not finished; resume it with the same command ({error})") from None
    return network, saved, settings


def _settings(run_dir: Path) -> dict[str, Any]:
    """The run's settings."""
    recorded = recorded_config(run_dir)
    if recorded is None:
        raise RunError(f"{run_dir} is not a run folder: it has no config.yaml")
    settings = with_defaults(recorded)
    check_group(ModelConfig(**settings["model"]), prefix="model.")
    return settings


def _input_size(dataset: Mapping[str, Any]) -> int | None:
    """Side of the images, or tokens in a window, if they are known."""
    known = DATASETS.get(dataset["name"])
    size = dataset["context"] if known is not None and known.is_text else dataset["image_size"]
    return size or (known.image_size if known else None)


def _rebuilt(settings: Mapping[str, Any], saved: Snapshot) -> MorphableModel:
    """The grown network of a checkpoint; sizes that come from the data are inferred from its tensors."""
    config = ModelConfig(**settings["model"])
    try:
        weights = {name.removeprefix("host."): tensor for name, tensor in saved.model.items()}
        spec = host_family(config).infer_spec(config, weights, image_size=_input_size(settings["dataset"]))
        plain = dataclasses.replace(config, pretrained=False)
        host = build_host(plain, spec)
        states = state_of(saved)["growth"]["slots"]
        sites = find_sites(
            host,
            target_layers=config.target_layers if states else [],
            seeds_per_layer=len(saved.model),
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
            kinds=SITE_KINDS,
        )
        model = MorphableModel(
            host,
            [site for site in sites if site.name in states],
            max_kernels_per_seed=config.max_kernels_per_seed,
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
        )
        rebuild(model, saved.recipe)
        model.load_state_dict(dict(saved.model) | averaged(saved, settings["optimization"]["ema_decay"]))
        for slot in model.all_slots():
            slot.state = SeedLifecycleState(states[slot.site.name]["state"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit its run's config.yaml: {one_line(error)}") from None
    return model


def _description(config: ModelConfig, saved: Snapshot, network: nn.Module) -> dict[str, Any]:
    not_folded = [graft for slot in network.modules() if isinstance(slot, SeedSlot) for graft in slot.grafts]
    return {
        "schema": SCHEMA,
        "source": config.source,
        "host": config.name,
        **host_family(config).describe(config, network),
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "step": saved.step,
        "recipe": [graft.entry() for graft in saved.recipe],
        "not_folded": [graft.entry() for graft in sorted(not_folded, key=lambda graft: graft.graft_id)],
    }
