"""Addresses that this user has given to Esper on this machine: `esper sync` sends nothing to others.

A run folder may be somebody else's, and what it names would get this user's credentials.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esper.configs import TrackingConfig
from esper.errors import RunError
from esper.redact import credentials, printable, without_credentials

__all__ = ["own_address", "recorded_tracking", "remember_address"]


def remember_address(address: str | None) -> None:
    """Note an address that the user gave, as it is recorded; one that contains credentials is not noted."""
    if not address or "\n" in address or credentials(address) or address in _known():
        return
    with contextlib.suppress(OSError):  # without the note, `esper sync` asks for the address
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _file().open("a", encoding="utf-8") as file:
            file.write(f"{address}\n")


def own_address(address: str | None, *, key: str, option: str, variable: str, run_dir: Path) -> str | None:
    """An address of a run's journal, with its `${oc.env:NAME}` resolved; None stays None.

    Args:
        address: what the journal says.
        key: the setting.
        option: the option of `esper sync` that names another address.
        variable: environment variable with this machine's address.
        run_dir: folder of the run.

    Raises:
        RunError: the user has not given it on this machine, or a variable is not set.
    """
    if address is None or (address and address == os.environ.get(variable)):
        return address
    if address not in _known():
        shown = shlex.quote(without_credentials(printable(" ".join(str(address).split()))))
        raise RunError(
            f"its journal has {key}={shown}, an address that you have not used on this machine; your credentials "
            f"would be sent there. If it is yours: esper sync {option} {shown} {shlex.quote(str(run_dir))}"
        )
    try:
        return str(OmegaConf.create({"address": address}).address)
    except OmegaConfBaseException as error:
        raise RunError(f"{key}={address}: {str(error).splitlines()[0]}; set it, or name one with {option}") from None


def recorded_tracking(config: Mapping[str, Any], *, uri: str | None, run_dir: Path) -> TrackingConfig:
    """The tracking settings of a run's journal, with this MLflow URI or, if that is None, the recorded one.

    Raises:
        RunError: see `own_address`; or the journal has no such settings.
    """
    try:
        tracking = {name: value for name, value in config["tracking"].items() if name in _FIELDS}
        if uri is None:
            own = {"key": "tracking.uri", "option": "--uri", "variable": "MLFLOW_TRACKING_URI"}
            uri = own_address(tracking.get("uri"), **own, run_dir=run_dir)
        return TrackingConfig(**{**tracking, "uri": uri})
    except (AttributeError, KeyError, TypeError):
        raise RunError(f"{run_dir / 'journal.jsonl'} has no settings of a tracker; the journal is damaged") from None


_FIELDS = TrackingConfig.__dataclass_fields__


def _file() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "esper", "addresses")


def _known() -> set[str]:
    try:
        return set(_file().read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()
