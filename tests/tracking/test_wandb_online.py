"""W&B with a server: resumed after a kill, away for a while, silent, or without a key."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.configs import TrackingConfig
from esper.tracking import Journal, WandbRun, read, sync
from tests.tracking.conftest import ended, start_thread, started, trained, wait_for
from tests.tracking.wandb_server import Server, served

# Reports a journal whose run goes on, and is killed when the server has some of it.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from esper.configs import TrackingConfig
from esper.tracking import WandbRun, read
run_dir = Path(sys.argv[1])
run = WandbRun(TrackingConfig(), run_dir=run_dir)
run.ingest(read(run_dir / "journal.jsonl"))
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    # Its service reads these once. `teardown` also forgets the service: a restored WANDB_SERVICE would name a dead one.
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with served(Server()) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def steps(server: Server) -> list[int]:
    (rows,) = server.history.values()
    return [row["_step"] for row in rows]


def test_a_run_is_reported_while_it_trains_and_sync_has_nothing_to_add(journal: Journal, server: Server) -> None:
    warnings: list[str] = []
    started(journal, tracking=TrackingConfig(name="wandb"))
    thread = start_thread(journal, warnings, name="wandb")
    trained(journal, range(1, 5))
    wait_for(lambda: server.history)  # before the run has ended
    trained(journal, range(5, 9))
    ended(journal)
    thread.close(60)
    assert sync.main([journal.path.parent], None) == 0
    assert steps(server) == list(range(9))
    assert warnings == []


def test_a_killed_run_goes_on_in_the_same_run_with_nothing_twice_or_missing(journal: Journal, server: Server) -> None:
    started(journal)
    trained(journal, range(1, 41))
    code = [sys.executable, "-c", KILLED, str(journal.path.parent)]
    assert subprocess.run(code, env=dict(os.environ), check=False).returncode == -signal.SIGKILL
    trained(journal, range(41, 81))
    ended(journal, step=80)
    with contextlib.closing(WandbRun(TrackingConfig(), run_dir=journal.path.parent)) as run:
        run.ingest(read(journal.path))
        run.finish()
    assert steps(server) == list(range(81))
    assert server.described == [("a tiny run", ["quick", "small"])]  # once: what a person changes there stays


def test_what_was_reported_offline_reaches_a_server_by_sync(
    journal: Journal, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    started(journal, tracking=TrackingConfig(name="wandb"))
    trained(journal, range(1, 9))
    ended(journal)
    assert sync.main([journal.path.parent], None) == 0
    assert server.history == {}
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    assert sync.main([journal.path.parent], None) == 0
    assert steps(server) == list(range(9))
    assert server.described == [("a tiny run", ["quick", "small"])]


@pytest.mark.long
def test_after_an_outage_everything_arrives_once(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    server = Server()  # its socket is open, but nobody answers
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    started(journal)
    with monkeypatch.context() as brief:
        brief.setattr("esper.tracking.wandb._INIT_S", 1)
        thread = start_thread(journal, warnings, name="wandb")
        trained(journal, range(1, 5))
        wait_for(lambda: warnings)
    trained(journal, range(5, 9))
    with served(server):
        ended(journal)
        thread.close(60)
        assert steps(server) == list(range(9))
    (warning,) = warnings
    assert warning.startswith("W&B at esper-morphogenetic is behind (")


def test_closing_does_not_wait_for_a_server_that_never_answers(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.tracking.wandb._INIT_S", 2)
    warnings: list[str] = []
    started(journal)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        thread = start_thread(journal, warnings, name="wandb")
        ended(journal)
        thread.close(timeout_s=0.5)
        assert thread._thread.is_alive()  # waits for the answer
        (warning,) = warnings
        assert "not done within 0.5 s" in warning
        thread.close(30)  # the thread must not meet the next test


def test_without_a_key_nobody_is_asked_for_one(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    warnings: list[str] = []
    started(journal)
    thread = start_thread(journal, warnings, name="wandb")
    ended(journal)
    thread.close(30)
    (warning,) = warnings
    assert "No API key configured" in warning
    assert f"`esper sync {journal.path.parent}` catches up" in warning
