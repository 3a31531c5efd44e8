"""What the page of `esper watch` shows, as JSON data."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from esper.report import figure, run_plots
from esper.report.jumps import jumps
from esper.report.run_record import RunRecord
from esper.terminal.lines import describe
from esper.tracking import formatting
from esper.tracking.history import GrownModule

__all__ = ["details", "summary"]

_MAX_EVENTS = 300


def summary(record: RunRecord, *, changed_s: float) -> dict[str, Any]:
    """One row of the list; `changed_s`: Unix time of the last event."""
    history = record.history
    started, info = history.started or {}, history.headline
    epochs, steps = record.of_kind("epoch"), record.of_kind("step")
    last = epochs[-1] if epochs else None
    epoch = last["epoch"] if last else 0
    is_finished = record.status == "finished"  # maybe before its last planned epoch
    return {
        "name": record.run_dir.name,
        "folder": record.run_dir.parent.name,
        "status": record.status if started else "not started",
        "reason": record.reason,
        "step": history.step,
        "total_steps": history.step if is_finished else started.get("total_steps"),
        "epoch": epoch,
        "total_epochs": epoch if is_finished else started.get("total_epochs"),
        "metric": formatting.metric(last["val_metrics"].get(info.name) if last else None, info),
        "metric_name": info.label,
        "loss": formatting.loss(last["val_loss"] if last else None),
        "growth": history.summary if started else "",
        "memory": formatting.memory(steps[-1]["memory_bytes"] if steps else None),
        "changed_s": changed_s,
    }


def details(record: RunRecord) -> dict[str, Any]:
    """Everything about one run."""
    return {
        "name": record.run_dir.name,
        "folder": str(record.run_dir),
        "status": record.status,
        "reason": record.reason,
        "device": _device(record.history.started or {}),
        "figures": [{"title": title, "data": figure.as_data(one)} for title, one in run_plots.curves(record)],
        "notes": list(jumps(record)),
        "seeds": _seeds(record),
        "modules": [_module(module) for module in record.history.modules],
        "events": _events(record),
    }


def _device(started: dict[str, Any]) -> str:
    environment = started.get("environment", {})
    return ", ".join(filter(None, (started.get("device"), environment.get("gpu") or environment.get("cpu"))))


def _seeds(record: RunRecord) -> list[dict[str, Any]]:
    """Site and stage of every seed that the journal names; those not on record are dormant."""
    sites = [signal["site"] for event in record.of_kind("signals") for signal in event["signals"]]
    stages = {site: {"site": site, "stage": "dormant", "blueprint": "", "epoch": None} for site in sites}
    for event in record.of_kind("state"):
        blueprint = "" if event["new"] == "dormant" else event["blueprint_id"] or ""
        entry = {"site": event["site"], "stage": event["new"], "blueprint": blueprint, "epoch": event["epoch"]}
        stages[event["site"]] = entry
    return list(stages.values())


def _module(module: GrownModule) -> dict[str, Any]:
    verdict = module.judgement or {}
    return {
        "number": module.graft_id,
        "module": module.blueprint_id,
        "site": module.site,
        "epoch": module.epoch,
        "parameters": formatting.signed(module.added_parameters),
        "gain": formatting.loss(verdict.get("gain")),
        "verdict": module.verdict,
    }


def _events(record: RunRecord) -> list[dict[str, str]]:
    """The last events, the newest first."""
    ordered = sorted((event for kind in record.events.values() for event in kind), key=lambda e: e["time_unix_s"])
    lines: list[dict[str, str]] = []
    for event in ordered[-20 * _MAX_EVENTS :]:
        time = f"{datetime.fromtimestamp(event['time_unix_s']).astimezone():%H:%M:%S}"
        told = describe(event, record.history.headline)
        lines += [{"time": time, "label": line.label.strip(), "text": line.text} for line in told]
    return lines[: -_MAX_EVENTS - 1 : -1]
