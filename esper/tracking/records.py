"""What a tracker is told about a run: points of its curves, the parameters of its configuration, its tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from esper.tracking import figures
from esper.tracking.environment import without_credentials
from esper.tracking.history import Fate, History

__all__ = ["FILES", "Point", "parameters", "points", "stories", "tags"]

FILES = ("config.yaml", "git.diff", "journal.jsonl", "report.html")
"""What a tracker is given of a run folder, as far as it is there."""

_MAX_PARAMETER = 6000  # characters that MLflow takes
_MAX_TAG = 5000

# Event kind → its field → the curve it is a point of. Curves named epoch/* run over epochs, all others over steps.
_CURVES: Mapping[str, Mapping[str, str]] = {
    "step": {
        name: f"train/{name}"
        for name in ("loss", "accuracy", "learning_rate", "grad_norm", "images_per_s", "memory_bytes")
    },
    "validation": {"val_loss": "val/loss", "val_accuracy": "val/accuracy"},
    "epoch": {
        "train_loss": "epoch/train_loss",
        "train_accuracy": "epoch/train_accuracy",
        "val_loss": "epoch/val_loss",
        "val_accuracy": "epoch/val_accuracy",
        "learning_rate": "epoch/learning_rate",
        "adaptations_applied": "epoch/adaptations_applied",
        "epoch_time": "epoch/time_s",
    },
    "surgery": {"num_parameters_after": "growth/num_parameters", "num_macs_after": "growth/num_macs"},
    "judgement": {name: f"judge/{name}" for name in ("gain", "lower_bound", "threshold", "loss_off", "loss_on")},
}
_HOST = {"num_parameters": "growth/num_parameters", "num_macs": "growth/num_macs"}
_RESULT = {"test_loss": "test/loss", "test_accuracy": "test/accuracy"}


class Point(NamedTuple):
    """One value of a curve; `step` is an optimizer step, or the epoch on curves named epoch/*."""

    key: str
    value: float
    step: int
    time_ms: int


def points(event: Mapping[str, Any]) -> Iterator[Point]:
    """The points that an event adds; values that are not known (null) add none."""
    kind, step, values, curves = event["kind"], event["step"], event, _CURVES.get(event["kind"], {})
    if kind == "run_started" and event["resumed_from"] is None:
        curves = _HOST
    elif kind == "run_ended" and event["result"] is not None:
        values = event["result"]
        curves = {name: _RESULT.get(name, f"result/{name}") for name in values}
    elif kind == "surgery" and not event["committed"]:
        return
    elif kind == "epoch":
        step = event["epoch"]
    for name, key in curves.items():
        if values[name] is not None:
            yield Point(key, float(values[name]), step, round(1000 * event["time_unix_s"]))


def parameters(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """The settings by dotted name, as text as YAML has it, without credentials."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= parameters(value, prefix=f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found[prefix + name] = without_credentials(text)[:_MAX_PARAMETER]
    return found


def tags(history: History) -> dict[str, str]:
    """What the run is, what it runs on, and what has grown in it so far."""
    started, ended = history.started or {}, history.ended or {}
    config, environment = started["config"], started["environment"]
    found = {
        "mlflow.note.content": config["description"],
        "mlflow.source.git.commit": environment.get("git_commit"),
        "esper.run_name": started["run_name"],
        "esper.tags": ", ".join(config["tags"]),
        "esper.device": started["device"],
        "esper.reason": ended.get("reason", ""),
        **{f"environment.{name}": value for name, value in environment.items()},
        **stories(history),
    }
    return {key: without_credentials(value)[:_MAX_TAG] for key, value in found.items() if value is not None}


def stories(history: History) -> dict[str, str]:
    """What became of every module that grew, a sentence each."""
    return {f"growth.{fate.graft_id}": _story(fate) for fate in history.fates}


def _story(fate: Fate) -> str:
    told = f"{fate.blueprint_id} at {fate.site}, step {fate.step}: {fate.verdict}"
    if fate.judgement is not None:
        gain, bound, threshold = (figures.loss(fate.judgement[name]) for name in ("gain", "lower_bound", "threshold"))
        told += f", gain {gain} (at least {bound}, needed {threshold})"
    return f"{told}, {figures.signed(fate.added_parameters)} parameters, {figures.signed(fate.added_macs)} MACs"
