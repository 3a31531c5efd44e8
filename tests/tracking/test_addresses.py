"""`esper sync` of somebody else's folder: no credentials to its addresses, nothing read or written outside of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from esper import fit
from esper.cli import main
from esper.configs import CheckpointConfig, RedisConfig, TrackingConfig
from esper.tracking import Journal
from tests.tracking.conftest import client, ended, started, trained

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-9b2c")
    monkeypatch.setenv("LAB_SECRET", "canary-9b2c")


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(f"{self.path} {self.headers['Authorization']}")
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", paths
    server.shutdown()
    server.server_close()


def write_run(outputs: Path, name: str = "run", **changes: Any) -> Path:
    journal = Journal(outputs / "tiny" / name / "journal.jsonl")
    started(journal, **changes)
    trained(journal, range(1, 3))
    ended(journal, "failed")
    journal.close()
    return journal.path.parent


def sync(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(["sync", *arguments])
    return capsys.readouterr().out


def test_an_address_in_the_folder_gets_nothing_until_the_user_names_it(
    tmp_path: Path, requests: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, paths = requests
    run_dir = write_run(tmp_path, tracking=TrackingConfig(uri=url))
    printed = sync(capsys, str(run_dir))
    assert f"its journal has tracking.uri={url}, an address that you have not used on this machine" in printed
    assert paths == []
    (command,) = re.findall("If it is yours: esper (.*)", printed)
    sync(capsys, *shlex.split(command)[1:])
    asked = len(paths)
    assert asked > 0
    sync(capsys, str(run_dir))  # from now on it is known
    assert len(paths) > asked


@pytest.mark.parametrize("uri", ["{}/${{oc.env:LAB_SECRET}}", "{}\n", "sqlite:////tmp/canary-of-esper.db"])
def test_neither_variables_nor_databases_are_touched_for_an_unknown_address(
    tmp_path: Path, requests: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    url, paths = requests
    run_dir = write_run(tmp_path, tracking=TrackingConfig(uri=uri.format(url)))
    printed = sync(capsys, str(run_dir))
    assert "an address that you have not used" in printed
    assert "canary-9b2c" not in printed
    assert paths == []
    assert not Path("/tmp/canary-of-esper.db").exists()


def test_the_bus_in_the_folder_gets_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(
        tmp_path, bus="redis", redis=RedisConfig(url="rediss://127.0.0.1:9"), tracking=TrackingConfig(name="none")
    )
    assert "redis.url=rediss://127.0.0.1:9, an address that you have not used" in sync(capsys, str(run_dir))
    named = sync(capsys, "--redis", "rediss://127.0.0.1:9", str(run_dir))
    assert "Redis: failed: rediss://127.0.0.1:9: " in named


def test_the_address_of_mlflows_variable_is_the_users(
    tmp_path: Path,
    requests: tuple[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, paths = requests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    sync(capsys, str(write_run(tmp_path, tracking=TrackingConfig(uri=url))))
    assert paths


@pytest.mark.long
def test_the_address_of_a_training_is_the_users(
    tmp_path: Path,
    requests: tuple[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, paths = requests
    monkeypatch.chdir(tmp_path)
    data = ["dataset=synthetic", "dataset.num_examples=200", "dataset.image_size=8", "dataset.val_split=0.4"]
    small = ["model=resnet_small", "model.widths=[4]", "model.depths=[1]", "dataset.batch_size=32", "morphogenetic=off"]
    short = ["optimization.max_epochs=1", "optimization.warmup_epochs=0"]
    address = f"tracking.uri='{url}/${{oc.env:LAB_SECRET}}'"
    run_dir = fit(*data, *small, *short, address).run_dir
    del paths[:]
    capsys.readouterr()
    assert "an address that you have not used" not in sync(capsys, str(run_dir))
    assert any("canary-9b2c" in path for path in paths)


@pytest.mark.parametrize("name", ["journal.jsonl", "report.html", "mlflow.json", "wandb", "bus.json"])
def test_a_link_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run_dir = write_run(tmp_path)
    outside = tmp_path / "outside"
    outside.write_bytes((run_dir / "journal.jsonl").read_bytes())
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(outside)
    assert f"{run_dir / name} is a link or no file" in sync(capsys, str(run_dir))
    assert not (tmp_path / "mlflow.db").exists()


def test_a_fifo_does_not_hang(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run(tmp_path)
    os.mkfifo(run_dir / "config.yaml")
    assert "config.yaml is a link or no file" in sync(capsys, str(run_dir))


def test_no_checkpoint_or_artifact_leaves_or_enters_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "outside" / name / "step-00000002"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"step": 2}))
        (folder / "model.safetensors").write_text("secret")
    checkpoint = CheckpointConfig(checkpoint_dir=str(tmp_path / "outside"))
    elsewhere = write_run(tmp_path / "outputs", "a", checkpoint=checkpoint)
    linked = write_run(tmp_path / "outputs", "b")
    (linked / "checkpoints").symlink_to(tmp_path / "outside" / "b")
    printed = sync(capsys, str(elsewhere), str(linked))
    assert printed.count("MLflow: failed, 14 new points; not uploaded: ") == 2, printed
    for left_out in (tmp_path / "outside" / "a" / "step-00000002", linked / "checkpoints" / "step-00000002"):
        assert f"not uploaded: {left_out}, which lies or leads outside of the run folder\n" in printed
    assert not list((tmp_path / "outputs").rglob("mlartifacts/**/model.safetensors"))

    client(tmp_path / "outputs").create_experiment("mine", artifact_location=(tmp_path / "outside").as_uri())
    hostile = write_run(tmp_path / "outputs", "c", tracking=TrackingConfig(experiment="mine"))
    printed = sync(capsys, str(hostile))
    assert "keeps this run's files at file://" in printed
    assert {path.name for path in (tmp_path / "outside").iterdir()} == {"a", "b"}
