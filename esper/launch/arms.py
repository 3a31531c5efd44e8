"""The arms of a fair comparison whose budget or architecture is what the grown run made of it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from esper.configs import TolariaConfig
from esper.configs.comparison import wave
from esper.costs import training_macs
from esper.errors import ConfigError
from esper.tolaria.run_folder import RunFolder
from esper.tracking import read

__all__ = ["rehearsable", "settle"]


def settle(config: TolariaConfig, *, run_dir: Path, sibling: Callable[[str], Path] | None) -> TolariaConfig:
    """Give an arm what the grown run made of the same command: its recipe, and as many epochs as its budget buys.

    Epochs are rounded up, in favour of the arm that growing is compared with. The configuration that names the run
    stays the one without these figures, so that the same command finds the same folder.

    Args:
        config: the run's configuration as composed.
        run_dir: its folder.
        sibling: gives the folder of the run that the same command makes with another arm; None if there was no
            command, and the configuration must hold the figures already.

    Raises:
        ConfigError: a run that has to go before is not finished, or this one began with another grown run.
    """
    arm = config.comparison.arm
    if arm is None or wave(arm) == 0:
        return config
    if sibling is None:
        if config.comparison.grown_run is None:
            raise ConfigError(f'comparison.arm={arm}: only a command tells its grown run; use fit("arm={arm}", ...)')
        return config
    grown = sibling("grown")
    spent = _result(grown, arm=arm, needed="grown")
    epochs = config.optimization.max_epochs
    if arm == "final_seconds":
        timed = _result(sibling("final_flops"), arm=arm, needed="final_flops")
        epochs = math.ceil(spent["seconds"] * timed["epochs"] / timed["seconds"])
    elif arm != "final":
        macs_per_image = spent["num_macs_before" if arm == "static_flops" else "num_macs"]
        epochs = -(-spent["total_macs"] // training_macs(_images_per_epoch(grown, config), macs_per_image))
    growth = config.morphogenetic
    if growth.enable_tamiyo:
        growth = dataclasses.replace(growth, recipe_path=os.path.relpath(grown / "recipe.json"))
    settled = dataclasses.replace(
        config,
        optimization=dataclasses.replace(config.optimization, max_epochs=epochs),
        morphogenetic=growth,
        comparison=dataclasses.replace(config.comparison, grown_run=grown.name, grown_macs=spent["total_macs"]),
    )
    _refuse_another_beginning(settled, run_dir)
    return settled


def rehearsable(config: TolariaConfig) -> TolariaConfig:
    """The configuration for a dry run, which has no grown run to look at: the host stands in for what it will be."""
    if wave(config.comparison.arm) == 0 or not config.morphogenetic.enable_tamiyo:
        return config
    return dataclasses.replace(
        config,
        comparison=dataclasses.replace(config.comparison, arm=None),
        morphogenetic=dataclasses.replace(config.morphogenetic, policy="never"),
    )


def _result(run_dir: Path, *, arm: str, needed: str) -> dict[str, Any]:
    """The figures of a finished run."""
    status = RunFolder(run_dir).status()
    if status.get("status") != "finished":
        stands = f"is {status['status']}" if status else "is not there"
        raise ConfigError(
            f"comparison.arm={arm}: needs the run {run_dir.name}, which {stands}; finish the same command with "
            f"arm={needed} first"
        )
    result = status["result"]
    assert isinstance(result, dict)
    return result


def _images_per_epoch(run_dir: Path, config: TolariaConfig) -> int:
    """Images that one epoch trains on; the last incomplete batch is left out."""
    started = next(event for event in read(run_dir / "journal.jsonl") if event["kind"] == "run_started")
    return int(started["total_steps"]) // int(started["total_epochs"]) * config.dataset.batch_size


def _refuse_another_beginning(settled: TolariaConfig, run_dir: Path) -> None:
    """A run goes on, or shows its result, only with the figures it began with."""
    try:
        began = yaml.safe_load((run_dir / "config.yaml").read_text())
    except FileNotFoundError:
        return
    same = began["comparison"] == dataclasses.asdict(settled.comparison)
    if not settled.fresh and not (same and began["optimization"]["max_epochs"] == settled.optimization.max_epochs):
        raise ConfigError(
            f"comparison.arm={settled.comparison.arm}: {run_dir.name} began with another grown run than there is now; "
            "train it anew with fresh=true"
        )
