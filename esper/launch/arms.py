"""The arms of a fair comparison whose budget or architecture comes from the finished grown run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper.configs import TolariaConfig
from esper.configs.comparison import ARMS, ArmInfo
from esper.configs.paths import mark
from esper.errors import ConfigError
from esper.tolaria.run_folder import RunFolder, recorded_config
from esper.tracking.liveness import read_status

__all__ = ["resolve_arm"]


def resolve_arm(config: TolariaConfig, *, run_dir: Path, sibling: Callable[[str], Path] | None) -> TolariaConfig:
    """Set the budget of an arm and the recipe that it replays, from the result of the grown run.

    The run's name comes from the configuration before it is resolved, so that the same command finds the same folder.
    A run that has begun keeps its budget.

    Args:
        config: the run's configuration as composed.
        run_dir: the run folder.
        sibling: gives the folder of the run that the same command makes with another arm; None without a command, and
            then the configuration must be resolved already.

    Raises:
        ConfigError: a run that this arm depends on has not finished, or this run began with another grown run.
    """
    name = config.comparison.arm
    if name is None or not ARMS[name].after:
        return config
    arm, began = ARMS[name], None if config.fresh else recorded_config(run_dir)
    has_epochs = config.optimization.max_macs is None and config.morphogenetic.schedule_by == "steps"
    if arm.budget == "epochs" and arm.policy is None and has_epochs:
        return config  # as many epochs as are configured
    if began is not None and began["comparison"]["grown_run"] is None:
        return config  # of version 0.1.0, which gave scheduled and random as many epochs as grown
    if sibling is None:
        if config.comparison.grown_run is None:
            raise ConfigError(
                f'comparison.arm={name}: without overrides its grown run is unknown; use fit("arm={name}", ...)'
            )
        return config
    results = {other: _result(sibling(other), arm=name, needed=other) for other in arm.after}
    grown, folder = results["grown"], sibling("grown")
    comparison = dataclasses.replace(config.comparison, grown_run=folder.name, grown_macs=grown["total_macs"])
    optimization, growth, model = config.optimization, config.morphogenetic, config.model
    if arm.policy == "replay":
        growth = dataclasses.replace(growth, recipe_path=mark(os.path.relpath(folder / "recipe.json"), Path.cwd()))
        model = dataclasses.replace(model, init_from=None)  # from scratch
    if began is not None:
        if began["comparison"] != dataclasses.asdict(comparison):
            raise ConfigError(
                f"comparison.arm={name}: {run_dir.name} was started with a different grown run; retrain it with "
                "fresh=true"
            )
        kept = began["optimization"]
        optimization = dataclasses.replace(optimization, max_epochs=kept["max_epochs"], max_macs=kept.get("max_macs"))
    elif arm.budget == "epochs":
        optimization = dataclasses.replace(optimization, max_epochs=grown["epochs"], max_macs=None)
    else:
        optimization = dataclasses.replace(optimization, max_macs=_budget_macs(arm, results))
    if arm.grows and optimization.max_macs is not None:
        growth = dataclasses.replace(growth, schedule_by="compute")
    return dataclasses.replace(
        config, optimization=optimization, morphogenetic=growth, model=model, comparison=comparison
    )


def _budget_macs(arm: ArmInfo, results: Mapping[str, Mapping[str, Any]]) -> float:
    """MACs that the arm may spend; `results`: of the arms that it depends on."""
    grown = results["grown"]
    if arm.budget == "compute":
        return float(grown["total_macs"])
    timed = results["final_flops"]
    return float(grown["seconds"] * timed["total_macs"] / timed["seconds"])


def _result(run_dir: Path, *, arm: str, needed: str) -> dict[str, Any]:
    """The result of a run that the arm depends on."""
    status = RunFolder(run_dir).status()
    if status.get("status") != "finished":
        shown, reason = read_status(run_dir)
        state = f"is {shown}" + (f" ({reason})" if shown == "killed" else "") if shown else "does not exist"
        raise ConfigError(
            f"comparison.arm={arm}: needs the run {run_dir.name}, which {state}; finish the same command with "
            f"arm={needed} first"
        )
    result = status["result"]
    assert isinstance(result, dict)
    return result
