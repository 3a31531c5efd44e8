"""Where MLflow's pages show a run: the address of its charts, on a server or on one that a command starts."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from esper.configs import TrackingConfig
from esper.errors import RunError
from esper.redact import credentials, without_credentials
from esper.tracking.mlflow_store import read_ids, tracking_uri

__all__ = ["run_page"]

_LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def run_page(config: TrackingConfig, *, run_dir: Path, outputs_dir: Path) -> dict[str, str]:
    """What opens the charts of a run, by the name that is printed; without credentials.

    Of an HTTP server, `mlflow`: the address. Else `mlflow`, the command that starts a server, and then `charts`, the
    address there. A run that MLflow does not know yet has no charts.
    """
    uri = tracking_uri(config, outputs_dir=outputs_dir)
    place = without_credentials(uri) if credentials(uri) else uri
    charts = _charts(run_dir / "mlflow.json", place=without_credentials(uri))
    parts = urlsplit(place)
    if parts.scheme in ("http", "https"):
        return {"mlflow": urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")) + charts}
    command = f"mlflow ui --backend-store-uri {shlex.quote(place)}"
    return {"mlflow": command, "charts": _LOCAL + charts} if charts else {"mlflow": command}


def _charts(file: Path, *, place: str) -> str:
    """The part of the address that names the run; empty if MLflow does not know it."""
    try:
        known = read_ids(file) or {}
    except RunError:  # `esper sync` says so
        return ""
    run, experiment = (known.get(name, {}).get(place) for name in ("run_ids", "experiment_ids"))
    if run is None or experiment is None:
        return ""
    # MLflow 3 shows pages about language models unless the address says which kind of work this is.
    return f"/#/experiments/{experiment}/runs/{run}/model-metrics?workflowType=machine_learning"
