"""Report runs to MLflow from their journals. MLflow is imported on the first connection."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from pydantic import Field

from esper.configs import TrackingConfig
from esper.configs.identity import CHECKPOINT_NAME, checkpoints_folder
from esper.configs.paths import sqlite_url
from esper.errors import RunError
from esper.files import decoder, json_object, read_json, write_atomically
from esper.redact import without_credentials
from esper.tracking.history import History
from esper.tracking.metrics import Point, files, parameters, points, tags

__all__ = ["MlflowRun", "connect", "find_run", "get_experiment_id", "own_tags", "tracking_uri"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_CHECKPOINT_FILES = ("manifest.json", "model.safetensors")

# MLflow's limits for a batch: 1000 items, of which 100 parameters and 100 tags.
_MAX_METRICS, _MAX_PARAMETERS, _MAX_TAGS = 800, 100, 100

_IDS = decoder(
    json_object(
        "Ids",
        {
            "uid": Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")],
            "run_ids": dict[str, str],
            "written": NotRequired[dict[str, dict[str, list[str]]]],
        },
    )
)
_UID_TAG = "esper.run_uid"
_EDITED = ("mlflow.note.content", "esper.tags")
"""Tags that people change; in a run of an older Esper, which did not note what it wrote, they stay as they are."""

# Defaults where the user set nothing. MLflow's own: retry for 15 minutes, send usage data, print.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # printing would garble the live display
}


def tracking_uri(config: TrackingConfig, *, outputs_dir: Path) -> str:
    """The configured URI, else that of MLFLOW_TRACKING_URI, else `mlflow.db` in the outputs folder."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(outputs_dir / "mlflow.db")


