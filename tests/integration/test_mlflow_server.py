"""A training that reports to a real MLflow server, seen in a browser, and its network loaded from the registry."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import esper
from tests.browser import dom, needs_chromium

pytestmark = [pytest.mark.long, needs_chromium]
TRAIN = "from esper.train import main; main()"
SMALL = ["experiment=debug", "debug_mode=false", "morphogenetic=off", "optimization.max_epochs=2"]
NOT_A_STORE = "ftp://nowhere"
CHARTS = re.compile(r"http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}/model-metrics\?\S+")


def serve(folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1", *options]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, latest = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while time.monotonic() < latest and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return server, address
    server.kill()
    raise AssertionError("the server did not start")


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server; its options are the parameter."""
    process, address = serve(tmp_path, *getattr(request, "param", []))
    yield address
    process.terminate()
    process.wait()


def train(folder: Path, uri: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", TRAIN, *SMALL, "tracking=mlflow", "tracking.register=debug", *overrides]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_printed_address_opens_the_charts_and_the_model_is_in_the_registry(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = train(tmp_path, server)
    assert done.returncode == 0, done.stderr
    assert "models:/debug/1" in done.stdout
    (address,) = CHARTS.findall(done.stdout)
    assert address.startswith(server)
    page = dom(address, tmp_path / "profile", wait_ms=20000)
    for text in ("Model metrics", "val_accuracy", "train_loss"):
        assert text in page
    assert "Model training" in page

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    from mlflow import pyfunc

    (run_dir,) = (tmp_path / "outputs" / "debug").iterdir()
    network = esper.load(run_dir)
    images = np.random.default_rng(0).integers(0, 256, (4, *network.interface.inputs), dtype=np.uint8)
    found = pyfunc.load_model("models:/debug/1").predict(images)
    assert list(found["label"]) == [one.label for one in network.predict(images)]


@pytest.mark.parametrize("server", [["--registry-store-uri", NOT_A_STORE]], indirect=True)
def test_a_server_without_a_registry_is_an_error_before_the_training(tmp_path: Path, server: str) -> None:
    done = train(tmp_path, server)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: tracking.register=debug: {server} refuses: ")
    assert line.endswith("name a server with a model registry in tracking.uri, or leave it out")
    assert not (tmp_path / "outputs").exists()
