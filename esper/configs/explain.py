"""Explain configuration errors of OmegaConf, Hydra and YAML in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)

from esper.configs.schema import kind, settings
from esper.configs.text import one_value, override
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError, one_line

__all__ = ["explain", "explain_folder", "nearest"]


_REGISTERED = {
    "model": "model=plugin model.name={}", "dataset": "dataset=plugin dataset.source={}", "task": "task.name={}",
}  # fmt: skip
"""How what a plugin has registered is chosen, by group."""


def nearest(word: str, known: Collection[str], *, num: int = 1) -> str:
    """`; did you mean X?` for the known name (or up to `num`) most similar to a mistyped one; empty if none is."""
    names = difflib.get_close_matches(word, known, n=num)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def explain_folder(error: OSError) -> ConfigError:
    """Turn an error of making the folder of a run or a sweep into a `ConfigError` of one line."""
    return ConfigError(
        f"{one_line(error.filename)}: {error.strerror}; hydra.run.dir= names another folder for a run, "
        "hydra.sweep.dir= for a sweep"
    )


def explain(error: Exception, *, where: str = "") -> ConfigError:
    """Turn an error of OmegaConf, Hydra or YAML into a `ConfigError` of one line.

    Args:
        error: the error; if Hydra wrapped one of OmegaConf's, that is explained.
        where: the file that caused it, put in front of the message.
    """
    file = re.match(r"In '([^']+)': \w+ raised", str(error))
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if file and cause is None:
        cause = error.__context__
    if isinstance(error, MissingConfigException):
        line = _missing_option(error)
    elif isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        is_plain = bool(equals) and not value.startswith(("[", "{"))
        remedy = override(key, value) if is_plain else "KEY=VALUE, with quotes inside where VALUE has = or ,"
        line = f"cannot read {error.override!r}; write {remedy}"
    elif file and file[1].startswith("experiment/") and getattr(cause, "full_key", "") == "experiment":
        line = "a preset begins with the line # @package _global_"
    elif isinstance(cause, OmegaConfBaseException):
        line = _of_omegaconf(cause)
    elif deletion := re.match(r"Could not delete (?:from config\. .*?)?'(.+?)'", str(error)):
        line = _not_deleted(deletion[1])
    elif sweep := re.search(r"'(.+)'\n[\s\S]*--multirun", str(error)):
        one = one_value(sweep[1])
        line = f"{sweep[1]}: several values; add -m to run each{', or write ' + one if one else ''}"
    else:
        line = one_line(error)
    if file:
        where = f"{file[1]}.yaml"
    return ConfigError(f"{where}: {line}" if where else line)


def _of_omegaconf(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key or "the configuration")
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        if key.startswith("hydra.") and error.parent_node is not None:
            return f"{key}: no such setting{nearest(_leaf(key), [str(name) for name in error.parent_node])}"
        return _unknown_setting(key)
    if isinstance(error, InterpolationToMissingValueError):
        missing = message.rpartition(": ")[2]
        remedy = (
            "in hydra.sweep.subdir of a sweep (-m) it has one" if missing.startswith("hydra.job.") else "give it one"
        )
        return f"{key}: ${{{missing}}} has no value here; {remedy}"
    if message.endswith("does not support deletion"):
        return _not_deleted(key)
    hint = {name: hint for name, hint, _ in settings(TolariaConfig)}.get(key.partition("[")[0])
    if isinstance(error, ValidationError) and hint is not None:
        value = re.match(r"Value '(.*)' of type", message)
        return f"{key}{'=' + value[1] if value else ''}: must be {kind(hint)}"
    return f"{key}: {message}"


def _not_deleted(key: str) -> str:
    key = key.partition("=")[0]
    return f"~{key}: no setting can be removed; leave ~{key} out, and {key} has its default, or give {key}=VALUE"


def _unknown_setting(key: str) -> str:
    """Suggest a setting of the same group, else of any group, else list the settings of the group."""
    known = [*(name for name, _, _ in settings(TolariaConfig)), "experiment", "arm"]
    group, _, name = key.rpartition(".")
    in_group = {_leaf(known_key): known_key for known_key in known if known_key.rpartition(".")[0] == group}
    anywhere = {_leaf(known_key): known_key for known_key in known}
    for keys in (in_group, anywhere):
        if close := difflib.get_close_matches(name, keys, n=1):
            return f"{key}: no such setting; did you mean {keys[close[0]]}?"
    listing = f"; {group or 'the top level'} has {', '.join(in_group)}" if in_group else ""
    return f"{key}: no such setting{listing}"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not options:
        return one_line(error)
    registered = _REGISTERED.get(group, "").format(option)
    hint = nearest(option, options) or (registered and f"; one that a plugin registers is {registered}")
    return f"{group}={option}: allowed are {', '.join(options)}{hint}"