class MlflowRun:
    """One run in MLflow, updated from the events of its journal, from the first event on.

    Points that MLflow holds already, queried once, are not logged again. The run id is kept in `mlflow.json` in the
    run folder; a lock there lets one process at a time report a run. Every method may raise any error of MLflow; after
    that the object can only be closed.

    Args:
        config: tracking settings; `experiment` defaults to the run's own.
        run_dir: folder of the run.
        outputs_dir: folder of the default database and its artifacts.
        is_contained: upload no checkpoint from outside of the run folder, and to no place outside of the outputs
            folder that only the database there names: both may be somebody else's.

    Attributes:
        num_logged: points that were new to MLflow.
        history: the events ingested so far.
        left_out: the checkpoint that was not uploaded, because it lies or leads outside of the run folder; else empty.
    """

    def __init__(self, config: TrackingConfig, *, run_dir: Path, outputs_dir: Path, is_contained: bool = False) -> None:
        self.num_logged = 0
        self.left_out = ""
        self.history = History()
        self._config = config
        self._run_dir = run_dir
        self._outputs_dir = outputs_dir
        self._is_contained = is_contained
        self._file = run_dir / "mlflow.json"
        self._lock = FileLock(run_dir / ".mlflow.lock")
        self._client: Any = None
        self._run_id = ""
        self._status = ""
        self._held: Counter[tuple[str, int]] = Counter()  # points in MLflow whose events were not yet ingested
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Report the next events, usually in one request; does nothing before the first `run_started`.

        Raises:
            RunError: another process is reporting this run.
        """
        new: list[Point] = []
        for event in events:
            self.history.add(event)
            new += points(event)
        if self.history.started is None:
            return
        if self._client is None:
            self._attach(self.history.started)
        self._send([point for point in new if not self._take_held(point)])
        if self.history.ended is None:
            self._set_status("RUNNING")

    def finish(self) -> None:
        """Set the final status (KILLED if the journal has no `run_ended`), then upload files of the run folder."""
        if self._client is None:
            return
        ended = self.history.ended
        self._set_status(_STATUS[ended["status"]] if ended else "KILLED")
        if self.history.modules:
            grown = [dataclasses.asdict(module) for module in self.history.modules]
            self._client.log_text(self._run_id, json.dumps(grown, indent=2), "growth.json")
        for path in (self._run_dir / name for name in files(self._config)):
            if path.is_file():
                self._client.log_artifact(self._run_id, str(path))
        newest = _newest_checkpoint(self._checkpoint_dir())
        uploaded = [newest / name for name in _CHECKPOINT_FILES] if newest else []
        if self._is_contained and not all(_is_inside(path, self._run_dir) for path in uploaded):
            self.left_out, uploaded = str(newest), []
        for path in uploaded:
            self._client.log_artifact(self._run_id, str(path), "checkpoint")

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        self._lock.release()

    # --- attaching ------------------------------------------------------------------------------------------------

    def _attach(self, started: dict[str, Any]) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{self._run_dir} is being reported by another process; wait for it") from None
        uri = tracking_uri(self._config, outputs_dir=self._outputs_dir)
        client = connect(uri)
        experiment = self._config.experiment or started["experiment_name"]
        run = find_run(
            client,
            self._file,
            place=without_credentials(uri),
            experiment_id=get_experiment_id(client, experiment, uri=uri, outputs_dir=self._outputs_dir),
            name=started["run_name"],
            start_time_s=started["time_unix_s"],
        )
        if self._is_contained and not (self._config.uri or os.environ.get("MLFLOW_TRACKING_URI")):
            _require_artifacts_inside(run.info.artifact_uri, self._outputs_dir, uri=uri)
        # Queried, not kept in a file: a kill between logging and writing the file would miscount.
        for key in run.data.metrics:
            self._held.update((key, metric.step) for metric in client.get_metric_history(run.info.run_id, key))
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        self._client, self._run_id, self._status = client, run.info.run_id, run.info.status

    # --- sending --------------------------------------------------------------------------------------------------

    def _take_held(self, point: Point) -> bool:
        """Whether MLflow holds this point from before; several at one step are counted."""
        at = (point.key, point.step)
        if not self._held[at]:
            return False
        self._held[at] -= 1
        return True

    def _send(self, new: list[Point]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self.history.started is not None
        new_params = parameters(self.history.started["config"])
        new_tags = tags(self.history)
        # MLflow cannot change a parameter; config.yaml has the current ones.
        if changed := [f"{key}={value}" for key, value in new_params.items() if self._params.get(key, value) != value]:
            new_tags["esper.changed_parameters"] = ", ".join(changed)[:5000]
        changed_tags = {key: value for key, value in new_tags.items() if self._tags.get(key, "") != value}
        new_tags = own_tags(self._client, self._run_id, changed_tags, file=self._file)
        new_params = {key: value for key, value in new_params.items() if key not in self._params}
        batch_metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in new]
        batch_params = [Param(key, value) for key, value in new_params.items()]
        batch_tags = [RunTag(key, value) for key, value in new_tags.items()]
        while batch_metrics or batch_params or batch_tags:
            self._client.log_batch(
                self._run_id,
                metrics=batch_metrics[:_MAX_METRICS],
                params=batch_params[:_MAX_PARAMETERS],
                tags=batch_tags[:_MAX_TAGS],
            )
            del batch_metrics[:_MAX_METRICS], batch_params[:_MAX_PARAMETERS], batch_tags[:_MAX_TAGS]
        self.num_logged += len(new)
        self._params |= new_params
        self._tags |= changed_tags

    def _set_status(self, status: str) -> None:
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(self._run_id, status=status)
        else:
            ended = self.history.ended
            end_time = round(1000 * ended["time_unix_s"]) if ended else None
            self._client.set_terminated(self._run_id, status, end_time=end_time)
        self._status = status

    def _checkpoint_dir(self) -> Path:
        assert self.history.started is not None
        settings = self.history.started["config"]["checkpoint"]
        return checkpoints_folder(self._run_dir, checkpoint_dir=settings["checkpoint_dir"])


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, with no link on the way."""
    return path.is_relative_to(folder) and path.resolve() == folder.resolve() / path.relative_to(folder)


def _require_artifacts_inside(artifact_uri: str, outputs_dir: Path, *, uri: str) -> None:
    parts = urlsplit(artifact_uri)
    path = Path(unquote(parts.path)).resolve()
    if parts.scheme not in ("", "file") or not path.is_relative_to(outputs_dir.resolve()):
        raise RunError(
            f"the database in {outputs_dir} keeps this run's files at {without_credentials(artifact_uri)}, outside of "
            f"that folder; if that is yours: esper sync --uri {shlex.quote(uri)}, with the folder"
        )


