"""Load a checked configuration from YAML or Hydra, and write it as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esper.configs.check import check
from esper.configs.explain import explain
from esper.configs.implied import following, unset
from esper.configs.paths import absolute_paths
from esper.configs.recorded import as_written, recorded, remember
from esper.configs.text import keep_yaml_text
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["from_hydra", "load_config", "read_yaml", "to_yaml"]

# 271 bytes of nested aliases keep OmegaConf busy for more than 10 s, so limits are checked before it parses.
_MAX_BYTES = 256 * 1024
_MAX_ALIASES = 10
_MAX_INTERPOLATIONS = 16
_MAX_DEPTH = 20


def load_config(
    path: str | Path, schema: type[TolariaConfig] = TolariaConfig, *, may_import: bool = False
) -> TolariaConfig:
    """Read a run's `config.yaml`, or any YAML file of settings; settings that it lacks have their defaults.

    Relative paths in it start in the working directory; a run's own are absolute.

    Args:
        path: the file.
        schema: what it holds.
        may_import: import the modules that it names in `plugins`, code that then runs; otherwise they are refused.

    Raises:
        ConfigError: the file is missing, too large or not YAML, or `check` refuses it.
    """
    text = read_yaml(path)
    try:
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        keep_yaml_text(settings, yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise explain(error, where=str(path)) from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: contains no settings; write KEY: VALUE lines")
    if settings.get("plugins") and not may_import:
        raise ConfigError(
            f"{path}: plugins={settings['plugins']}: names code; read the file, then load_config(…, may_import=True)"
        )
    return _build(settings, schema)


def read_yaml(path: str | Path) -> str:
    """The text of a YAML file that is safe to parse: neither large nor nested deeply, and it does not expand much.

    Raises:
        ConfigError: it is not, or it cannot be read.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is not a file; give a configuration in YAML")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a configuration in YAML") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_BYTES // 1024} KiB, too large for a configuration")
    try:
        text = content.decode()
        _refuse_bombs(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise explain(error, where=str(path)) from None
    return text


def from_hydra(cfg: DictConfig, *, folder: str | None = None) -> TolariaConfig:
    """Convert and check the configuration that Hydra composed. Interpolations are resolved in memory only.

    Relative paths start in `folder`, by default the one of Hydra's command.

    Raises:
        ConfigError: a key is unknown (`+typo=1` passes Hydra), a type is wrong, or `check` refuses it.
    """
    settings = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(settings, dict)
    settings.pop("hydra", None)
    # With hydra.job.chdir=true, the job works in its run folder.
    return _build(settings, TolariaConfig, folder or OmegaConf.select(cfg, "hydra.runtime.cwd"))


def to_yaml(config: TolariaConfig) -> str:
    """The whole configuration as YAML, with `${oc.env:NAME}` as it was written; `load_config` restores an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(recorded(config)))


def _build(settings: dict[Any, Any], schema: type[TolariaConfig], folder: str | None = None) -> TolariaConfig:
    try:
        return _checked(settings, schema, folder)
    except ConfigError as error:
        raise ConfigError(as_written(str(error), settings)) from None


def _checked(settings: dict[Any, Any], schema: type[TolariaConfig], folder: str | None) -> TolariaConfig:
    defaults = unset(settings)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error) from None
    assert isinstance(config, TolariaConfig)
    config = following(absolute_paths(config, folder), defaults)
    remember(OmegaConf.to_container(merged, resolve=False), config, folder)
    check(config)
    return config


def _refuse_bombs(text: str) -> None:
    """Refuse bombs of aliases or interpolations, and deep nesting, by YAML events: nothing is expanded."""
    num_aliases = num_interpolations = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        num_aliases += isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.ScalarEvent):
            num_interpolations += event.value.count("${")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if num_aliases > _MAX_ALIASES:
            raise ConfigError(f"more than {_MAX_ALIASES} aliases (*name); write the values out")
        if num_interpolations > _MAX_INTERPOLATIONS:
            raise ConfigError(f"more than {_MAX_INTERPOLATIONS} interpolations (${{…}}); write the values out")
        if depth > _MAX_DEPTH:
            raise ConfigError(f"nested deeper than {_MAX_DEPTH} levels; settings need two")
