"""Refuse settings under which blocks of a network cannot be copied, before anything is trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import nn

from esper.configs import ModelConfig, MorphogeneticConfig
from esper.errors import ConfigError, SurgeryError
from esper.kasmina.blocks import AUTO, find_blocks, is_container
from esper.kasmina.copies import copy_blocks, stages
from esper.kasmina.model import MorphableModel
from esper.kasmina.sites import Site

__all__ = ["require_copyable"]

_OTHER_PRESETS = {"resnet10": "morphogenetic=depth (grows it into a resnet18), "}


def require_copyable(model: MorphableModel, *, host: ModelConfig, growth: MorphogeneticConfig) -> None:
    """Check that the policy can copy stages of a network, and each as a whole.

    Raises:
        ConfigError: it cannot.
    """
    _require_whole_stages(model, host)
    _require_stages(model, host, growth.policy)
    if growth.copy_init == "zeroed":
        _require_zeroable(model)


def _require_whole_stages(model: MorphableModel, host: ModelConfig) -> None:
    """Refuse settings that leave a block out of a stage that is to be copied."""
    targeted = find_blocks(model.host, host.target_layers)
    blocks = [site.block for sites in stages(model) for site in sites]
    layers = [slot.site.layer for slot in model.all_slots()]
    for block, layer in targeted.items():
        if block not in blocks and layers.count(layer) >= host.seeds_per_layer:
            raise ConfigError(
                f"model.seeds_per_layer={host.seeds_per_layer}: whole stages are copied, but no site is left for "
                f"{block}; set it to 64, and model.site_kinds=[after]"
            )
    if host.target_layers == [AUTO]:
        return
    for stage in dict.fromkeys(block.rpartition(".")[0] for block in blocks):
        container = model.host.get_submodule(stage)
        if not stage or not is_container(container):
            continue
        if missing := [name for name, _ in container.named_children() if f"{stage}.{name}" not in targeted]:
            raise ConfigError(
                f"model.target_layers={host.target_layers}: whole stages are copied, but {stage}.{missing[0]} is "
                f"not named; name the stage, {stage}"
            )


def _require_stages(model: MorphableModel, host: ModelConfig, policy: str) -> None:
    """Refuse a network without the stages that the policy copies."""
    if host.target_layers == [AUTO] and all(_is_layer(model, site) for sites in stages(model) for site in sites):
        raise ConfigError(
            f"morphogenetic.policy={policy}: found single layers, no blocks of several ({_some_blocks(model)}), and a "
            "layer and its copy would be one linear map; make modules of what repeats, with activations; name blocks "
            "in model.target_layers; or use morphogenetic=heuristic (grows new modules) or morphogenetic=off"
        )
    found: dict[bool, list[str]] = {True: [], False: []}
    for sites in stages(model):
        can_be_copied = any(site.keeps_shape for site in sites)
        if can_be_copied or host.target_layers != [AUTO] or not _is_apart(model, sites):
            found[can_be_copied].append(_container(sites))
    copyable, alone = found[True], found[False]
    if alone and (policy == "stack" or not copyable):
        stage = alone[0] or "the network"
        raise ConfigError(
            f"morphogenetic.policy={policy}: no block of {stage} has an output shaped like its input, so none can "
            f"be copied; start from two blocks a stage ({_two_blocks_a_stage(host, copyable, alone)}), or use "
            f"{_OTHER_PRESETS.get(host.name, '')}morphogenetic=heuristic (grows new modules) or morphogenetic=off"
        )
    if policy == "heuristic" and len(copyable) == 1:
        raise ConfigError(
            "morphogenetic.policy=heuristic: chooses among stages, but one alone can be copied; name more in "
            "model.target_layers, or use policy=stack"
        )


def _is_apart(model: MorphableModel, sites: Sequence[Site]) -> bool:
    """Whether blocks of a container of others that can be copied are no stage of their own.

    They are a stem or head if they are at its ends or no other has their class, and lead from one stage to the next if
    one that can be copied has it.
    """
    blocks = dict(model.host.get_submodule(_container(sites)).named_children())
    kinds, ends = [type(block) for block in blocks.values()], [*blocks][:1] + [*blocks][-1:]
    others = [site for stage in stages(model) if _container(stage) == _container(sites) for site in stage]
    copyable = {type(model.host.get_submodule(site.block)) for site in others if site.keeps_shape}
    names = [site.block.rpartition(".")[2] for site in sites if not site.keeps_shape]
    return bool(copyable) and all(
        name in ends or type(blocks[name]) in copyable or kinds.count(type(blocks[name])) == 1 for name in names
    )


def _is_layer(model: MorphableModel, site: Site) -> bool:
    return isinstance(model.host.get_submodule(site.block), nn.Linear | nn.Conv2d)


def _some_blocks(model: MorphableModel) -> str:
    names = [site.block for sites in stages(model) for site in sites]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _container(stage: Sequence[Site]) -> str:
    return stage[0].block.rpartition(".")[0]


def _require_zeroable(model: MorphableModel) -> None:
    """Refuse a network with a block whose copy changes the output although its last norm is 0."""
    for site in (site for sites in stages(model) for site in sites if site.keeps_shape):
        x = torch.linspace(0.0, 1.0, math.prod(site.out_shape)).reshape(1, *site.out_shape)
        with contextlib.suppress(SurgeryError), torch.no_grad():  # raised if it has no last norm, as transformers
            kernel = copy_blocks(model, [site.block], init="zeroed", init_seed=0)
            x = x.to(next(p for p in kernel.parameters() if p.is_floating_point()))
            if torch.equal(kernel.eval().combine(x, x), x):
                continue
        raise ConfigError(
            f"morphogenetic.copy_init=zeroed: {site.block} has no last batch norm that makes it return its input when "
            "it is 0; use copy_init=trained"
        )


def _two_blocks_a_stage(host: ModelConfig, copyable: Sequence[str], alone: Sequence[str]) -> str:
    if host.name == "resnet10":
        return "model=resnet18"
    if host.name == "resnet_small":
        return f"model.depths=[{','.join(str(max(2, depth)) for depth in host.depths)}]"
    named = ",".join(f"{stage}.*" for stage in dict.fromkeys(copyable) if stage and stage not in alone)
    where = "in your network" if host.source == "plugin" else "another model.name"
    return where + (f", or model.target_layers=[{named}]" if named else "")
