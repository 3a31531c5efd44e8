"""Experiments and runs in MLflow: found, or made where there are none. MLflow is imported on the first connection."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from esper.tracking.files import write_atomically

__all__ = ["connect", "experiment_of", "find_run"]

_UID_TAG = "esper.run_uid"

# Set where the user has not. MLflow on its own would retry for a quarter of an hour, send usage data, and print.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would tear the live display
}


def connect(uri: str) -> Any:
    """A client of a tracking server, or of a database file, which is made if it is not there."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from sqlalchemy import make_url

    file = make_url(uri).database if uri.startswith("sqlite") else None
    if file is None:
        return MlflowClient(tracking_uri=uri)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    # Processes that make the tables at once kill each other (measured: 1 of 8 survives).
    with FileLock(f"{file}.lock", timeout=60):
        return MlflowClient(tracking_uri=uri)


def experiment_of(client: Any, name: str, *, uri: str, outputs_dir: Path) -> str:
    """The id of the experiment of this name; in a database, its artifacts lie beside that in the outputs folder."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    # A server knows where its artifacts go; a database says ./mlruns, wherever the process happens to run.
    has_server = uri.startswith(("http", "databricks"))
    artifacts = None if has_server else (outputs_dir.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another process was faster
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def find_run(client: Any, file: Path, *, where: str, experiment_id: str, name: str, start_time_s: float) -> Any:
    """The run whose id a file remembers, made if there is none or if it was deleted.

    Args:
        client: of the tracker.
        file: `mlflow.json` of the run's folder, or the sweep's.
        where: the tracker, as the file names it.
        experiment_id: where the run is made.
        name: of a run that is made.
        start_time_s: its Unix time.
    """
    from mlflow.exceptions import MlflowException

    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"uid": uuid.uuid4().hex, "run_ids": {}}
    if run_id := known["run_ids"].get(where):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
    # Noted before the run is made, so that a run is found again if we never hear that it was.
    write_atomically(file, json.dumps(known, indent=2))
    found = client.search_runs([experiment_id], f"tags.`{_UID_TAG}` = '{known['uid']}'", max_results=1)
    if found:
        run = found[0]
    else:
        tags = {_UID_TAG: known["uid"]}
        run = client.create_run(experiment_id, start_time=round(1000 * start_time_s), tags=tags, run_name=name)
    known["run_ids"][where] = run.info.run_id
    write_atomically(file, json.dumps(known, indent=2))
    return run
