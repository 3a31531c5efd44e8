"""The thread that reports a run: close is bounded, and a tracker that fails costs one warning."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy.exc import OperationalError

from esper.tracking import Journal, Tracker, TrackerThread, sync
from esper.tracking.tracker_thread import short_message
from tests.tracking.conftest import client, ended, start_thread, started, trained, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def names_a_run(path: Path) -> bool:
    return path.exists() and bool(json.loads(path.read_text())["run_ids"])


def reported_steps(outputs: Path) -> tuple[str, list[int]]:
    """Status of the one run there, and the steps of its training loss."""
    (run,) = client(outputs).search_runs(["1"])
    return run.info.status, [one.step for one in client(outputs).get_metric_history(run.info.run_id, "train/loss")]


def test_a_run_is_reported_while_it_trains_and_sync_has_nothing_to_add(journal: Journal, tmp_path: Path) -> None:
    warnings: list[str] = []
    started(journal)
    thread = start_thread(journal, warnings)
    trained(journal, range(1, 5))
    wait_for(lambda: names_a_run(journal.path.parent / "mlflow.json"))  # before the run has ended
    trained(journal, range(5, 9))
    ended(journal)
    thread.close(60)
    assert reported_steps(tmp_path) == ("FINISHED", list(range(1, 9)))
    assert sync.main([journal.path.parent], None) == 0
    assert reported_steps(tmp_path) == ("FINISHED", list(range(1, 9)))
    assert warnings == []


def test_after_an_outage_everything_arrives_once(journal: Journal, tmp_path: Path) -> None:
    database = tmp_path / "elsewhere" / "mlflow.db"
    database.parent.touch()  # a file where a folder must be: the database cannot be made
    warnings: list[str] = []
    started(journal)
    thread = start_thread(journal, warnings, uri=f"sqlite:///{database}")
    trained(journal, range(1, 5))
    wait_for(lambda: warnings)
    database.parent.unlink()
    trained(journal, range(5, 9))
    ended(journal)
    thread.close(60)
    assert reported_steps(database.parent) == ("FINISHED", list(range(1, 9)))
    assert len(warnings) == 1


def test_a_refused_connection_is_one_warning_that_names_the_remedy_and_no_password(journal: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    warnings: list[str] = []
    started(journal)
    thread = start_thread(journal, warnings, uri=f"http://me:s3cret@127.0.0.1:{port}")
    ended(journal)
    time.sleep(0.5)
    thread.close()
    thread.close()
    (warning,) = warnings
    assert warning.startswith(f"MLflow at http://127.0.0.1:{port} is behind (")
    assert f"`esper sync {journal.path.parent}` catches up" in warning
    assert "s3cret" not in warning
    assert "\n" not in warning


def test_closing_does_not_wait_for_a_server_that_never_answers(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    warnings: list[str] = []
    started(journal)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        thread = start_thread(journal, warnings, uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        ended(journal)
        thread.close(timeout_s=0.5)
        assert thread._thread.is_alive()  # waits for the answer
        (warning,) = warnings
        assert "not done within 0.5 s" in warning
    thread.close(30)  # the connection is gone; the thread must not meet the next test
    assert not thread._thread.is_alive()


def test_a_tracker_that_is_away_for_ever_is_tried_for_ever(journal: Journal) -> None:
    tries = 0

    def away() -> NoReturn:
        nonlocal tries
        tries += 1
        raise OSError("away")

    target = Tracker(name="nothing", place="nowhere", open=away)
    started(journal)
    # So short that 1,100 doublings later it is still nothing.
    thread = TrackerThread(target, interval_s=5e-324, run_dir=journal.path.parent, warn=lambda _: None)
    started(journal)
    wait_for(lambda: tries > 1100)
    thread.close()


def test_a_warning_shows_no_parameters_of_a_failed_statement() -> None:
    error = OperationalError("select * from runs where name = ?", ("SECRET",), Exception("no such table: runs"))
    assert "SECRET" in str(error)
    assert short_message(error) == "(builtins.Exception) no such table: runs"
