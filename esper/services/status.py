"""`esper services status`: the bus and the services with a heartbeat on it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.oona.service import Health, service_health
from esper.terminal import table_console

__all__ = ["show", "status"]

_STYLES = {"healthy": "green", "absent": "yellow", "failed": "bold red"}


def status(overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the health of the bus and its services; returns exit code 1 if the bus cannot be reached, else 0."""
    services = service_health(from_hydra(compose(overrides)).redis)
    show(services, as_json=as_json)
    return 1 if services[0].status == "failed" else 0


def show(services: Sequence[Health], *, as_json: bool) -> None:
    """Print the health of services, as a table or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(service) for service in services], indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "status", "version", "latency", "name", "detail"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "latency" else "left")
    for one in services:
        latency = "" if one.latency_s is None else f"{1000 * one.latency_s:.1f} ms"
        styled = f"[{_STYLES[one.status]}]{one.status}[/]"
        table.add_row(one.service, styled, one.version, latency, escape(one.name), escape(one.detail))
    table_console().print(table)
