"""What can be told of a run before its data are read: whether network and optimizer have what settings name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from esper.configs import DatasetConfig, TolariaConfig
from esper.configs.dataset import DATASETS
from esper.data import DataSpec
from esper.kasmina import find_blocks
from esper.launch.initial import resolve_initial
from esper.models import build_host, freeze, timm_host
from esper.tolaria.optim import build_optimizer

__all__ = ["check_network"]

_NUM_OUTPUTS = 256
"""No layer is named after them."""


def check_network(config: TolariaConfig, *, run_dir: Path, earlier: Sequence[Path] = ()) -> None:
    """Look for the layers in `model.target_layers`, the parameters in `model.freeze` and the optimizer's options.

    Also for the network in `model.init_from`, without which only a run that has begun can go on. The network has no
    weights: its parameters are on the meta device. Of timm's networks only the names are looked up; those of plugins,
    and of data whose shape is not known beforehand, are left to the run.

    Args:
        config: of the run.
        run_dir: its folder.
        earlier: folders of runs that end before it begins, from which it may start.

    Raises:
        ConfigError: there is no such layer, parameter, option or network.
    """
    start = Path(config.model.init_from or "").resolve()
    if not any(start.is_relative_to(folder.resolve()) for folder in earlier):
        resolve_initial(config, run_dir=run_dir)
    model, spec = config.model, _spec(config.dataset)
    if model.source == "timm":
        timm_host.require_known(model.name)
    if model.source in ("timm", "plugin") or spec is None:
        return
    with torch.device("meta"):
        host = build_host(dataclasses.replace(model, pretrained=False), spec)
    freeze(host, model.freeze)
    if config.morphogenetic.enable_tamiyo:
        find_blocks(host, model.target_layers)
    build_optimizer(config.optimization, host)


def _spec(config: DatasetConfig) -> DataSpec | None:
    """What the data are like, as far as layers depend on it; None if that is unknown."""
    info = DATASETS[config.name]
    if info.is_text:
        return DataSpec(inputs=(config.context,), dtype=torch.int64, num_outputs=_NUM_OUTPUTS)
    size = config.image_size or info.image_size
    if size is None or config.name in ("arrays", "plugin"):
        return None
    return DataSpec(inputs=(3, size, size), num_outputs=_NUM_OUTPUTS)
