"""Report runs to MLflow from their journals. MLflow is imported on the first connection."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from esper.configs import TrackingConfig
from esper.configs.identity import CHECKPOINT_NAME, checkpoints_folder
from esper.errors import RunError
from esper.redact import without_credentials
from esper.tracking.history import History
from esper.tracking.metrics import Point, files, parameters, points, tags
from esper.tracking.mlflow_data import log_dataset
from esper.tracking.mlflow_store import connect, find_run, get_experiment_id, own_tags, tracking_uri

__all__ = ["MlflowRun"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_CHECKPOINT_FILES = ("manifest.json", "model.safetensors")

# MLflow's limits for a batch: 1000 items, of which 100 parameters and 100 tags.
_MAX_METRICS, _MAX_PARAMETERS, _MAX_TAGS = 800, 100, 100


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
        log_dataset(client, run, started)
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
