"""A training that reports to a real MLflow server, seen in a browser, and its network loaded from the registry."""

from __future__ import annotations

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

from esper import fit
from esper.configs import TrackingConfig
from esper.errors import ConfigError
from esper.launch.run import Outcome
from tests.browser import dom, needs_chromium
from tests.conftest import tiny_config

pytestmark = [pytest.mark.long, needs_chromium]
CHARTS = re.compile(r"http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}/model-metrics\?\S+")


def start(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1", *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def await_reply(server: subprocess.Popen[bytes], address: str) -> None:
    latest = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            assert time.monotonic() < latest
            assert server.poll() is None
            time.sleep(0.2)
        else:
            return


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server; its options are the parameter."""
    with socket.socket() as bound:  # nobody else is given its port; the server sets the option, too, and so may bind it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with start(tmp_path, port, *getattr(request, "param", [])) as process:
            try:
                await_reply(process, address := f"http://127.0.0.1:{port}")
                yield address
            finally:
                process.terminate()


def train(folder: Path) -> Outcome:
    return fit(config=tiny_config(tracking=TrackingConfig(register="stripes")), run_dir=folder / "tiny" / "run")


def page_with(text: str, address: str, profile: Path) -> str:
    """The page once it has a text; it loads megabytes of scripts, which the profile then has."""
    for wait_ms in (10_000, 30_000, 60_000):
        if text in (page := dom(address, profile, wait_ms=wait_ms)):
            break
    return page


def test_the_printed_address_opens_the_charts_and_the_model_is_in_the_registry(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    outcome = train(tmp_path)
    printed = capsys.readouterr().out
    assert "models:/stripes/1" in printed
    (address,) = CHARTS.findall(printed)
    assert address.startswith(server)
    page = page_with(">epoch<", address, tmp_path / "profile")
    for text in (">epoch<", ">growth<", "Search metric charts", "Model training"):  # groups of charts
        assert text in page

    from mlflow import pyfunc

    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    found = pyfunc.load_model("models:/stripes/1").predict(images)
    assert list(found["label"]) == [one.label for one in outcome.network.predict(images)]


@pytest.mark.parametrize("server", [["--registry-store-uri", "ftp://nowhere"]], indirect=True)
def test_a_server_without_a_registry_is_an_error_before_the_training(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(
        ConfigError, match=r"^tracking\.register=stripes: http://127\.0\.0\.1:\d+ refuses: .*unavailable"
    ):
        train(tmp_path)
    assert not (tmp_path / "tiny").exists()
