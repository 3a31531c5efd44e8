"""Defaults that follow other settings: where nobody has set them, they move instead of contradicting what somebody set.

The schema that Hydra composes from has `${esper.implied:KEY,DEFAULT}` in place of these defaults, so that a value that
a preset or the command line gives is told from the default, even if it is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from operator import attrgetter
from typing import Any

from esper.configs.optimization import OptimizationConfig
from esper.configs.tolaria import TolariaConfig

__all__ = ["IMPLIED", "following", "latest_growth", "marker", "unset"]

IMPLIED = ("optimization.warmup_epochs", "morphogenetic.schedule_by", "morphogenetic.growth_until", "bus")
"""Settings whose defaults follow, in this order, where `check` would refuse them: other runs keep their names."""
_WARMUP_SHARE = 0.1


def marker(key: str) -> str:
    """What stands for the default of a setting in the schema."""
    return f"${{esper.implied:{key},{attrgetter(key)(TolariaConfig())}}}"


def unset(settings: dict[Any, Any]) -> list[str]:
    """The settings among `IMPLIED` that nobody has set; they are removed, so that the defaults hold."""
    found = []
    for key in IMPLIED:
        group, _, name = key.rpartition(".")
        holder = settings.get(group, {}) if group else settings
        if isinstance(holder, dict) and holder.get(name, marker(key)) == marker(key):
            holder.pop(name, None)
            found.append(key)
    return found


def following(config: TolariaConfig, unset: Collection[str]) -> TolariaConfig:
    """The configuration in which defaults follow; `adjusted` says which, and why.

    Args:
        config: a configuration that is not checked yet.
        unset: the settings that nobody has set.
    """
    adjusted = list(config.adjusted)
    for key in IMPLIED:
        for value, reason in _implied(key, config) if key in unset else ():
            default = attrgetter(key)(config)
            adjusted.append(f"{key}={_text(value)} (default {_text(default)}), since {reason}")
            group, _, name = key.rpartition(".")
            if group:
                config = dataclasses.replace(config, **{group: _replaced(getattr(config, group), name, value)})
            else:
                config = _replaced(config, name, value)
    return dataclasses.replace(config, adjusted=adjusted)


def latest_growth(recipe: OptimizationConfig) -> float:
    """The largest fraction of training at which the learning rate is high enough for what grows."""
    return {"wsd": 1 - recipe.decay_fraction, "cosine": 0.5, "linear": 0.5, "constant": 1.0}[recipe.scheduler]


def _implied(key: str, config: TolariaConfig) -> Iterator[tuple[Any, str]]:
    """The value that a default has to follow to, and the reason; nothing if it can stay."""
    recipe, growth = config.optimization, config.morphogenetic
    grows = growth.enable_tamiyo and growth.policy not in ("never", "replay")
    match key:
        case "optimization.warmup_epochs" if recipe.max_macs is None and recipe.warmup_epochs >= recipe.max_epochs:
            yield _WARMUP_SHARE * recipe.max_epochs, f"optimization.max_epochs={recipe.max_epochs}"
        case "morphogenetic.schedule_by" if grows and recipe.max_macs is not None and growth.schedule_by == "steps":
            yield "compute", f"optimization.max_macs={recipe.max_macs:g}"
        case "morphogenetic.growth_until" if grows and recipe.scheduler in ("wsd", "cosine", "linear", "constant"):
            latest = latest_growth(recipe)
            times = growth.schedule_at if growth.follows_schedule else []
            is_wsd = recipe.scheduler == "wsd"
            decay = f"decay_fraction={recipe.decay_fraction:g}" if is_wsd else f"scheduler={recipe.scheduler}"
            if growth.growth_until > latest + 1e-9:
                yield latest, f"optimization.{decay}"
            elif late := [at for at in times if growth.growth_until < at <= latest]:
                yield latest, f"morphogenetic.schedule_at={late}"
            elif growth.growth_until <= growth.growth_from < latest:
                yield latest, f"morphogenetic.growth_from={growth.growth_from:g}"
        case "bus" if grows and growth.tamiyo == "shared" and config.bus == "memory":
            yield "redis", "morphogenetic.tamiyo=shared"


def _replaced(holder: Any, name: str, value: Any) -> Any:
    return dataclasses.replace(holder, **{name: value})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
