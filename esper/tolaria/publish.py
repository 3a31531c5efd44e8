"""The bus as a tracker, beside MLflow and W&B."""

from __future__ import annotations

from pathlib import Path

from esper.configs import RedisConfig
from esper.oona.publish import RunPublisher
from esper.oona.redis import RedisBus, address
from esper.tracking import Tracker

__all__ = ["on_bus"]


def on_bus(config: RedisConfig, *, run_dir: Path) -> Tracker:
    """The bus as a tracker of a run."""
    return Tracker(
        name="Redis", place=address(config), open=lambda: RunPublisher(RedisBus(config), run_dir=run_dir.absolute())
    )
