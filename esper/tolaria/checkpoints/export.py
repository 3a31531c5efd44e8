"""From a run to a network for use: its checkpoint, with what grew folded into the host.

    model.safetensors     parameters and buffers, by torchvision's names wherever everything could be folded
    model.json            what they belong to: host, stages, classes, growth recipe, and what could not be folded

Needs neither the data nor a device; the network computes in eval mode what the run's computed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.configs import ModelConfig
from esper.configs.dataset import DATASETS
from esper.configs.identity import checkpoints_folder
from esper.configs.model import SITE_KINDS
from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import CheckpointError, RunError, SurgeryError, one_line
from esper.kasmina import MorphableModel, SeedSlot, find_sites, fold
from esper.models import build_host, host_family
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.ema import bias_corrected

__all__ = ["export"]

SCHEMA = 1


def export(run_dir: Path, out: Path, *, best: bool = False) -> Path:
    """Write a run's network into a new or empty folder; returns the folder.

    Args:
        run_dir: folder of the run, finished or not.
        out: where to write.
        best: take the checkpoint of the lowest validation loss instead of the newest one.

    Raises:
        RunError: it is no run, or `out` cannot be used.
        CheckpointError: there is no checkpoint, or it cannot be used, or the fate of a module in it is open.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already and not an empty folder; choose another with --out, or remove it")
    config, image_size, ema_decay, folder = _settings(run_dir)
    found = checkpoint.find_checkpoints(folder, prefix="best" if best else "step")
    if not found:
        raise CheckpointError(
            f"{folder} holds no {'best' if best else 'complete'} checkpoint; "
            f"{'export without --best' if best else 'let the run reach the end of an epoch'}"
        )
    saved = checkpoint.load(found[0])
    try:
        network = fold(_rebuilt(config, saved, image_size=image_size, ema_decay=ema_decay))
    except SurgeryError as error:
        raise CheckpointError(f"{found[0]}: the run has not finished; give its command again ({error})") from None
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "model.safetensors")
        (out / "model.json").write_text(json.dumps(_description(config, saved, network), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write in {out}: {error}; choose another folder with --out") from None
    return out


def _settings(run_dir: Path) -> tuple[ModelConfig, int | None, float | None, Path]:
    """The run's host, its images' side where known, its weight average's decay, and its checkpoints' folder."""
    try:
        settings = yaml.safe_load((run_dir / "config.yaml").read_text())
        config = ModelConfig(**settings["model"])
        folder = checkpoints_folder(run_dir.absolute(), checkpoint_dir=settings["checkpoint"]["checkpoint_dir"])
        dataset = settings.get("dataset", {})
        known = DATASETS.get(dataset.get("name"))
        image_size = dataset.get("image_size") or (known.image_size if known else None)
        return config, image_size, settings.get("optimization", {}).get("ema_decay"), folder
    except FileNotFoundError:
        raise RunError(f"{run_dir} is no run: it has no config.yaml; give a folder that esper-train made") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunError(f"{run_dir / 'config.yaml'} cannot be used: {error}") from None


def _rebuilt(
    config: ModelConfig, saved: checkpoint.Snapshot, *, image_size: int | None, ema_decay: float | None
) -> MorphableModel:
    """The grown network of a checkpoint; sizes that followed from the data are read off its tensors."""
    try:
        weights = {name.removeprefix("host."): tensor for name, tensor in saved.model.items()}
        in_channels, size, num_classes = host_family(config).infer_sizes(config, weights, image_size=image_size)
        plain = dataclasses.replace(config, pretrained=False)
        host = build_host(plain, in_channels=in_channels, image_size=size, num_classes=num_classes)
        states = saved.state["growth"]["slots"]
        sites = find_sites(
            host,
            target_layers=config.target_layers if states else [],
            seeds_per_layer=len(saved.model),
            input_shape=(in_channels, size, size),
            kinds=SITE_KINDS,
        )
        model = MorphableModel(
            host, [site for site in sites if site.name in states], max_kernels_per_seed=config.max_kernels_per_seed
        )
        model.replay(saved.recipe)
        model.load_state_dict(dict(saved.model) | _averaged(saved, ema_decay))
        for slot in model.all_slots():
            slot.state = SeedLifecycleState(states[slot.site.name]["state"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit its run's config.yaml: {one_line(error)}") from None
    return model


def _averaged(saved: checkpoint.Snapshot, ema_decay: float | None) -> dict[str, Tensor]:
    """The averaged weights of a run that kept an average."""
    born = saved.state.get("average", {})
    if ema_decay is None:
        return {}
    sums = {name: saved.optimizer[f"average|{name}"] for name in born}
    return bias_corrected(sums, born, decay=ema_decay, step=saved.step)


def _description(config: ModelConfig, saved: checkpoint.Snapshot, network: nn.Module) -> dict[str, Any]:
    left = [graft for slot in network.modules() if isinstance(slot, SeedSlot) for graft in slot.grafts]
    return {
        "schema": SCHEMA,
        "source": config.source,
        "host": config.name,
        **host_family(config).describe(config, network),
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "step": saved.step,
        "recipe": [graft.entry() for graft in saved.recipe],
        "not_folded": [graft.entry() for graft in sorted(left, key=lambda graft: graft.graft_id)],
    }
