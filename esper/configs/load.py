"""Load a checked configuration from YAML or Hydra, and write it as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esper.configs.check import check
from esper.configs.explain import explain
from esper.configs.text import keep_yaml_text
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["from_hydra", "load_config", "to_yaml"]

# 271 bytes of nested aliases keep OmegaConf busy for more than 10 s, so limits are checked before it parses.
_MAX_BYTES = 256 * 1024
_MAX_ALIASES = 10
_MAX_DEPTH = 20

_PATHS = (
    ("model", "init_from"),
    ("dataset", "data_dir"),
    ("morphogenetic", "tamiyo_policy_path"),
    ("morphogenetic", "recipe_path"),
    ("logging", "log_dir"),
    ("checkpoint", "checkpoint_dir"),
    ("checkpoint", "resume_from"),
    ("storage", "compile_cache_dir"),
)


def load_config(path: str | Path, schema: type[TolariaConfig] = TolariaConfig) -> TolariaConfig:
    """Read a run's `config.yaml`, or any YAML file of settings; settings that it lacks have their defaults.

    Raises:
        ConfigError: the file is missing, too large or not YAML, or `check` refuses it.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a configuration in YAML") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_BYTES // 1024} KiB, too large for a configuration")
    try:
        text = content.decode()
        _refuse_bombs(text)
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        keep_yaml_text(settings, yaml.compose(text, Loader=yaml.SafeLoader))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise explain(error, where=str(path)) from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: contains no settings; write KEY: VALUE lines")
    return _build(settings, schema)


def from_hydra(cfg: DictConfig) -> TolariaConfig:
    """Convert and check the configuration that Hydra composed. Interpolations are resolved in memory only.

    Raises:
        ConfigError: a key is unknown (`+typo=1` passes Hydra), a type is wrong, or `check` refuses it.
    """
    settings = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(settings, dict)
    settings.pop("hydra", None)
    return _build(settings, TolariaConfig)


def to_yaml(config: TolariaConfig) -> str:
    """The whole configuration as YAML; `load_config` restores an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _build(settings: dict[Any, Any], schema: type[TolariaConfig]) -> TolariaConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error) from None
    assert isinstance(config, TolariaConfig)
    for group, name in _PATHS:
        value = getattr(getattr(config, group), name)
        if value is not None and value.startswith("~"):
            setattr(getattr(config, group), name, str(Path(value).expanduser()))
    check(config)
    return config


def _refuse_bombs(text: str) -> None:
    """Refuse alias bombs and deep nesting, by YAML events: nothing is expanded."""
    num_aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        num_aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if num_aliases > _MAX_ALIASES:
            raise ConfigError(f"more than {_MAX_ALIASES} aliases (*name); write the values out")
        if depth > _MAX_DEPTH:
            raise ConfigError(f"nested deeper than {_MAX_DEPTH} levels; settings need two")
