"""A sweep in MLflow: a run that is the parent of its members' runs. In W&B, the group does this already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.configs.identity import outputs_folder
from esper.errors import RunError
from esper.redact import without_credentials
from esper.tracking.addresses import recorded_tracking
from esper.tracking.history import History
from esper.tracking.journal import read
from esper.tracking.metrics import origin_tags
from esper.tracking.mlflow_data import log_dataset
from esper.tracking.mlflow_store import connect, find_run, get_experiment_id, own_tags, read_ids, tracking_uri

__all__ = ["report_sweep"]

_PARENT_TAG = "mlflow.parentRunId"
_FILES = ("comparison.html", "comparison.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    """A member that MLflow knows; `started` is its last `run_started` event."""

    run_id: str
    outputs_dir: Path
    experiment: str
    started: Mapping[str, Any]


def report_sweep(sweep_dir: Path, run_dirs: Sequence[Path], *, uri: str | None = None) -> int:
    """Create or update the parent run of a sweep in MLflow, and upload the comparison to it; idempotent.

    The parent's id is kept in `mlflow.json` in the sweep's folder. No parent is made where fewer than two members were
    reported, e.g. if each has its own database.

    Args:
        sweep_dir: folder of the sweep.
        run_dirs: folders of its members.
        uri: MLflow tracking URI; None is each run's own.

    Returns:
        Number of runs that have a parent.
    """
    children: dict[str, list[_Child]] = {}
    for run_dir in run_dirs:
        file = run_dir / "mlflow.json"
        known = None if file.is_symlink() else read_ids(file)
        if known is None:
            continue
        started = History.of(read(run_dir / "journal.jsonl")).started
        if started is None:  # a damaged journal: mlflow.json is written after its first event
            continue
        outputs_dir = outputs_folder(run_dir.absolute(), experiment_name=started["experiment_name"])
        try:
            config = recorded_tracking(started["config"], uri=uri, run_dir=run_dir)
        except RunError:  # an address that is not the user's
            continue
        place = tracking_uri(config, outputs_dir=outputs_dir)
        if run_id := known["run_ids"].get(without_credentials(place)):
            experiment = config.experiment or started["experiment_name"]
            child = _Child(run_id=run_id, outputs_dir=outputs_dir, experiment=experiment, started=started)
            children.setdefault(place, []).append(child)
    children = {place: found for place, found in children.items() if len(found) > 1}
    for place, found in children.items():
        _update_parent(sweep_dir, found, uri=place)
    return sum(map(len, children.values()))


def _update_parent(sweep_dir: Path, members: Sequence[_Child], *, uri: str) -> None:
    client, file, first = connect(uri), sweep_dir / "mlflow.json", members[0]
    found = [client.get_run(member.run_id) for member in members]
    children = [child for child in found if child.info.lifecycle_stage == "active"]
    if not children:
        return
    parent = find_run(
        client,
        file,
        place=without_credentials(uri),
        experiment_id=get_experiment_id(client, first.experiment, uri=uri, outputs_dir=first.outputs_dir),
        name=sweep_dir.absolute().name,
        start_time_s=min(child.info.start_time for child in children) / 1000,
    )
    for child in children:
        if child.data.tags.get(_PARENT_TAG) != parent.info.run_id:
            _tag(client, child.info.run_id, {_PARENT_TAG: parent.info.run_id}, file=file)
    statuses = Counter(child.info.status for child in children)
    counts = ", ".join(f"{number} {status.lower()}" for status, number in sorted(statuses.items()))
    note = f"A sweep of {len(children)} runs: {counts}."
    _tag(client, parent.info.run_id, {**_shared_origin(members), "mlflow.note.content": note}, file=file)
    for started in {member.started.get("data_digest"): member.started for member in members}.values():
        log_dataset(client, parent, started)
    if "RUNNING" in statuses:
        client.update_run(parent.info.run_id, status="RUNNING")
    else:
        end_time = max(child.info.end_time for child in children)
        status = "FINISHED" if set(statuses) == {"FINISHED"} else "FAILED"
        client.set_terminated(parent.info.run_id, status, end_time=end_time)
    for path in (sweep_dir / name for name in _FILES):
        if path.is_file() and not path.is_symlink():
            client.log_artifact(parent.info.run_id, str(path))


def _shared_origin(members: Sequence[_Child]) -> dict[str, str]:
    """User, program and commit, where these are the same for all members."""
    origins = [origin_tags(member.started["environment"]) for member in members]
    return {
        key: without_credentials(value)
        for key, value in origins[0].items()
        if value is not None and all(origin[key] == value for origin in origins)
    }


def _tag(client: Any, run_id: str, tags: Mapping[str, str], *, file: Path) -> None:
    for key, value in own_tags(client, run_id, tags, file=file).items():
        client.set_tag(run_id, key, value)
