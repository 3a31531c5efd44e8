"""From weights to a plain network: build the host, grow what it had grown, fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch

from esper.configs import ModelConfig
from esper.configs.model import SITE_KINDS
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.kasmina import MorphableModel, find_sites
from esper.models import build_host, memory_format
from esper.tolaria.checkpoints.contents import rebuild

__all__ = ["rebuilt"]


def rebuilt(
    config: ModelConfig, spec: DataSpec, *, sites: Collection[str], recipe: Sequence[Graft], channels_last: bool
) -> MorphableModel:
    """A grown network whose weights are to be loaded; torch's random state stays as it is.

    Args:
        config: the host.
        spec: what it was built for.
        sites: names of those that are to have a slot.
        recipe: what grew in it.
        channels_last: as the setting of that name.

    Raises:
        ConfigError: the host cannot be built.
        CheckpointError: the recipe does not fit it.
        KeyError, RuntimeError: nor do the sites.
    """
    # Without gradients, so that weights which hooks compute, as of `nn.utils.weight_norm`, can be copied.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        host = build_host(dataclasses.replace(config, pretrained=False), spec)
        host = host.to(memory_format=memory_format(host, channels_last=channels_last, device=torch.device("cpu")))
        found = find_sites(
            host,
            target_layers=config.target_layers if sites else [],
            seeds_per_layer=10**6,
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
            kinds=SITE_KINDS,
        )
        model = MorphableModel(
            host,
            [site for site in found if site.name in sites],
            max_kernels_per_seed=config.max_kernels_per_seed,
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
        )
        rebuild(model, recipe)
    return model
