"""Compose the configuration with Hydra, inside and outside its own command."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.implied import IMPLIED, marker
from esper.configs.load import from_hydra
from esper.configs.text import quote_text
from esper.configs.tolaria import TolariaConfig
from esper.configs.trust import guarded_files

__all__ = ["BAD_INPUT", "compose", "conf_folder", "own_hydra", "register"]

BAD_INPUT = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""Errors of Hydra that a user's mistake causes; `explain` turns them into one line."""


_lock = threading.RLock()


@contextlib.contextmanager
def own_hydra() -> Iterator[None]:
    """Context manager: this thread alone uses Hydra, whose state is global, and what an application set there stays."""
    kinds: tuple[type, ...] = (GlobalHydra, JobRuntime, VersionBase)
    with _lock:
        others = {kind: Singleton._instances.pop(kind) for kind in kinds if kind in Singleton._instances}
        try:
            yield
        finally:
            for kind in kinds:
                Singleton._instances.pop(kind, None)
            Singleton._instances.update(others)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `esper-train` would compose, including the group `hydra`.

    Raises:
        ConfigError: the overrides cannot be used.
    """
    register()
    try:
        with (
            own_hydra(),
            guarded_files(conf_folder()),
            initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="esper"),
        ):
            return hydra_compose("config", overrides=quote_text(overrides), return_hydra_config=True)
    except BAD_INPUT as error:
        raise explain(error) from None


def register() -> None:
    """Register the schema with Hydra, and the resolvers `${esper.…}` with OmegaConf."""
    schema = OmegaConf.structured(TolariaConfig)
    OmegaConf.set_struct(schema.optimization.optimizer_options, False)  # takes names that it does not have yet
    for options in (schema.model.options, schema.dataset.options):
        OmegaConf.set_struct(options, False)  # takes any key, without a `+` before it
    for key in IMPLIED:
        OmegaConf.update(schema, key, marker(key))
    ConfigStore.instance().store(name="tolaria_schema", node=schema)
    OmegaConf.register_new_resolver("esper.run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("esper.implied", _implied, replace=True)
    OmegaConf.register_new_resolver("esper.all_stages", _all_stages, replace=True)


def conf_folder() -> Path:
    """Folder of the YAML groups: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def _implied(key: str, default: Any, *, _root_: DictConfig) -> Any:
    if "hydra" in _root_ and OmegaConf.is_missing(_root_.hydra.runtime, "version"):
        return default  # Hydra is still composing, and only asks whether a group stands there
    return attrgetter(key)(from_hydra(_root_))


def _all_stages(*, _root_: DictConfig) -> list[str]:
    """Names of the stages that a resnet_small of these widths has."""
    return [f"layer{number}" for number, _ in enumerate(_root_.model.widths, start=1)]


def _run_name(*, _root_: DictConfig) -> str:
    return run_name(from_hydra(_root_), _root_.hydra.overrides.task)
