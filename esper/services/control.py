"""`esper services down|status`, and `up` in the background; without torch, so that it answers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from rich.markup import escape
from rich.table import Table

from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.errors import ConfigError, EsperError
from esper.oona.health import Health, listen
from esper.terminal.text import table_console
from esper.tracking import write_atomically

__all__ = ["GRACE_S", "SERVICES", "configured", "down", "registered", "show", "start", "status"]

SERVICES = ("tamiyo", "tezzeret")
GRACE_S = 8.0
"""How long services may take to stop."""
_FOLDER = Path("outputs", "services")
_START_S = 90.0
_STYLES = {"healthy": "green", "absent": "yellow", "failed": "bold red"}
_COMMAND = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"


def configured(overrides: Sequence[str]) -> TolariaConfig:
    """What `esper-train` would make of the overrides.

    Raises:
        ConfigError: they cannot be used.
    """
    return from_hydra(compose(overrides))


def start(overrides: Sequence[str], *, only: Sequence[str], name: str | None, policy: Path | None) -> int:
    """Do `up` in a process of its own, and wait until that serves.

    Raises:
        EsperError: it does not; its log says why.
    """
    name = _checked(name)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    if _process(name) is not None:
        raise _taken(name)
    log = _FOLDER / f"{name}.log"
    options = [*(f"--only={one}" for one in only), f"--name={name}", *([f"--policy={policy}"] if policy else [])]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, "services", "up", *options, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        if " on Redis " in (told := log.read_text()):
            sys.stdout.write(f"{told}in the background ({process.pid}); log: {log}; stop: esper services down\n")
            return 0
        time.sleep(0.2)
    process.terminate()
    *_, last = log.read_text().strip().splitlines() or ["they say nothing"]
    error = ConfigError if process.wait() == 2 else EsperError
    raise error(f"{last.removeprefix('error: ')} (log: {log})")


def down(name: str | None) -> int:
    """Stop services that were started in this folder, those of one name or all; returns the exit code."""
    names = [_checked(name)] if name else sorted(file.stem for file in _FOLDER.glob("*.json"))
    running = {one: process for one in names if (process := _process(one))}
    if not running:
        sys.stdout.write(f"nothing to stop: no services of this machine were started in this folder ({_FOLDER})\n")
    code = 0
    for one, process in running.items():
        told = "stopped"
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(GRACE_S + 4)
            except psutil.TimeoutExpired:
                told, code = f"does not stop; end it with: kill -9 {process.pid}", 1
        sys.stdout.write(f"{one}: {told}\n")
    return code


def status(overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the bus and who is alive on it; returns the exit code, 1 if the bus does not answer."""
    found = listen(configured(overrides).redis)
    show(found, as_json=as_json)
    return 1 if found[0].status == "failed" else 0


def show(found: Sequence[Health], *, as_json: bool) -> None:
    """Print how services stand, as a table or for programs."""
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "status", "version", "latency", "name", "detail"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "latency" else "left")
    for one in found:
        latency = "" if one.latency_s is None else f"{1000 * one.latency_s:.1f} ms"
        style = _STYLES[one.status]
        table.add_row(
            one.service, f"[{style}]{one.status}[/]", one.version, latency, escape(one.name), escape(one.detail)
        )
    table_console().print(table)


def _taken(name: str) -> ConfigError:
    return ConfigError(
        f"services named {name} run already in this folder; stop them with `esper services down`, or give --name"
    )


@contextlib.contextmanager
def registered(name: str | None) -> Iterator[str]:
    """Leave word of this process, for `down`; one of a name at a time. Gives the name.

    Raises:
        ConfigError: it is none, or services of this name run already.
    """
    name = _checked(name)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_FOLDER / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _taken(name) from None
    file = _FOLDER / f"{name}.json"
    me = {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": socket.gethostname()}
    write_atomically(file, json.dumps(me) + "\n")
    try:
        yield name
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def _process(name: str) -> psutil.Process | None:
    """The process of this machine that runs the services of a name; None: it has gone."""
    try:
        noted = json.loads((_FOLDER / f"{name}.json").read_text())
        process = psutil.Process(int(noted["pid"]))
        is_same = noted["host"] == socket.gethostname() and process.create_time() == noted["created"]
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return process if is_same else None


def _checked(name: str | None) -> str:
    name = name or socket.gethostname()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"--name {name}: allowed are letters, digits, `.`, `_` and `-`")
    return name
