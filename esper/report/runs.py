"""The runs of a comparison, from their folders or from MLflow, reduced to what is compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sqlalchemy import make_url

from esper.configs import TrackingConfig
from esper.costs import flops, training_macs
from esper.errors import RunError
from esper.report.run_record import read_run
from esper.tracking import run_folders, tracking_uri
from esper.tracking.files import read_members
from esper.tracking.metrics import parameters
from esper.tracking.mlflow import connect

__all__ = ["Point", "Run", "from_folders", "from_mlflow"]


class Point(NamedTuple):
    """A validation: MACs and seconds spent until then, and its accuracy."""

    macs: float
    seconds: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        name: of its folder.
        settings: its configuration by dotted name, each as text, as a tracker is told.
        status: not begun, running, finished, failed, interrupted, set aside (`fresh=true` put another in its place), or
            not of the sweep (it only lies in its folder).
        reason: why it failed or was interrupted.
        machine: what it ran on.
        result: the figures of a finished run, see `contracts.events.RunEnded`.
        curve: its validations, in order.
        overrides: what was asked of it, by setting or group, as a member of a sweep; None if it was none.
    """

    name: str
    settings: Mapping[str, str]
    status: str
    reason: str
    machine: str
    result: Mapping[str, Any] | None
    curve: Sequence[Point]
    overrides: Mapping[str, str] | None = None

    @property
    def seed(self) -> int:
        """The seed that pairs it with runs of other arms."""
        return int(self.settings["rng_seed"])

    @property
    def accuracy(self) -> float:
        """Test accuracy of its last step."""
        return self.figure("test_accuracy")

    @property
    def flops(self) -> float:
        """Everything it computed: two floating-point operations a multiply-accumulate."""
        return flops(self.figure("total_macs"))

    def figure(self, name: str) -> float:
        """A figure of its result."""
        assert self.result is not None
        return float(self.result[name])


def from_folders(paths: Sequence[Path]) -> list[Run]:
    """Every run folder at or below the paths, each once, in the order of their names.

    In the folder of a sweep only its members count, unless other runs are named themselves.

    Raises:
        RunError: a path holds no run, or a journal cannot be read.
    """
    folders: set[Path] = set()
    for path in paths:
        below = {folder.resolve() for folder in run_folders(path)}
        if not below:
            raise RunError(f"{path} holds no run folder: there is no journal.jsonl at or below it; name another path")
        folders |= below
    named = {path.resolve() for path in paths}
    found = []
    for folder in sorted(folders):
        members = read_members(folder.parent)
        is_stranger = bool(members) and folder.name not in members and folder not in named
        found.append(_from_folder(folder, overrides=members.get(folder.name), is_stranger=is_stranger))
    return found


