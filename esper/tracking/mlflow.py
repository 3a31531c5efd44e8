"""A run in MLflow, made from the run's journal. MLflow itself is imported when a run is first reported."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esper.configs import TrackingConfig
from esper.configs.identity import checkpoints_folder
from esper.errors import RunError
from esper.tracking.environment import without_credentials
from esper.tracking.history import History
from esper.tracking.mlflow_store import connect, experiment_of, find_run
from esper.tracking.records import FILES, Point, parameters, points, tags

__all__ = ["MlflowRun", "tracking_uri"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_CHECKPOINT_FILES = ("manifest.json", "model.safetensors")

# MLflow takes 1000 items a batch, of which 100 parameters and 100 tags.
_MAX_METRICS, _MAX_PARAMETERS, _MAX_TAGS = 800, 100, 100


def tracking_uri(config: TrackingConfig, *, outputs_dir: Path) -> str:
    """Where the run is reported: the URI that is set, or `mlflow.db` in the outputs folder."""
    return config.uri or f"sqlite:///{outputs_dir.absolute() / 'mlflow.db'}"


class MlflowRun:
    """One run in MLflow, brought up to date from the events of its journal, given from the first on.

    What MLflow already holds is not logged again: which points those are is asked of MLflow itself, once. The run id is
    kept in `mlflow.json` in the run folder, and only one process at a time reports a run. Every method raises whatever
    MLflow raises, and then nothing is left to do with this object but to close it.

    Args:
        config: where to report; `experiment` defaults to the run's own.
        run_dir: folder of the run.
        outputs_dir: folder of the default database and of the artifacts beside it.

    Attributes:
        num_logged: points that were new to MLflow.
        history: the run as told so far.
    """

    def __init__(self, config: TrackingConfig, *, run_dir: Path, outputs_dir: Path) -> None:
        self.num_logged = 0
        self.history = History()
        self._config = config
        self._run_dir = run_dir
        self._outputs_dir = outputs_dir
        self._lock = FileLock(run_dir / ".mlflow.lock")
        self._client: Any = None
        self._run_id = ""
        self._status = ""
        self._held: Counter[tuple[str, int]] = Counter()  # points in MLflow whose events have not been seen yet
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Report the next events, in one request as a rule. Nothing happens before the first `run_started`.

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
        """Set the final status (KILLED if the journal tells of no end), then upload what the run folder holds."""
        if self._client is None:
            return
        ended = self.history.ended
        self._set_status(_STATUS[ended["status"]] if ended else "KILLED")
        if self.history.fates:
            grown = [dataclasses.asdict(fate) for fate in self.history.fates]
            self._client.log_text(self._run_id, json.dumps(grown, indent=2), "growth.json")
        for path in (self._run_dir / name for name in FILES):
            if path.is_file():
                self._client.log_artifact(self._run_id, str(path))
        if newest := _newest_checkpoint(self._checkpoint_dir()):
            for name in _CHECKPOINT_FILES:
                self._client.log_artifact(self._run_id, str(newest / name), "checkpoint")

    def close(self) -> None:
        """Let others report this run; safe to call twice."""
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
            self._run_dir / "mlflow.json",
            where=without_credentials(uri),
            experiment_id=experiment_of(client, experiment, uri=uri, outputs_dir=self._outputs_dir),
            name=started["run_name"],
            start_time_s=started["time_unix_s"],
        )
        # From MLflow and not from a file: a kill between logging and noting it would count wrongly.
        for key in run.data.metrics:
            self._held.update((key, metric.step) for metric in client.get_metric_history(run.info.run_id, key))
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        self._client, self._run_id, self._status = client, run.info.run_id, run.info.status

    # --- sending --------------------------------------------------------------------------------------------------

    def _take_held(self, point: Point) -> bool:
        """Whether MLflow holds this point from before; several of one step are told apart by their number."""
        at = (point.key, point.step)
        if not self._held[at]:
            return False
        self._held[at] -= 1
        return True

    def _send(self, new: list[Point]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self.history.started is not None
        wanted = parameters(self.history.started["config"])
        told = tags(self.history)
        # MLflow refuses to change a parameter; the current ones are in config.yaml.
        if changed := [f"{key}={value}" for key, value in wanted.items() if self._params.get(key, value) != value]:
            told["esper.changed_parameters"] = ", ".join(changed)[:5000]
        told = {key: value for key, value in told.items() if self._tags.get(key, "") != value}
        wanted = {key: value for key, value in wanted.items() if key not in self._params}
        batch_metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in new]
        batch_params = [Param(key, value) for key, value in wanted.items()]
        batch_tags = [RunTag(key, value) for key, value in told.items()]
        while batch_metrics or batch_params or batch_tags:
            self._client.log_batch(
                self._run_id,
                metrics=batch_metrics[:_MAX_METRICS],
                params=batch_params[:_MAX_PARAMETERS],
                tags=batch_tags[:_MAX_TAGS],
            )
            del batch_metrics[:_MAX_METRICS], batch_params[:_MAX_PARAMETERS], batch_tags[:_MAX_TAGS]
        self.num_logged += len(new)
        self._params |= wanted
        self._tags |= told

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


def _newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step; of two at one step, the last and not the best."""
    found = [path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith(".")]
    return max(found, key=lambda path: (_step(path), path.name), default=None)


def _step(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "manifest.json").read_text())["step"])
