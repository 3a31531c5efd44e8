"""What is recorded of a configuration: `${oc.env:NAME}` as it was written, not the variable's value."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from esper.configs.paths import absolute_url
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError
from esper.redact import credentials, remember_credentials

__all__ = ["ADDRESSES", "as_written", "check_credentials", "recorded", "remember"]

ADDRESSES = {
    "tracking.uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or the database's own variable)",
    "database.url": "PGPASSWORD, or add it to ~/.pgpass",
    "redis.url": "ESPER_REDIS_PASSWORD (and ESPER_REDIS_USERNAME), or ESPER_REDIS_URL",
}
"""Settings that are addresses, with the variables for a password."""
_TEXTS = ("description", "tags")
"""Texts that no part of a run reads. Other settings are recorded as they are resolved: a run is its settings."""
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_MARK = "\0"
_VARIABLE = re.compile(r"\$\{oc\.env:\s*([\w.-]+)")

_written: dict[tuple[str, str], str] = {}


def remember(raw: Any, config: TolariaConfig, folder: str | None) -> None:
    """Note how settings were written that contain `${oc.env:NAME}`.

    The notes are of the process, by setting and value, so that they also hold for copies of the configuration.

    Args:
        raw: the settings before interpolations were resolved, as nested dicts.
        config: the same settings, resolved and with absolute paths.
        folder: where relative paths start; None: in the working directory.
    """
    for key in (*ADDRESSES, *_TEXTS):
        group, _, name = key.rpartition(".")
        text, value = (raw[group] if group else raw)[name], attrgetter(key)(config)
        pairs = zip(text, value, strict=True) if isinstance(value, list) and isinstance(text, list) else [(text, value)]
        for one_text, one_value in pairs:
            if isinstance(one_value, str) and "oc.env" in str(one_text):
                is_path = key in ADDRESSES and "://" in _INTERPOLATION.sub("", one_text)
                _written[key, one_value] = absolute_url(one_text, folder or Path.cwd()) if is_path else str(one_text)
        if key in ADDRESSES and value:
            remember_credentials(value)


def recorded(config: TolariaConfig) -> dict[str, Any]:
    """The settings as nested dicts, as files, journal and trackers get them."""
    content = dataclasses.asdict(config)
    for key in (*ADDRESSES, *_TEXTS):
        group, _, name = key.rpartition(".")
        holder = content[group] if group else content
        value = holder[name]
        holder[name] = [_text(key, one) for one in value] if isinstance(value, list) else _text(key, value)
    return content


def as_written(message: str, raw: Any) -> str:
    """A message about settings, with `${oc.env:NAME}` where it has the value of a variable that they use."""
    for name in sorted(set(_VARIABLE.findall(str(raw)))):
        value = os.environ.get(name, "")
        if len(value) > 3:
            message = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f"${{oc.env:{name}}}", message)
    return message


def check_credentials(config: TolariaConfig) -> None:
    """Refuse passwords and tokens in settings that are written to disk and sent to trackers.

    Raises:
        ConfigError: the message does not repeat them.
    """
    settings: Mapping[str, Any] = recorded(config)
    for key in (*ADDRESSES, *_TEXTS):
        group, _, name = key.rpartition(".")
        value = (settings[group] if group else settings)[name]
        for text in value if isinstance(value, list) else [value or ""]:
            address = text if key in _TEXTS or "://" in text else f"http://{text}"
            found = credentials(_marked(address), users=key in ADDRESSES)
            if any(_MARK not in secret for secret in found):
                remedy = f", or set {ADDRESSES[key]}" if key in ADDRESSES else ""
                raise ConfigError(
                    f"{key}: contains a password or token, which would be written into the run folder; write it as "
                    f"${{oc.env:NAME}}, of which the value is recorded nowhere{remedy}"
                )


def _text(key: str, value: str | None) -> str | None:
    return None if value is None else _written.get((key, value), value)


def _marked(text: str) -> str:
    """The text with a mark for each interpolation, also nested ones."""
    while (shorter := _INTERPOLATION.sub(_MARK, text)) != text:
        text = shorter
    return text