def from_mlflow(experiment: str, *, uri: str | None) -> list[Run]:
    """Every run of an MLflow experiment.

    Args:
        experiment: its name.
        uri: MLflow tracking URI; None is where runs report by default, `outputs/mlflow.db`.

    Raises:
        RunError: there is no such database or experiment, or nothing in it.
    """
    uri = uri or tracking_uri(TrackingConfig(), outputs_dir=Path("outputs"))
    # MLflow would make the database.
    file = make_url(uri).database if uri.startswith("sqlite") else None
    if file is not None and not Path(file).exists():
        raise RunError(f"--uri {uri}: there is no such database; name the one that the runs reported to")
    client = connect(uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise RunError(f"--mlflow {experiment}: there is no such experiment at {uri}; see MLflow for the names")
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([known.experiment_id], max_results=500, page_token=token)
        runs += [_from_mlflow(client, run) for run in page if "rng_seed" in run.data.params]
        if not (token := page.token):
            break
    if not runs:
        raise RunError(f"--mlflow {experiment}: holds no run of Esper; name another experiment")
    return sorted(runs, key=lambda run: run.name)


def _from_folder(folder: Path, *, overrides: Sequence[str] | None, is_stranger: bool) -> Run:
    record = read_run(folder)
    started = record.history.started
    config = started["config"] if started else yaml.safe_load(record.config_yaml) or {}
    events = sorted((event for kind in record.events.values() for event in kind), key=lambda e: e["time_unix_s"])
    result = _result(record.result)
    status = record.status if started else "not begun"
    if _is_set_aside(folder):
        status = "set aside"
    elif is_stranger:
        status = "not of the sweep"
    return Run(
        name=folder.name,
        settings=parameters(config),
        status=status,
        reason=record.reason,
        machine=_machine(started["device"], started["environment"]) if started else "",
        result=result,
        curve=_curve(events, result, batch_size=config["dataset"]["batch_size"]) if started else [],
        overrides=None if overrides is None else dict(_setting(one) for one in overrides),
    )


def _setting(override: str) -> tuple[str, str]:
    """Name and value of an override; `+` and `~` are left to the name."""
    name, _, value = override.partition("=")
    return name, value


def _is_set_aside(folder: Path) -> bool:
    """Whether another run took the folder's place, see `tolaria.rundir`."""
    name = re.sub(r"\.old\d+$", "", folder.name)
    return name != folder.name and (folder.with_name(name) / "journal.jsonl").is_file()


def _from_mlflow(client: Any, run: Any) -> Run:
    metrics, tags = run.data.metrics, run.data.tags
    found = {name.removeprefix("result/"): value for name, value in metrics.items() if name.startswith("result/")}
    found |= {name.replace("/", "_"): metrics[name] for name in ("test/accuracy", "test/loss") if name in metrics}
    is_finished = run.info.status == "FINISHED"
    result = _result(found) if is_finished and found else None
    # The same events as the journal's, as far as MLflow was told of them.
    told = [("validation", "val_accuracy", "val/accuracy"), ("surgery", "num_macs_after", "growth/num_macs")]
    begun = run.info.start_time / 1000
    events: list[dict[str, Any]] = [
        {"kind": kind, "step": point.step, "time_unix_s": point.timestamp / 1000, "committed": True, field: point.value}
        for kind, field, key in told
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    events.sort(key=lambda event: (event["step"], event["time_unix_s"]))
    first = {"kind": "run_started", "step": 0, "time_unix_s": begun, "num_macs": 0}
    environment = {name.removeprefix("environment."): value for name, value in tags.items()}
    return Run(
        name=run.info.run_name,
        settings=run.data.params,
        status={"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}.get(run.info.status, "running"),
        reason=tags.get("esper.reason", ""),
        machine=_machine(tags.get("esper.device", ""), environment),
        result=result,
        curve=_curve([first, *events], result, batch_size=int(run.data.params["dataset.batch_size"])),
    )


def _machine(device: str, environment: Mapping[str, str | None]) -> str:
    return f"{device}, {environment.get('gpu') or environment.get('cpu') or 'unknown'}"


def _result(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The figures with the total of what was computed, which the first journals do not have."""
    if result is None:
        return None
    total = result.get("total_macs")
    return {**result, "total_macs": result["train_macs"] + result["growth_macs"] if total is None else total}


def _curve(events: Iterable[Mapping[str, Any]], result: Mapping[str, Any] | None, *, batch_size: int) -> list[Point]:
    """Accuracy over what was spent until then.

    The journal tells the network's size at every step and what scoring, forks and judging cost; what it does not tell
    (incubation) is spread over the run, so that the last point is the total of the result.
    """
    points: list[tuple[int, Point]] = []
    step, macs, num_macs, seconds, last = 0, 0.0, 0, 0.0, 0.0
    for event in events:
        if event["kind"] == "run_started":
            # The journal before it ends where the run goes on from; only steps after its last event are not told of.
            num_macs = num_macs or event["num_macs"]
            macs += training_macs(batch_size * max(0, event["step"] - step), num_macs) if step else 0
            step, last = event["step"], event["time_unix_s"]
            continue
        macs += training_macs(batch_size * max(0, event["step"] - step), num_macs) + event.get("cost_macs", 0)
        seconds += max(0.0, event["time_unix_s"] - last)
        step, last = max(step, event["step"]), event["time_unix_s"]
        if event["kind"] == "surgery" and event["committed"]:
            num_macs = event["num_macs_after"]
        elif event["kind"] == "validation" and event["val_accuracy"] is not None:
            points.append((event["step"], Point(macs, seconds, float(event["val_accuracy"]))))
    if result is None or not points or not macs:
        return [point for _, point in points]
    of_macs, of_seconds = result["total_macs"] / macs, min(1.0, result["seconds"] / seconds) if seconds else 1.0
    return [Point(point.macs * of_macs, point.seconds * of_seconds, point.accuracy) for _, point in points]
