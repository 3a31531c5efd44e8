"""Where MLflow keeps runs: the address, experiments and runs there. MLflow is imported on the first connection."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from filelock import FileLock, Timeout
from pydantic import Field

from esper.configs import TrackingConfig
from esper.configs.paths import absolute_url, sqlite_url
from esper.errors import RunError, one_line
from esper.files import decoder, json_object, read_json, write_atomically
from esper.redact import without_credentials

__all__ = ["connect", "find_run", "get_experiment_id", "own_tags", "read_ids", "tracking_uri"]

_VERSION: Any = json_object("Version", {"version": str, "ended_unix_s": float})
_IDS = decoder(
    json_object(
        "Ids",
        {
            "uid": Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")],
            "run_ids": dict[str, str],
            "experiment_ids": NotRequired[dict[str, str]],
            "versions": NotRequired[dict[str, dict[str, _VERSION]]],
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
    if uri := config.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return absolute_url(uri, Path.cwd())
    return sqlite_url(outputs_dir / "mlflow.db")


def connect(uri: str, *, to_write: bool = True) -> Any:
    """A client of a tracking server, or of a database file, which is created if missing.

    Args:
        uri: of the server or the file.
        to_write: False: for reading alone, for which the file may be read-only.

    Raises:
        RunError: the file is no database, or cannot be read or written.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from sqlalchemy import make_url

    file = make_url(uri).database if uri.startswith("sqlite") else None
    if not file or file.startswith((":memory:", "file:")):
        return MlflowClient(tracking_uri=uri)
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        # Processes that create the tables concurrently fail (measured: 7 of 8).
        with FileLock(f"{file}.lock", timeout=60):
            if not Path(file).exists():
                _make_database(Path(file))
            _require_database(file)
            if to_write and not os.access(file, os.W_OK):
                raise _unusable(file, "it is read-only")
            return MlflowClient(tracking_uri=uri)
    except Timeout:
        raise
    except OSError as error:
        raise _unusable(file, one_line(error)) from None


def _require_database(file: str) -> None:
    """Check what MLflow would try again for minutes."""
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=0)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # another process writes
            raise _unusable(file, str(error)) from None


def _unusable(file: str, problem: str) -> RunError:
    return RunError(
        f"MLflow's database {file} cannot be used: {problem}; move it elsewhere, and a new one is made, or give "
        "another (tracking.uri=, --uri)"
    )


def _make_database(file: Path) -> None:
    """Make a database under another name first: MLflow cannot use one of which a process that ended made a part."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f"{file.name}.new")
    for leftover in (new, new.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    # MlflowClient writes the path of the working directory into an SQL statement, unescaped.
    store = SqlAlchemyStore(sqlite_url(new), Path("mlruns").absolute().as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.rename(file)


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
                return _noted(run, known, file, place=place)
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
    return _noted(run, known, file, place=place)


def _noted(run: Any, known: dict[str, Any], file: Path, *, place: str) -> Any:
    """The run, whose ids are then in the file."""
    ids = {"run_ids": run.info.run_id, "experiment_ids": run.info.experiment_id}
    if any(known.get(name, {}).get(place) != value for name, value in ids.items()):
        for name, value in ids.items():
            known.setdefault(name, {})[place] = value
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
