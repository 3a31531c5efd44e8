"""`morphogenetic=planned`: what `esper plan` decided, taken into a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder, family
from esper.errors import ConfigError, RunError
from esper.files import read_json
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.run_folder import recorded_config

__all__ = ["Decision", "resolve_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a plan says is to be trained.

    Attributes:
        family: of the trainings that it chose between, see `configs.identity.family`.
        overrides: that it was made for.
        fraction: of what grows that the network has from the first step: 0 the host, 1 the final network.
        share: of the compute at which the host grows; None: it does not.
        recipe: name of the recipe's file, beside the plan.
        max_macs: the budget of the run.
        reason: why.
        trunk: checkpoint of a pilot that trained the same until then, as seen from the plan's folder; None: without.
        seed: `rng_seed` of that pilot.
    """

    family: str
    overrides: tuple[str, ...]
    fraction: float
    share: float | None
    recipe: str
    max_macs: float
    reason: str
    trunk: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlanFile:
    decision: Decision


_SCHEMA = TypeAdapter(_PlanFile)
_DECIDED = ("enable_tamiyo", "policy", "schedule_by", "schedule_at", "recipe_path", "recipe_fraction", "plan_reason")


def resolve_plan(config: TolariaConfig, *, run_dir: Path) -> TolariaConfig:
    """Set what the plan in `morphogenetic.plan_path` decided: whether, what and when to grow, and the budget.

    With the seed and budget of the plan, the run goes on from the trunk of a pilot, which trained the same until then.
    A run that has begun keeps the decision that it began with, whatever the plan says now; until it has a checkpoint of
    its own, the trunk too.

    Raises:
        ConfigError: the plan cannot be read, or was made for other settings.
    """
    growth, optimization = config.morphogenetic, config.optimization
    if not growth.enable_tamiyo or growth.policy != "planned":
        return config
    checkpoint, trunk = config.checkpoint, None
    began = None if config.fresh else recorded_config(run_dir)
    if began is not None and began["morphogenetic"].get("plan_reason"):
        decided: dict[str, Any] = {name: began["morphogenetic"][name] for name in _DECIDED}
        max_macs = began["optimization"]["max_macs"]
        if not find_checkpoints(checkpoints_folder(run_dir, checkpoint_dir=checkpoint.checkpoint_dir)):
            trunk = began["checkpoint"]["resume_from"]
    else:
        decision, folder = _read(config), Path(growth.plan_path or "").parent
        decided = {"plan_reason": decision.reason, "schedule_by": "compute"}
        if decision.share is not None:
            decided |= {"policy": "stack", "schedule_at": [decision.share]}
        elif decision.fraction:
            recipe = {"recipe_path": str(folder / decision.recipe), "recipe_fraction": decision.fraction}
            decided |= {"policy": "replay", **recipe}
        else:
            decided |= {"policy": "never", "enable_tamiyo": False}
        max_macs = optimization.max_macs or decision.max_macs
        if decision.trunk is not None and (config.rng_seed, max_macs) == (decision.seed, decision.max_macs):
            trunk = str(folder / decision.trunk)
    if checkpoint.resume_from is None and trunk is not None and Path(trunk).is_dir():
        checkpoint = dataclasses.replace(checkpoint, resume_from=trunk)
    return dataclasses.replace(
        config,
        morphogenetic=dataclasses.replace(growth, **decided),
        optimization=dataclasses.replace(optimization, max_macs=max_macs),
        checkpoint=checkpoint,
    )


def _read(config: TolariaConfig) -> Decision:
    where = f"morphogenetic.plan_path={config.morphogenetic.plan_path}"
    try:
        decision = read_json(Path(config.morphogenetic.plan_path or ""), _SCHEMA).decision
    except (RunError, FileNotFoundError) as error:
        raise ConfigError(f"{where}: {error}; give the plan.json that esper plan wrote") from None
    if decision.family != family(dataclasses.asdict(config)):
        raise ConfigError(
            f"{where}: was made for another host, recipe or dataset ({' '.join(decision.overrides)}); give the same "
            "settings, or make a plan for these"
        )
    return decision