def _newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step; at one step, `step-*` before `best-*`."""
    complete = [path.parent for path in folder.glob("*/manifest.json") if CHECKPOINT_NAME.fullmatch(path.parent.name)]
    return max(complete, key=lambda path: (_step(path), path.name), default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


# --- experiments and runs --------------------------------------------------------------------------------------------


def connect(uri: str) -> Any:
    """A client of a tracking server, or of a database file, which is created if missing."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from sqlalchemy import make_url

    file = make_url(uri).database if uri.startswith("sqlite") else None
    if file is None:
        return MlflowClient(tracking_uri=uri)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    # Processes that create the tables concurrently fail (measured: 7 of 8).
    with FileLock(f"{file}.lock", timeout=60):
        if not Path(file).exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # MlflowClient writes the path of the working directory into an SQL statement, unescaped.
            SqlAlchemyStore(uri, Path("mlruns").absolute().as_uri())  # type: ignore[no-untyped-call]
        return MlflowClient(tracking_uri=uri)


def get_experiment_id(client: Any, name: str, *, uri: str, outputs_dir: Path) -> str:
    """The id of the experiment of this name, created if missing; a database's artifacts go to the outputs folder."""
    from mlflow.exceptions import MlflowException

    if existing := client.get_experiment_by_name(name):
        return _active_id(existing, uri=uri)
    # A server has its own artifact store; a database defaults to ./mlruns of the current directory.
    has_server = uri.startswith(("http", "databricks"))
    artifacts = None if has_server else (outputs_dir.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another process created it first
        if existing := client.get_experiment_by_name(name):
            return _active_id(existing, uri=uri)
        raise


def _active_id(experiment: Any, *, uri: str) -> str:
    if experiment.lifecycle_stage != "active":
        raise RunError(
            f"the MLflow experiment {experiment.name!r} was deleted; restore it with "
            f"`{_command(uri)} experiments restore --experiment-id {experiment.experiment_id}`, or set "
            "tracking.experiment to another name"
        )
    return str(experiment.experiment_id)


def _command(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(without_credentials(uri))} mlflow"


def read_ids(file: Path) -> dict[str, Any] | None:
    """The content of `mlflow.json`; None without one.

    Raises:
        RunError: it is damaged.
    """
    try:
        return read_json(file, _IDS)
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error}; remove it, and the run is reported to MLflow as a new one") from None


def find_run(client: Any, file: Path, *, place: str, experiment_id: str, name: str, start_time_s: float) -> Any:
    """The run whose id is in a file; created if there is none, or if it is gone for good.

    Args:
        client: MLflow client.
        file: `mlflow.json` in the folder of the run or sweep.
        place: key of the tracker in the file.
        experiment_id: experiment of a new run.
        name: name of a new run.
        start_time_s: Unix time at which a new run starts.

    Raises:
        RunError: somebody deleted the run, and it can be restored.
    """
    from mlflow.exceptions import MlflowException

    known: dict[str, Any] = read_ids(file) or {"uid": uuid.uuid4().hex, "run_ids": {}}
    if run_id := known["run_ids"].get(place):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
            raise RunError(
                f"this run was deleted in MLflow; restore it with `{_command(place)} runs restore --run-id {run_id}`, "
                f"or remove {file} to report it anew"
            )
    # The uid is saved first: a run whose creation is not confirmed can be found by it.
    write_atomically(file, json.dumps(known, indent=2))
    matches = client.search_runs([experiment_id], f"tags.`{_UID_TAG}` = '{known['uid']}'", max_results=1)
    if matches:
        run = matches[0]
    else:
        tags = {_UID_TAG: known["uid"]}
        run = client.create_run(experiment_id, start_time=round(1000 * start_time_s), tags=tags, run_name=name)
    known["run_ids"][place] = run.info.run_id
    write_atomically(file, json.dumps(known, indent=2))
    return run


def own_tags(client: Any, run_id: str, tags: Mapping[str, str], *, file: Path) -> dict[str, str]:
    """Of these tags those to write: what somebody changed or removed in MLflow stays.

    A tag is Esper's as long as its value is one that Esper wrote. `file`, the `mlflow.json`, has digests of these; a
    value is noted before it is sent, so that a kill in between does not make it somebody else's.
    """
    if not tags:
        return {}
    present = client.get_run(run_id).data.tags
    known = read_ids(file)
    assert known is not None
    at_first = {key: [_digest(value)] for key, value in present.items() if key not in _EDITED}
    written = known.setdefault("written", {}).setdefault(run_id, at_first)
    own = {key: value for key, value in tags.items() if _is_own(present.get(key), written.get(key))}
    for key, value in own.items():
        written[key] = sorted({*written.get(key, ()), _digest(value)})
    write_atomically(file, json.dumps(known, indent=2))
    return own


def _is_own(present: str | None, written: list[str] | None) -> bool:
    return written is None if present is None else _digest(present) in (written or ())


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]
