"""All blueprints: the table of those built in, and those declared in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from esper import plugins
from esper.configs import MorphogeneticConfig
from esper.configs.explain import nearest
from esper.errors import ConfigError
from esper.urza import attention, copied, definition, foldable, normalization, residual, tokens, width
from esper.urza.kernel import Blueprint, Shape

__all__ = ["CATALOGUE", "allowed", "declare", "get"]

CATALOGUE: Mapping[str, Blueprint] = MappingProxyType(
    {
        blueprint.blueprint_id: blueprint
        for blueprint in (
            residual.basic_block,
            residual.residual_block,
            residual.bottleneck,
            residual.depthwise,
            residual.conv1x1,
            foldable.fold_asymmetric,
            foldable.fold_3x3,
            foldable.fold_1x1,
            width.widen,
            tokens.mlp,
            tokens.self_attention,
            attention.spatial_self_attention,
            attention.squeeze_excite,
            attention.efficient_channel,
            normalization.group_norm,
            normalization.layer_scale,
            copied.copy,
        )
    }
)
"""The built-in blueprints by name. To add one, decorate its builder with `@blueprint` and list it here."""

# Entries never change: an id contains the hash of its content.
_declared: dict[str, Blueprint] = {}


def declare(text: str | bytes, *, where: str = "blueprint") -> Blueprint:
    """Register a definition in this process, under its id (`name@hash`); see `esper.urza.definition`.

    Raises:
        ConfigError: it is invalid, or has the name of a built-in blueprint.
    """
    parsed = definition.parse(text, where=where)
    if parsed.name in CATALOGUE:
        raise ConfigError(f"{where}: name={parsed.name}: a built-in blueprint has this name; choose another")
    return _declared.setdefault(parsed.blueprint_id, parsed.blueprint())


def get(blueprint_id: str) -> Blueprint:
    """Look up a built-in blueprint by its name, a declared one by its id, or one of a plugin by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {**CATALOGUE, **_declared}
    if blueprint_id in known:
        return known[blueprint_id]
    own = plugins.find("blueprint", blueprint_id)  # last: it reads installed packages
    if isinstance(own, Blueprint):
        return dataclasses.replace(own, blueprint_id=blueprint_id)
    if own is not None:
        raise ConfigError(f"blueprint {blueprint_id!r}: is a {type(own).__name__}; register an esper.urza.Blueprint")
    raise ConfigError(f"no blueprint {blueprint_id!r}{nearest(blueprint_id, list(known))} (known: {', '.join(known)})")


def allowed(config: MorphogeneticConfig, kind: str, in_shape: Shape, out_shape: Shape) -> list[Blueprint]:
    """The blueprints that the settings allow at a site of a kind, the preferred first.

    Earlier categories of `blueprint_categories` are preferred; within a category, the more complex blueprint.
    """
    categories = config.blueprint_categories
    candidates = [
        blueprint
        for blueprint in (*CATALOGUE.values(), *map(get, config.library))
        if blueprint.category in categories
        and blueprint.complexity <= config.max_blueprint_complexity
        and config.blueprint in (None, blueprint.blueprint_id)
        and blueprint.fits(kind, in_shape, out_shape)
    ]
    return sorted(candidates, key=lambda b: (categories.index(b.category), -b.complexity, b.blueprint_id))
