"""`tracking.register`: a finished run becomes a version of a model in MLflow's registry."""

from __future__ import annotations

import functools
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from esper.configs import TrackingConfig
from esper.configs.identity import outputs_folder
from esper.contracts.metrics import headline_of
from esper.errors import ConfigError, RunError
from esper.files import sha256, write_atomically
from esper.redact import without_credentials
from esper.tracking import read
from esper.tracking.history import History
from esper.tracking.mlflow_store import connect, read_ids, tracking_uri
from esper.tracking.tracker_thread import short_message

__all__ = ["register", "require_registry"]

_REFUSALS = (
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)
"""Answers that a server would give after the training, too."""
_LOCK_TIMEOUT_S = 10
_SHA256_TAG = "esper.sha256"


def require_registry(tracking: TrackingConfig) -> None:
    """Check that the server has a registry; one that does not respond now may do so after the training.

    Raises:
        ConfigError: it has none, or this user may not use it.
    """
    name, uri = tracking.register, tracking_uri(tracking, outputs_dir=Path())
    if name is not None and uri.startswith("http"):  # a database always has one
        _require_registry(name, uri)


@functools.cache  # runs of one process ask once; what is raised is not kept
def _require_registry(name: str, uri: str) -> None:
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        client.search_model_versions(f"name='{name}'", max_results=1)
    except MlflowException as error:
        if error.error_code in _REFUSALS:
            raise ConfigError(
                f"tracking.register={name}: {without_credentials(uri)} refuses: {short_message(error)}; name a server "
                "with a model registry in tracking.uri, or leave it out"
            ) from None


def register(run_dir: Path, tracking: TrackingConfig) -> None:
    """Make the network of a finished run a version of the model `tracking.register`, unless it is one.

    It is exported, written as a model of MLflow, and each is read back and compared before anything is sent. The
    version is noted in `mlflow.json`.

    Raises:
        RunError: MLflow does not have the run.
        Exception: any error of the export, or of MLflow.
    """
    if (name := tracking.register) is None:
        return
    history = History.of(read(run_dir / "journal.jsonl"))
    started, ended = history.started, history.ended
    if started is None or ended is None or ended["status"] != "finished":
        return
    uri = tracking_uri(tracking, outputs_dir=outputs_folder(run_dir, experiment_name=started["experiment_name"]))
    place, file = without_credentials(uri), run_dir / "mlflow.json"
    with FileLock(run_dir / ".mlflow.lock", timeout=_LOCK_TIMEOUT_S):
        known = read_ids(file)
        if known is None or place not in known["run_ids"]:
            again = f"esper sync {shlex.quote(str(run_dir))}"
            raise RunError(f"MLflow does not have the run; first: {again}")
        versions = known.setdefault("versions", {}).setdefault(place, {})
        if versions.get(name, {}).get("ended_unix_s") == ended["time_unix_s"]:
            return
        version = _version(connect(uri), name, run_dir, run_id=known["run_ids"][place], ended=ended)
        versions[name] = {"version": version, "ended_unix_s": ended["time_unix_s"]}
        write_atomically(file, json.dumps(known, indent=2))


def _version(client: Any, name: str, run_dir: Path, *, run_id: str, ended: dict[str, Any]) -> str:
    """The number of the version, which is created if it is not there."""
    from mlflow.utils.uri import append_to_uri_path

    from esper.inference.export import export
    from esper.inference.loading import WEIGHTS
    from esper.inference.mlflow_model import save_model

    with tempfile.TemporaryDirectory(prefix="esper-register-") as folder:
        network = export(run_dir, Path(folder, "network"))
        digest = sha256(network / WEIGHTS)
        for found in client.search_model_versions(f"name='{name}' and run_id='{run_id}'"):
            if found.tags.get(_SHA256_TAG) == digest:  # of a process that was killed before it noted it
                return str(found.version)
        artifact_path = f"model-{digest[:8]}"  # a run that is rewound and trained again gets another version
        save_model(network, Path(folder, "model"), run_id=run_id, artifact_path=artifact_path)
        client.log_artifacts(run_id, str(Path(folder, "model")), artifact_path)
    headline = headline_of(ended["result"])
    created = client.create_model_version(
        _created(client, name),
        append_to_uri_path(client.get_run(run_id).info.artifact_uri, artifact_path),  # type: ignore[no-untyped-call]
        run_id,
        tags={
            _SHA256_TAG: digest,
            "esper.run_name": run_dir.name,
            f"esper.test_{headline.name}": str(ended["result"][f"test_{headline.name}"]),
        },
    )
    return str(created.version)


def _created(client: Any, name: str) -> str:
    """The name of the registered model, which is created if it is not there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    return name
