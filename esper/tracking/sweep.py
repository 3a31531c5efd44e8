"""A sweep in MLflow: one run that is the parent of its members. In W&B the experiment's group is that by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from esper.configs import TrackingConfig
from esper.configs.identity import outputs_folder
from esper.tracking.environment import without_credentials
from esper.tracking.history import History
from esper.tracking.journal import read
from esper.tracking.mlflow import tracking_uri
from esper.tracking.mlflow_store import connect, experiment_of, find_run

__all__ = ["report_sweep"]

_PARENT_TAG = "mlflow.parentRunId"
_FILES = ("comparison.html", "comparison.json")


def report_sweep(sweep_dir: Path, run_dirs: Sequence[Path], *, uri: str | None = None) -> int:
    """Give runs that MLflow has a parent there, with the comparison beside them; doing so again changes nothing.

    The parent's id is kept in `mlflow.json` in the sweep's folder. A tracker that has fewer than two of the runs, as
    where each has a database of its own, needs no parent.

    Args:
        sweep_dir: the folder that holds the runs' folders.
        run_dirs: the members.
        uri: MLflow tracking URI; None is each run's own.

    Returns:
        How many runs have a parent.
    """
    reported: dict[str, list[tuple[str, Path, str]]] = {}
    for run_dir in run_dirs:
        if not (run_dir / "mlflow.json").is_file():
            continue
        started = History.of(read(run_dir / "journal.jsonl")).started
        assert started is not None  # else MLflow was told nothing
        outputs_dir = outputs_folder(run_dir.absolute(), experiment_name=started["experiment_name"])
        config = TrackingConfig(**started["config"]["tracking"])
        place = uri or tracking_uri(config, outputs_dir=outputs_dir)
        ids = json.loads((run_dir / "mlflow.json").read_text())["run_ids"]
        if run_id := ids.get(without_credentials(place)):
            experiment = config.experiment or started["experiment_name"]
            reported.setdefault(place, []).append((run_id, outputs_dir, experiment))
    for place, found in reported.items():
        if len(found) > 1:
            _, outputs_dir, experiment = found[0]
            children = [run_id for run_id, _, _ in found]
            _adopt(sweep_dir, children, uri=place, experiment=experiment, outputs_dir=outputs_dir)
    return sum(len(found) for found in reported.values() if len(found) > 1)


def _adopt(sweep_dir: Path, run_ids: Sequence[str], *, uri: str, experiment: str, outputs_dir: Path) -> None:
    client = connect(uri)
    children = [client.get_run(run_id) for run_id in run_ids]
    parent = find_run(
        client,
        sweep_dir / "mlflow.json",
        where=without_credentials(uri),
        experiment_id=experiment_of(client, experiment, uri=uri, outputs_dir=outputs_dir),
        name=sweep_dir.absolute().name,
        start_time_s=min(child.info.start_time for child in children) / 1000,
    )
    for child in children:
        if child.data.tags.get(_PARENT_TAG) != parent.info.run_id:
            client.set_tag(child.info.run_id, _PARENT_TAG, parent.info.run_id)
    statuses = Counter(child.info.status for child in children)
    told = ", ".join(f"{number} {status.lower()}" for status, number in sorted(statuses.items()))
    client.set_tag(parent.info.run_id, "mlflow.note.content", f"A sweep of {len(children)} runs: {told}.")
    if "RUNNING" in statuses:
        client.update_run(parent.info.run_id, status="RUNNING")
    else:
        end_time = max(child.info.end_time for child in children)
        status = "FINISHED" if set(statuses) == {"FINISHED"} else "FAILED"
        client.set_terminated(parent.info.run_id, status, end_time=end_time)
    for path in (sweep_dir / name for name in _FILES):
        if path.is_file():
            client.log_artifact(parent.info.run_id, str(path))
