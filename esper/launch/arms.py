"""The arms of a fair comparison whose budget or architecture comes from the finished grown run."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from esper.configs import TolariaConfig
from esper.configs.comparison import dependency_level
from esper.costs import training_macs
from esper.errors import ConfigError
from esper.tolaria.run_folder import RunFolder
from esper.tracking import read

__all__ = ["resolve_arm"]


def resolve_arm(config: TolariaConfig, *, run_dir: Path, sibling: Callable[[str], Path] | None) -> TolariaConfig:
    """Set the epochs that an arm's budget buys and the recipe that it replays, from the result of the grown run.

    Epochs are rounded up, in favour of the arm that growing is compared with. The run's name comes from the
    configuration before it is resolved, so that the same command finds the same folder.

    Args:
        config: the run's configuration as composed.
        run_dir: the run folder.
        sibling: gives the folder of the run that the same command makes with another arm; None without a command, and
            then the configuration must be resolved already.

    Raises:
        ConfigError: a run that this arm depends on has not finished, or this run began with another grown run.
    """
    arm = config.comparison.arm
    if arm is None or dependency_level(arm) == 0:
        return config
    if sibling is None:
        if config.comparison.grown_run is None:
            raise ConfigError(
                f'comparison.arm={arm}: without overrides its grown run is unknown; use fit("arm={arm}", ...)'
            )
        return config
    grown = sibling("grown")
    grown_result = _result(grown, arm=arm, needed="grown")
    epochs = config.optimization.max_epochs
    if arm == "final_seconds":
        timed = _result(sibling("final_flops"), arm=arm, needed="final_flops")
        epochs = math.ceil(grown_result["seconds"] * timed["epochs"] / timed["seconds"])
    elif arm != "final":
        macs_per_image = grown_result["num_macs_before" if arm == "static_flops" else "num_macs"]
        epochs = -(-grown_result["total_macs"] // training_macs(_images_per_epoch(grown, config), macs_per_image))
    growth, model = config.morphogenetic, config.model
    if growth.enable_tamiyo:
        growth = dataclasses.replace(growth, recipe_path=os.path.relpath(grown / "recipe.json"))
        model = dataclasses.replace(model, init_from=None)  # from scratch
    resolved = dataclasses.replace(
        config,
        optimization=dataclasses.replace(config.optimization, max_epochs=epochs),
        morphogenetic=growth,
        model=model,
        comparison=dataclasses.replace(config.comparison, grown_run=grown.name, grown_macs=grown_result["total_macs"]),
    )
    _require_same_budget(resolved, run_dir)
    return resolved


def _result(run_dir: Path, *, arm: str, needed: str) -> dict[str, Any]:
    """The result of a run that the arm depends on."""
    status = RunFolder(run_dir).status()
    if status.get("status") != "finished":
        state = f"is {status['status']}" if status else "does not exist"
        raise ConfigError(
            f"comparison.arm={arm}: needs the run {run_dir.name}, which {state}; finish the same command with "
            f"arm={needed} first"
        )
    result = status["result"]
    assert isinstance(result, dict)
    return result


def _images_per_epoch(run_dir: Path, config: TolariaConfig) -> int:
    """Images that one epoch trains on, without the last incomplete batch."""
    started = next(event for event in read(run_dir / "journal.jsonl") if event["kind"] == "run_started")
    return int(started["total_steps"]) // int(started["total_epochs"]) * config.dataset.batch_size


def _require_same_budget(resolved: TolariaConfig, run_dir: Path) -> None:
    """Refuse to resume a run, or to show its result, if it began with another grown run or budget."""
    try:
        began = yaml.safe_load((run_dir / "config.yaml").read_text())
    except FileNotFoundError:
        return
    is_same = began["comparison"] == dataclasses.asdict(resolved.comparison)
    is_same = is_same and began["optimization"]["max_epochs"] == resolved.optimization.max_epochs
    if not resolved.fresh and not is_same:
        raise ConfigError(
            f"comparison.arm={resolved.comparison.arm}: {run_dir.name} was started with a different grown run or "
            "budget; retrain it with fresh=true"
        )
