"""The runs of a comparison, read from their folders or from MLflow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sqlalchemy import make_url

from esper.configs import TrackingConfig
from esper.contracts.metrics import ACCURACY, MetricInfo, headline_of
from esper.costs import flops
from esper.errors import RunError
from esper.report.packs import SharedWork, shared_work
from esper.report.run_record import read_run
from esper.tracking import run_folders, tracking_uri
from esper.tracking.files import read_members
from esper.tracking.history import image_macs
from esper.tracking.metrics import METRICS_TAG, parameters
from esper.tracking.mlflow_store import connect

__all__ = ["ComparedRun", "CurvePoint", "from_folders", "from_mlflow"]


class CurvePoint(NamedTuple):
    """The leading metric on the validation split, and the MACs and seconds spent until then."""

    macs: float
    seconds: float
    figure: float


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        name: name of its folder.
        folder: its folder; None of a run from MLflow.
        settings: configuration as text, by dotted name.
        status: not started, running, finished, failed, interrupted, killed, replaced (by a run with
            `fresh=true`), not in the sweep (in whose folder it is), or damaged.
        reason: why it failed or was interrupted; when a killed run was last seen; what is damaged.
        machine: device and processor.
        headline: the metric that leads.
        result: result of a finished run, see `contracts.events.RunEnded`.
        curve: validations, in order.
        num_steps: optimizer steps.
        growth_steps: the steps at which the network's size changed.
        overrides: overrides of a member of a sweep, by setting or group; None for other runs.
        shared: its work in a process that it shared.
    """

    name: str
    folder: Path | None = None
    settings: Mapping[str, str]
    status: str
    reason: str
    machine: str
    headline: MetricInfo = ACCURACY
    result: Mapping[str, Any] | None
    curve: Sequence[CurvePoint]
    num_steps: int = 0
    growth_steps: frozenset[int] = frozenset()
    overrides: Mapping[str, str] | None = None
    shared: SharedWork | None = None

    @property
    def seed(self) -> int:
        """The random seed, by which runs of two arms are paired."""
        return int(self.settings["rng_seed"])

    @property
    def figure(self) -> float:
        """The leading metric on the test split at the last step."""
        return self.metric(f"test_{self.headline.name}")

    @property
    def val_figure(self) -> float:
        """The same on the validation split; nan for the first journals, which lack it."""
        return self.metric(f"val_{self.headline.name}")

    @property
    def flops(self) -> float:
        """All FLOPs of the run, growth included."""
        return flops(self.metric("total_macs"))

    def metric(self, name: str) -> float:
        """An entry of `result`; nan if that is not there, or was not finite."""
        assert self.result is not None
        value = self.result.get(name)
        return math.nan if value is None else float(value)


def from_folders(paths: Sequence[Path]) -> list[ComparedRun]:
    """All runs at or below the paths, each once, sorted by folder.

    In the folder of a sweep, other runs than its members have the status "not in the sweep" unless they are in `paths`.

    Raises:
        RunError: a path holds no run, or no run can be read.
    """
    folders: set[Path] = set()
    for path in paths:
        below = {folder.resolve() for folder in run_folders(path)}
        if not below:
            raise RunError(f"{path} holds no run folder: there is no journal.jsonl at or below it; name another path")
        folders |= below
    named = {path.resolve() for path in paths}
    runs, damaged = [], list[RunError]()
    for folder in sorted(folders):
        members = read_members(folder.parent)
        overrides = members.get(folder.name)
        is_other = bool(members) and overrides is None and folder not in named
        try:
            runs.append(_from_folder(folder, overrides=overrides, is_other=is_other))
        except RunError as error:
            damaged.append(error)
            runs.append(_damaged(folder, str(error), overrides=overrides))
    if len(damaged) == len(runs):
        raise damaged[0]
    return runs


def from_mlflow(experiment: str, *, uri: str | None) -> list[ComparedRun]:
    """All runs of an MLflow experiment.

    Args:
        experiment: name of the experiment.
        uri: MLflow tracking URI; None is the default, `outputs/mlflow.db`.

    Raises:
        RunError: there is no such database or experiment, or nothing in it.
    """
    uri = uri or tracking_uri(TrackingConfig(), outputs_dir=Path("outputs"))
    # MLflow would create the database.
    file = make_url(uri).database if uri.startswith("sqlite") else None
    if file is not None and not Path(file).exists():
        raise RunError(f"--uri {uri}: there is no such database; give the one that the runs reported to")
    client = connect(uri, to_write=False)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise RunError(f"--mlflow {experiment}: there is no such experiment at {uri}; see MLflow for the names")
    runs: list[ComparedRun] = []
    token: str | None = None
    while True:
        page = client.search_runs([known.experiment_id], max_results=500, page_token=token)
        runs += [_from_mlflow(client, run) for run in page if "rng_seed" in run.data.params]
        if not (token := page.token):
            break
    if not runs:
        raise RunError(f"--mlflow {experiment}: has no run of Esper; name another experiment")
    return sorted(runs, key=lambda run: run.name)


def _from_folder(folder: Path, *, overrides: Sequence[str] | None, is_other: bool) -> ComparedRun:
    record = read_run(folder)
    started = record.history.started
    config = started["config"] if started else yaml.safe_load(record.config_yaml) or {}
    if not isinstance(config, dict):
        raise RunError(f"{folder / 'config.yaml'} is not the configuration of a run; restore it")
    events = sorted((event for kind in record.events.values() for event in kind), key=lambda e: e["time_unix_s"])
    result = _result(record.result)
    status = record.status if started else "not started"
    if _is_replaced(folder):
        status = "replaced"
    elif is_other:
        status = "not in the sweep"
    return ComparedRun(
        name=folder.name,
        folder=folder,
        settings=parameters(config),
        status=status,
        reason=record.reason,
        machine=_machine(started["device"], started["environment"]) if started else "",
        headline=record.history.headline,
        result=result,
        curve=_curve(events, result, headline=record.history.headline, batch_size=config["dataset"]["batch_size"])
        if started
        else [],
        num_steps=max((event["step"] for event in events), default=0),
        growth_steps=_growth_steps(events),
        overrides=None if overrides is None else dict(map(_setting, overrides)),
        shared=shared_work(record),
    )


