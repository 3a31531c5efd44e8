"""What a preset may do: YAML from elsewhere is read within limits, and names no code but Esper's and Hydra's plugins.

Hydra imports and calls what `_target_` names in callbacks, launcher and sweeper, and what `class` and `()` name in its
logging. Its own blocklist is no boundary (facebookresearch/hydra#3258), so what may be named is listed here.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf

from esper.configs.load import read_yaml
from esper.configs.text import keep_yaml_text
from esper.errors import ConfigError

__all__ = ["guard_hydra", "guarded_files"]

_CALLBACKS = r"esper\.callbacks\.CheckBeforeRun"
_OPTIONS = r"optuna\.(samplers|pruners)\.[A-Z]\w*"
"""What a sweeper's options may name."""
_LOGGING = {
    "class": r"logging\.(StreamHandler|FileHandler|NullHandler|Formatter)",
    "()": r"colorlog\.ColoredFormatter",
    "filename": r"\$\{hydra\.runtime\.output_dir\}/\$\{hydra\.job\.name\}\.log",
}
_PLAIN = r"(?!.*\$\{|[a-z]+://)[\s\S]*|ext://sys\.(stdout|stderr)"
"""Other values in the logging configuration, which would import a module after `ext://`."""

_is_guarded = contextvars.ContextVar("_is_guarded", default=False)  # other Hydra apps of the process are left alone


def guard_hydra(conf: Path) -> None:
    """Check what Hydra reads and composes in this process from now on, before any of it is instantiated.

    Args:
        conf: folder of Esper's own files, which are not checked.
    """
    _register_source(conf)
    _is_guarded.set(True)
    load = ConfigLoaderImpl.load_configuration

    @functools.wraps(load)
    def load_configuration(self: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
        cfg = load(self, *args, **options)
        _require_trusted(cfg, is_sweep=options.get("run_mode") is RunMode.MULTIRUN)
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


@contextlib.contextmanager
def guarded_files(conf: Path) -> Iterator[None]:
    """Context manager: files that Hydra reads outside of `conf` are checked first."""
    _register_source(conf)
    token = _is_guarded.set(True)
    try:
        yield
    finally:
        _is_guarded.reset(token)


def _register_source(conf: Path) -> None:
    """Let Hydra read files through a source of the same name that checks them."""

    class FileConfigSource(file_config_source.FileConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            file = Path(self.path, self._normalize_file_name(config_path)).resolve()
            is_foreign = _is_guarded.get() and file.is_file() and not file.is_relative_to(conf)
            text = read_yaml(file) if is_foreign else None
            result = super().load_config(config_path)
            if text is not None:
                _refuse_plugins(OmegaConf.to_container(result.config, resolve=False), file)
                result.config = _with_text(result.config, text, package=_package(result, config_path))
            if _is_guarded.get() and OmegaConf.select(result.config, "hydra.searchpath"):
                raise ConfigError(f"{file}: hydra.searchpath: may import packages; give it on the command line")
            return result

    Plugins.instance()  # registers Hydra's own, once
    SourcesRegistry.instance().types["file"] = FileConfigSource


def _refuse_plugins(content: Any, file: Path) -> None:
    """Refuse the setting `plugins`, at any depth: a package in a defaults list, or a sweeper, may put it anywhere."""
    if isinstance(content, dict):
        if named := [key for key in content if str(key).lstrip("+~") == "plugins"]:
            raise ConfigError(f"{file}: {named[0]}: names code to import; give it on the command line")
        content = list(content.values())
    for value in content if isinstance(content, list) else ():
        _refuse_plugins(value, file)


def _package(result: ConfigResult, config_path: str) -> str:
    """What precedes the names of a file's settings, such as `model.`."""
    package = result.header.get("package") or "_group_"
    package = package.replace("_group_", config_path.rpartition("/")[0].replace("/", ".")).removeprefix("_global_")
    return f"{package.strip('.')}.".lstrip(".")


def _with_text(config: Container, text: str, *, package: str) -> Container:
    """The content of a file, with its settings of type text as they are written there."""
    content = OmegaConf.to_container(config, resolve=False)
    keep_yaml_text(content, yaml.compose(text, Loader=yaml.SafeLoader), package)
    return OmegaConf.create(content)


def _require_trusted(cfg: DictConfig, *, is_sweep: bool) -> None:
    """Refuse names of code that are not allowed.

    Args:
        cfg: what Hydra composed.
        is_sweep: Hydra will instantiate launcher and sweeper.

    Raises:
        ConfigError: a name that is not allowed.
    """
    _require_targets(cfg, "hydra.callbacks", allowed=_CALLBACKS)
    if is_sweep:
        known = Plugins.instance().class_name_to_class
        plugins = [name for name, kind in known.items() if issubclass(kind, Launcher | Sweeper)]
        for group in ("hydra.launcher", "hydra.sweeper"):
            _require_targets(cfg, group, allowed="|".join(map(re.escape, plugins)) + f"|{_OPTIONS}")
    for group in ("hydra.job_logging", "hydra.hydra_logging"):
        for key, value in _leaves(cfg, group, resolve=False):
            allowed = _LOGGING.get(key.rpartition(".")[2], _PLAIN)
            if isinstance(value, str) and not re.fullmatch(allowed, value):
                raise _refusal(key, value)
    given: Any = OmegaConf.to_container(cfg.hydra.overrides.hydra, resolve=False)  # ${hydra.job.num} comes later
    typed = any(text.lstrip("+~").startswith("hydra.job.env_set") for text in given)
    for name, value in ({} if typed else cfg.hydra.job.env_set).items():
        if os.environ.get(name) != value:
            raise ConfigError(f"hydra.job.env_set.{name}: set variables in the shell, or on the command line")


def _require_targets(cfg: DictConfig, group: str, *, allowed: str) -> None:
    """Check every `_target_` of a group as Hydra will see it, with all interpolations resolved."""
    for key, value in _leaves(cfg, group, resolve=True):
        if key.endswith("._target_") and not re.fullmatch(allowed, str(value)):
            raise _refusal(key, value)


def _refusal(key: str, value: Any) -> ConfigError:
    return ConfigError(f"{key}={value}: names code that Esper does not ship; remove it")


def _leaves(cfg: DictConfig, group: str, *, resolve: bool) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every value in a group, which may be null."""
    node = OmegaConf.select(cfg, group)
    yield from _of(OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node, group)


def _of(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, dict | list):
        yield key, content
        return
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield from _of(value, f"{key}.{name}")
