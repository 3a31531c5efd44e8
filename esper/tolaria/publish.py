"""Where a run is published: the bus, as another target of its journal."""

from __future__ import annotations

from pathlib import Path

from esper.configs import RedisConfig
from esper.oona.publish import RunOnBus
from esper.oona.redis import RedisBus, address
from esper.tracking import Tracker

__all__ = ["on_bus"]


def on_bus(config: RedisConfig, *, run_dir: Path) -> Tracker:
    """The bus as a target that a journal's follower, or `esper sync`, brings up to date."""
    return Tracker(
        name="Redis", place=address(config), open=lambda: RunOnBus(RedisBus(config), run_dir=run_dir.absolute())
    )
