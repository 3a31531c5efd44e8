"""Where MLflow's pages show a run: the address of its charts, on a server or on one that a command starts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from esper.configs import TrackingConfig
from esper.errors import RunError
from esper.redact import credentials, without_credentials
from esper.tracking.mlflow_store import read_ids, tracking_uri

__all__ = ["mlflow_links"]

_LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def mlflow_links(config: TrackingConfig, *, run_dir: Path, outputs_dir: Path) -> dict[str, str]:
    """What opens the charts of a run, by the name that is printed; without credentials.

    Of an HTTP server, `mlflow`: the address. Else `mlflow`, the command that starts a server, and then `charts`, the
    address there. A run that MLflow does not know yet has no charts. `model`: the version that it was registered as.
    """
    uri = tracking_uri(config, outputs_dir=outputs_dir)
    place = without_credentials(uri) if credentials(uri) else uri
    try:
        known = read_ids(run_dir / "mlflow.json") or {}
    except RunError:  # `esper sync` says so
        known = {}
    charts = _charts(known, place=without_credentials(uri))
    parts = urlsplit(place)
    if parts.scheme in ("http", "https"):
        page = {"mlflow": urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")) + charts}
    else:
        page = {"mlflow": f"mlflow ui --backend-store-uri {shlex.quote(place)}"}
        page |= {"charts": _LOCAL + charts} if charts else {}
    versions = known.get("versions", {}).get(without_credentials(uri), {})
    if config.register in versions:
        page["model"] = shlex.quote(f"models:/{config.register}/{versions[config.register]['version']}")
    return page


def _charts(known: Mapping[str, Any], *, place: str) -> str:
    """The part of the address that names the run; empty if MLflow does not know it."""
    run, experiment = (known.get(name, {}).get(place) for name in ("run_ids", "experiment_ids"))
    if run is None or experiment is None:
        return ""
    # MLflow 3 shows pages about language models unless the address says which kind of work this is.
    return f"/#/experiments/{experiment}/runs/{run}/model-metrics?workflowType=machine_learning"
