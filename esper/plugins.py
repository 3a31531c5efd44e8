"""Code of the user's: modules that register models, datasets, tasks, blueprints and policies under names.

`plugins=[my_package]` names the modules; so does an installed package, as entry points `esper.plugins`. This module
imports nothing of them until a run needs it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from esper.errors import ConfigError, EsperError, one_line

__all__ = ["Plugin", "build", "call", "decorator", "find", "load", "loaded", "names", "offer", "register"]

T = TypeVar("T")
_GROUP = "esper.plugins"
_NAME = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

_registered: dict[tuple[str, str], Any] = {}
_loaded: dict[str, Plugin] = {}
_installed: list[str] = []
"""Modules of entry points that have been imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A module that was imported, as it was then.

    Attributes:
        module: its name.
        version: of the installed distribution that has it, or its `__version__`; "" if it has none.
        file: its file, for a package `__init__.py`.
        digest: 16 hex digits of the SHA-256 of its Python files; of a package, all files of the package.
    """

    module: str
    version: str
    file: str
    digest: str


def decorator(kind: str) -> Callable[[str], Callable[[T], T]]:
    """A decorator that registers what it decorates, as in `@esper.model("name")`."""

    def named(name: str) -> Callable[[T], T]:
        def registered(value: T) -> T:
            register(kind, name, value)
            return value

        return registered

    return named


def register(kind: str, name: str, value: Any) -> None:
    """Register something of the user's.

    Raises:
        ConfigError: the name is not one, or another module has registered it.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigError(
            f"@esper.{kind}({name!r}): allowed is a name of up to 64 letters, digits, '_', '-' and '.', beginning with "
            "a letter"
        )
    before = _registered.get((kind, name))
    if before is not None and _origin(before) != _origin(value):  # the same again: a module that is reloaded
        raise ConfigError(
            f'@esper.{kind}("{name}") in {_origin(value)}: {_origin(before)} has registered this name; rename one'
        )
    _registered[kind, name] = value


def offer(kind: str, name: str, value: Any) -> None:
    """Register an object of this process, in place of an earlier one of that name."""
    _registered[kind, name] = value


def _origin(value: Any) -> str:
    return str(getattr(value, "__module__", type(value).__module__))


def find(kind: str, name: str) -> Any | None:
    """What is registered under a name, perhaps by an installed package; None: nothing."""
    if (kind, name) not in _registered:
        _load_installed()
    return _registered.get((kind, name))


def names(kind: str) -> list[str]:
    """All registered names of a kind."""
    _load_installed()
    return sorted(name for of, name in _registered if of == kind)


def load(modules: Sequence[str]) -> None:
    """Import modules, which register what they have; a module in the working directory is found, too.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for name in modules:
        if name in _loaded:
            continue
        if not _MODULE.fullmatch(name):
            raise ConfigError(
                f"plugins: {name!r}: allowed is the name of a module that Python can import, such as my_package.models"
            )
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)  # last: a file there replaces no installed module
        importlib.invalidate_caches()
        _import(name, where=f"plugins: {name!r}", missing=f"there is no such module in {here} or installed")


def _load_installed() -> None:
    """Import the modules of entry points."""
    for point in importlib.metadata.entry_points(group=_GROUP):
        if point.module not in _installed:
            _installed.append(point.module)
            where = f"entry point {point.name} of {point.dist.name if point.dist else 'a package'}: {point.module!r}"
            _import(point.module, where=where, missing="there is no such module; reinstall the package")


def _import(name: str, *, where: str, missing: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: needs {error.name}, which is not installed") from None
        raise ConfigError(f"{where}: {missing}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{where}: cannot be imported: {type(error).__name__}: {one_line(error)} ({place.filename}:{place.lineno})"
        ) from None
    _loaded[name] = _described(name, module)


def _described(name: str, module: ModuleType) -> Plugin:
    top = name.partition(".")[0]
    try:
        version = importlib.metadata.version(importlib.metadata.packages_distributions()[top][0])
    except (KeyError, importlib.metadata.PackageNotFoundError):
        version = str(getattr(sys.modules.get(top), "__version__", ""))
    digest = hashlib.sha256()
    for file in _files(sys.modules[top]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return Plugin(
        module=name, version=version, file=str(getattr(module, "__file__", "") or ""), digest=digest.hexdigest()[:16]
    )


def _files(module: ModuleType) -> Iterator[Path]:
    """The Python files of a module; of a package, all in its folder."""
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    if folders:
        for folder in folders:
            yield from sorted(folder.rglob("*.py"))
    elif file := getattr(module, "__file__", None):
        yield Path(file)


def call(kind: str, made: Callable[..., Any], *, setting: str, options: Mapping[str, Any], **offered: Any) -> Any:
    """Call a function or class of the user's.

    Args:
        kind: group of its settings, such as model.
        made: the function or class.
        setting: what selects it, such as `model.name=net`.
        options: `<kind>.options`, its arguments.
        offered: further arguments, of which it gets those that it has a parameter for.

    Raises:
        ConfigError: the options are not its own, or it fails.
    """
    name, arguments = setting.partition("=")[2], dict(options)
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):
        raise ConfigError(f"{setting}: is a {type(made).__name__}; register a function or class of Python") from None
    try:
        arguments |= {key: value for key, value in offered.items() if key in signature.parameters}
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(key for key in signature.parameters if key not in offered) or "none"
        raise ConfigError(f"{kind}.options={dict(options)}: {name} {error}; its options: {known}") from None
    return build(made, setting=setting, **arguments)


def build(made: Any, *args: Any, setting: str, **kwargs: Any) -> Any:
    """What a function or class of the user's returns.

    Raises:
        ConfigError: it fails.
    """
    try:
        return made(*args, **kwargs)
    except EsperError:
        raise
    except Exception as error:  # it is the user's, and may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{setting}: cannot be built: {type(error).__name__}: {one_line(error)} ({place.filename}:{place.lineno})"
        ) from None


def loaded(modules: Sequence[str]) -> list[Plugin]:
    """The imported modules of a run: those that it names, and those of installed packages that were needed."""
    return [_loaded[name] for name in dict.fromkeys([*modules, *_installed]) if name in _loaded]