def _damaged(folder: Path, reason: str, *, overrides: Sequence[str] | None) -> ComparedRun:
    return ComparedRun(
        name=folder.name,
        folder=folder,
        settings={},
        status="damaged",
        reason=reason,
        machine="",
        result=None,
        curve=[],
        overrides=None if overrides is None else dict(map(_setting, overrides)),
    )


def _setting(override: str) -> tuple[str, str]:
    """Name and value of an override; a prefix `+` or `~` is part of the name."""
    name, _, value = override.partition("=")
    return name, value


def _is_replaced(folder: Path) -> bool:
    """Whether the folder was renamed for a run with `fresh=true`, see `tolaria.run_folder`."""
    name = re.sub(r"\.old\d+$", "", folder.name)
    return name != folder.name and (folder.with_name(name) / "journal.jsonl").is_file()


def _from_mlflow(client: Any, run: Any) -> ComparedRun:
    metrics, tags = run.data.metrics, run.data.tags
    logged = {name.removeprefix("result/"): value for name, value in metrics.items() if name.startswith("result/")}
    logged |= {name.replace("/", "_"): value for name, value in metrics.items() if name.startswith("test/")}
    headline = headline_of({"metrics": json.loads(tags[METRICS_TAG])} if METRICS_TAG in tags else None)
    is_finished = run.info.status == "FINISHED"
    result = _result(logged) if is_finished and logged else None
    # The journal's events, as far as MLflow has them.
    keys = [("validation", headline.name, f"val/{headline.name}"), ("surgery", "num_macs_after", "growth/num_macs")]
    started_s = run.info.start_time / 1000
    events: list[dict[str, Any]] = [
        {"kind": kind, "step": point.step, "time_unix_s": point.timestamp / 1000, "committed": True}
        | ({"val_metrics": {field: point.value}} if kind == "validation" else {field: point.value})
        for kind, field, key in keys
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    events.sort(key=lambda event: (event["step"], event["time_unix_s"]))
    first = {"kind": "run_started", "step": 0, "time_unix_s": started_s, "num_macs": 0}
    environment = {name.removeprefix("environment."): value for name, value in tags.items()}
    return ComparedRun(
        name=run.info.run_name,
        settings=run.data.params,
        status={"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}.get(run.info.status, "running"),
        reason=tags.get("esper.reason", ""),
        machine=_machine(tags.get("esper.device", ""), environment),
        headline=headline,
        result=result,
        curve=_curve(
            [first, *events], result, headline=headline, batch_size=int(run.data.params["dataset.batch_size"])
        ),
        num_steps=max((event["step"] for event in events), default=0),
        growth_steps=_growth_steps(events),
    )


def _machine(device: str, environment: Mapping[str, str | None]) -> str:
    return f"{device}, {environment.get('gpu') or environment.get('cpu') or 'unknown'}"


def _result(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The result with `total_macs`, which the first journals lack."""
    if result is None:
        return None
    total = result.get("total_macs")
    return {**result, "total_macs": result["train_macs"] + result["growth_macs"] if total is None else total}


def _growth_steps(events: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """The steps at which the network's MACs changed."""
    steps, num_macs = set(), None
    for event in events:
        if event["kind"] == "surgery" and event["committed"]:
            before = event.get("num_macs_before", num_macs)  # MLflow has the host's first
            num_macs = event["num_macs_after"]
            if before is not None and num_macs != before:
                steps.add(int(event["step"]))
    return frozenset(steps)


def _curve(
    events: Iterable[Mapping[str, Any]], result: Mapping[str, Any] | None, *, headline: MetricInfo, batch_size: int
) -> list[CurvePoint]:
    """The leading metric on the validation split against the MACs and seconds spent until then.

    The journal has the network's size at every step and the cost of scoring, forks and judging. Costs without a time
    (incubation) are spread over the run, so that the last point matches the total in the result.
    """
    points: list[CurvePoint] = []
    step, macs, per_image, seconds, last = 0, 0.0, 0, 0.0, 0.0
    for event in events:
        if event["kind"] == "run_started":
            # On a resume, the journal was cut at the checkpoint's offset; steps after its last event are added here.
            per_image = per_image or image_macs(event)
            macs += batch_size * max(0, event["step"] - step) * per_image if step else 0
            step, last = event["step"], event["time_unix_s"]
            continue
        macs += batch_size * max(0, event["step"] - step) * per_image + event.get("cost_macs", 0)
        seconds += max(0.0, event["time_unix_s"] - last)
        step, last = max(step, event["step"]), event["time_unix_s"]
        if event["kind"] == "surgery" and event["committed"]:
            per_image = image_macs(event)
        elif event["kind"] == "validation" and (value := event["val_metrics"].get(headline.name)) is not None:
            points.append(CurvePoint(macs, seconds, float(value)))
    if result is None or not points or not macs:
        return points
    macs_factor = result["total_macs"] / macs
    seconds_factor = min(1.0, result["seconds"] / seconds) if seconds else 1.0
    return [CurvePoint(point.macs * macs_factor, point.seconds * seconds_factor, point.figure) for point in points]
