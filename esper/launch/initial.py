"""The network that a run starts from, checked before anything is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder
from esper.errors import ConfigError
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.checkpoints.initial import read_network
from esper.tolaria.run_folder import RunFolder, recorded_config

__all__ = ["resolve_initial"]


def resolve_initial(config: TolariaConfig, *, run_dir: Path) -> TolariaConfig:
    """Set the digest of the network in `model.init_from`.

    A run that has begun keeps the digest that it began with; once it has a checkpoint, the network may be gone.

    Raises:
        ConfigError: the network cannot be read, or is not the one with this digest.
    """
    model = config.model
    if model.init_from is None:
        return config
    expected = model.init_digest or (None if config.fresh else _began_with(run_dir))
    try:
        found = read_network(Path(model.init_from)).digest
    except ConfigError:
        folder = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
        is_finished = RunFolder(run_dir).status().get("status") == "finished"
        if expected is None or not (is_finished or find_checkpoints(folder)):
            raise
        found = expected
    if expected not in (None, found):
        raise ConfigError(
            f"model.init_from={model.init_from}: holds another network than when this run began (digest {found}, was "
            f"{expected}); restore it, or train anew with fresh=true"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, init_digest=found))


def _began_with(run_dir: Path) -> str | None:
    recorded = recorded_config(run_dir)
    digest = recorded["model"].get("init_digest") if recorded else None
    assert digest is None or isinstance(digest, str)
    return digest
