"""A run whose process is gone is shown as killed, and one that may still run never is."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from esper.report.run_record import read_run
from esper.sweep.manifest import members_of
from esper.sweep.member_state import member_states
from esper.sweep.progress import Progress
from esper.tolaria.run_folder import RunFolder
from esper.tracking import liveness, read
from esper.tracking.liveness import killed_reason, read_status
from tests.forked import ESPER
from tests.sweep.test_launch import FAST, TINY, finish, start
from tests.tracking.conftest import wait_for

LONG = ("experiment=debug", "debug_mode=false", "morphogenetic=off", "tracking=none", "optimization.max_epochs=2000")
SEEN = r"last seen \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def has_epoch(run_dir: Path) -> bool:
    journal = run_dir / "journal.jsonl"
    return journal.exists() and '"kind": "epoch"' in journal.read_text()


def test_the_report_of_a_run_that_died_without_a_word_says_killed_and_when(tmp_path: Path) -> None:
    process = start(*LONG, "hydra.run.dir=out", cwd=tmp_path)
    wait_for(lambda: has_epoch(tmp_path / "out"))
    assert read_status(tmp_path / "out") == ("running", "")
    process.kill()
    finish(process)
    assert json.loads((tmp_path / "out" / "status.json").read_text())["status"] == "running"
    code, _, err = finish(start("report", "out", cwd=tmp_path, script=ESPER))
    assert code == 0, err
    assert re.search(rf"The run was killed: {SEEN}\.", (tmp_path / "out" / "report.html").read_text())
    record = read_run(tmp_path / "out")
    assert record.status == "killed"
    *_, last = (event["time_unix_s"] for event in read(tmp_path / "out" / "journal.jsonl"))  # a line may be cut short
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last)) in record.reason
    again = start(*LONG, "hydra.run.dir=out", cwd=tmp_path)  # resumes, and is running again
    wait_for(lambda: read_status(tmp_path / "out")[0] == "running")
    again.send_signal(signal.SIGTERM)
    assert finish(again)[0] == 143


def test_sweep_status_shows_a_member_that_was_killed(tmp_path: Path) -> None:
    launcher = start(*TINY, FAST, "rng_seed=0", "optimization.max_epochs=2000", cwd=tmp_path)
    sweep_dir = tmp_path / "outputs" / "debug"
    wait_for(lambda: any(map(has_epoch, sweep_dir.glob("*-*"))))
    (member,) = members_of(sweep_dir)
    os.kill(json.loads((member.run_dir / "status.json").read_text())["pid"], signal.SIGKILL)
    code, out, err = finish(launcher)
    assert (code, "  killed " in out) == (1, True), err
    code, out, _ = finish(start("sweep", "status", "outputs/debug", cwd=tmp_path, script=ESPER))
    assert code == 1
    assert out.startswith("1 runs: 1 killed\n")
    assert re.search(rf"^killed \S+: {SEEN}; its process exited with code -9", out, flags=re.MULTILINE)
    shutil.rmtree(member.run_dir)  # what never began to train was not killed in it
    assert member_states([member])[member.name].state == "lost"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A run folder whose process let go of the lock without writing how it ended."""
    folder = RunFolder(tmp_path)
    folder.acquire()
    folder.set_status("running")
    assert killed_reason(tmp_path) == ""
    folder.release()
    return tmp_path


def on_another_host(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps({**status, "host": "elsewhere"}))


def test_without_an_event_it_was_last_seen_at_its_start(left: Path) -> None:
    assert re.fullmatch(SEEN, killed_reason(left))


@pytest.mark.parametrize(
    ("mount", "status"),
    [
        (("ext4", ["rw"]), "killed"),  # of another container of this machine
        (("nfs4", ["rw", "local_lock=none"]), "killed"),
        (("nfs4", ["rw", "local_lock=all"]), "running"),
        (("lustre", ["rw", "flock"]), "killed"),
        (("lustre", ["rw", "localflock"]), "running"),
        (("beegfs", ["rw"]), "running"),
    ],
)
def test_a_run_of_another_host_is_killed_only_where_its_lock_would_be_seen(
    left: Path, monkeypatch: pytest.MonkeyPatch, mount: tuple[str, list[str]], status: str
) -> None:
    on_another_host(left)
    monkeypatch.setattr(liveness, "mount_of", lambda folder: mount)  # such filesystems cannot be mounted in a test
    assert read_status(left)[0] == status


def test_without_a_lock_file_the_process_tells(left: Path) -> None:
    (left / ".lock").unlink()
    assert read_status(left) == ("running", "")  # this process is there
    gone = subprocess.Popen(["true"])
    gone.wait()
    status = json.loads((left / "status.json").read_text())
    (left / "status.json").write_text(json.dumps({**status, "pid": gone.pid}))
    assert read_status(left)[0] == "killed"
    on_another_host(left)
    assert read_status(left)[0] == "running"


def test_a_pipe_instead_of_a_file_is_not_waited_for(left: Path) -> None:
    (left / ".lock").unlink()
    for name in (".lock", "journal.jsonl"):
        os.mkfifo(left / name)
    works = [lambda: read_status(left), Progress(journal=left / "journal.jsonl").update]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
        thread.join(timeout=5)
    assert [thread.is_alive() for thread in threads] == [False, False]


def test_showing_a_status_does_not_keep_a_run_from_starting(left: Path) -> None:
    watching = "import sys; from pathlib import Path; from esper.tracking.liveness import killed_reason\n"
    watching += "print(flush=True)\nwhile True: killed_reason(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", watching, str(left)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(50):
            folder = RunFolder(left)
            folder.acquire()
            folder.release()
    finally:
        process.kill()
        process.communicate()


def test_a_command_that_is_suspended_while_it_looks_at_the_lock_does_not_keep_a_run_from_starting(left: Path) -> None:
    folder = RunFolder(left)
    with (left / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        goes_on = threading.Timer(0.8, fcntl.flock, (file, fcntl.LOCK_UN))
        goes_on.start()
        try:
            folder.acquire()
        finally:
            goes_on.join()
    folder.release()
