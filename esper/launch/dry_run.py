"""A dry run: build the run, train it for a few steps, grow a module, and leave nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from pathlib import Path

from esper.configs import TolariaConfig
from esper.configs.identity import outputs_folder
from esper.configs.paths import sqlite_url
from esper.tolaria import TolariaTrainer
from esper.tolaria.dry_run import DryRun

__all__ = ["dry_run"]


def dry_run(config: TolariaConfig, run_dir: Path) -> DryRun:
    """Dry-run a configuration.

    Args:
        config: the run's configuration.
        run_dir: the folder that the run would have; the default blueprint library is found from there.

    Raises:
        EsperError: bad input, or the steps failed.
    """
    outputs = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    library_url = config.database.url or sqlite_url(outputs / "urza.db")
    return asyncio.run(_dry_run(_isolated(config, library_url=library_url)))


async def _dry_run(config: TolariaConfig) -> DryRun:
    with tempfile.TemporaryDirectory(prefix="esper-dry-run-") as folder:
        trainer = TolariaTrainer(config, run_dir=Path(folder))
        try:
            await trainer.initialize()
            return await trainer.dry_run()
        finally:
            await trainer.shutdown()


def _isolated(config: TolariaConfig, *, library_url: str) -> TolariaConfig:
    """The configuration without what lies outside of the run: trackers, services, the grown run, folders."""
    growth, comparison = config.morphogenetic, config.comparison
    if comparison.arm is not None and growth.enable_tamiyo and growth.policy == "replay":
        # The recipe of the grown run may not exist yet, so the ungrown host is measured.
        comparison = dataclasses.replace(comparison, arm=None)
        growth = dataclasses.replace(growth, policy="never")
    if growth.tamiyo == "shared":
        # A dry run consults no policy, and the learned one may only exist at the service.
        policy = "heuristic" if growth.policy == "learned" else growth.policy
        growth = dataclasses.replace(growth, tamiyo="local", policy=policy)
    return dataclasses.replace(
        config,
        logging=dataclasses.replace(config.logging, log_dir=None),
        checkpoint=dataclasses.replace(config.checkpoint, checkpoint_dir=None, auto_resume=False),
        tracking=dataclasses.replace(config.tracking, name="none"),
        bus="memory",
        database=dataclasses.replace(config.database, url=library_url),
        morphogenetic=growth,
        comparison=comparison,
    )
