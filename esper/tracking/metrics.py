"""What trackers log of a run: metrics (from journal events), parameters (from the configuration), tags and files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from esper.configs import TrackingConfig
from esper.configs.paths import PATHS, as_given
from esper.redact import without_credentials
from esper.tracking import formatting
from esper.tracking.history import GrownModule, History

__all__ = [
    "METRICS_TAG",
    "UPLOADED",
    "Point",
    "files",
    "module_summaries",
    "origin_tags",
    "parameters",
    "points",
    "tags",
]

UPLOADED = ("config.yaml", "git.diff", "journal.jsonl", "report.html")
"""Files of the run folder that a tracker uploads, `git.diff` only if asked."""

METRICS_TAG = "esper.metrics"
"""Tag with the metrics of a run as JSON, as in its `run_started` event."""
_MAX_PARAMETER, _MAX_TAG = 6000, 5000  # characters; MLflow's limits

# Event kind → field → metric. The x axis of epoch/* is the epoch, of all others the optimizer step.
_METRICS: Mapping[str, Mapping[str, str]] = {
    "step": {
        name: f"train/{name}"
        for name in ("loss", "learning_rate", "grad_norm", "images_per_s", "tokens_per_s", "memory_bytes")
    },
    "validation": {"val_loss": "val/loss"},
    "epoch": {
        "train_loss": "epoch/train_loss",
        "val_loss": "epoch/val_loss",
        "learning_rate": "epoch/learning_rate",
        "adaptations_applied": "epoch/adaptations_applied",
        "epoch_time": "epoch/time_s",
    },
    "surgery": {"num_parameters_after": "growth/num_parameters", "num_macs_after": "growth/num_macs"},
    "judgement": {name: f"judge/{name}" for name in ("gain", "lower_bound", "threshold", "loss_off", "loss_on")},
}
_HOST = {"num_parameters": "growth/num_parameters", "num_macs": "growth/num_macs"}
# Event kind → field with the task's metrics → prefix of their names.
_OF_TASK: Mapping[str, Mapping[str, str]] = {
    "step": {"metrics": "train/"},
    "validation": {"val_metrics": "val/"},
    "epoch": {"train_metrics": "epoch/train_", "val_metrics": "epoch/val_"},
}


class Point(NamedTuple):
    """One value of a metric; `step` is an optimizer step, or the epoch for metrics named epoch/*."""

    key: str
    value: float
    step: int
    time_ms: int


def points(event: Mapping[str, Any]) -> Iterator[Point]:
    """The metric values in an event, without those that are unknown (null)."""
    kind, step, values, keys = event["kind"], event["step"], event, _METRICS.get(event["kind"], {})
    if kind == "run_started" and event["resumed_from"] is None:
        keys = _HOST
    elif kind == "run_ended" and event["result"] is not None:
        values = {name: value for name, value in event["result"].items() if not isinstance(value, dict | list)}
        keys = {name: _result_key(name) for name in values}
    elif kind == "surgery" and not event["committed"]:
        return
    elif kind == "epoch":
        step = event["epoch"]
    named = {key: values[name] for name, key in keys.items()}
    for field, prefix in _OF_TASK.get(kind, {}).items():
        named |= {f"{prefix}{name}": value for name, value in event[field].items()}
    for key, value in named.items():
        if value is not None:
            yield Point(key, float(value), step, round(1000 * event["time_unix_s"]))


def _result_key(name: str) -> str:
    return f"test/{name.removeprefix('test_')}" if name.startswith("test_") else f"result/{name}"


def parameters(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """The settings as text (as in YAML) by dotted name, without credentials; paths as given."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= parameters(value, prefix=f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if prefix + name in PATHS:
                text = as_given(text)
            flat[prefix + name] = without_credentials(text)[:_MAX_PARAMETER]
    return flat


def tags(history: History) -> dict[str, str]:
    """The run's description, environment, status, and modules grown so far."""
    started, ended = history.started or {}, history.ended or {}
    config, environment = started["config"], started["environment"]
    values = {
        "mlflow.note.content": config["description"],
        **origin_tags(environment),
        "esper.run_name": started["run_name"],
        "esper.tags": ", ".join(config["tags"]),
        "esper.device": started["device"],
        METRICS_TAG: json.dumps([dataclasses.asdict(info) for info in history.metrics]),
        "esper.reason": ended.get("reason", ""),
        **{f"environment.{name}": value for name, value in environment.items()},
        **module_summaries(history),
    }
    return {key: without_credentials(value)[:_MAX_TAG] for key, value in values.items() if value is not None}


def origin_tags(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """MLflow's own tags that say whose run this is, and of which program and commit; None where unknown."""
    source = environment.get("source")
    is_notebook = source is not None and (source == "notebook" or source.endswith(".ipynb"))
    return {
        "mlflow.user": environment.get("user"),
        "mlflow.source.name": source,
        "mlflow.source.type": source and ("NOTEBOOK" if is_notebook else "LOCAL"),
        "mlflow.source.git.commit": environment.get("git_commit"),
        "mlflow.source.git.branch": environment.get("git_branch"),
        "mlflow.source.git.dirty": environment.get("git_dirty"),
        "mlflow.source.git.repoURL": environment.get("git_remote"),
    }


def files(config: TrackingConfig) -> tuple[str, ...]:
    """Files of the run folder that a tracker uploads, if they exist."""
    return tuple(name for name in UPLOADED if config.git_diff or name != "git.diff")


def module_summaries(history: History) -> dict[str, str]:
    """One line for every module that grew: verdict, gain, cost."""
    return {f"growth.{module.graft_id}": _summary(module) for module in history.modules}


def _summary(module: GrownModule) -> str:
    text = f"{module.blueprint_id} at {module.site}, step {module.step}: {module.verdict}"
    if module.judgement is not None:
        gain, bound, threshold = (
            formatting.loss(module.judgement[name]) for name in ("gain", "lower_bound", "threshold")
        )
        text += f", gain {gain} (lower bound {bound}, needed {threshold})"
    return (
        f"{text}, {formatting.signed(module.added_parameters)} parameters, {formatting.signed(module.added_macs)} MACs"
    )
