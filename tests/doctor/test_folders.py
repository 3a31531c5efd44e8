"""Findings of `esper doctor` about folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esper.doctor import folders, servers
from esper.doctor.finding import FAILED, NOT_USED, OK, WARNING
from tests.doctor.conftest import planned_run

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(("free_gib", "status"), [(0.5, FAILED), (5, WARNING), (50, OK)])
def test_low_space_is_a_warning_and_no_space_a_failure(monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str):
    usage = (100 * 2**30, 0, int(free_gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(*usage))  # type: ignore[attr-defined]
    assert folders.outputs(planned_run()).status == status
    assert folders.checkpoints(planned_run("checkpoint.checkpoint_dir=kept")).status == status


def test_an_unwritable_folder_is_a_failure(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert folders.checkpoints(planned_run("checkpoint.checkpoint_dir=file/kept")).status == FAILED


def test_checks_create_no_files(tmp_path: Path):
    one = planned_run()
    for check in (folders.outputs, folders.filesystem, folders.runs, servers.mlflow):
        assert check(one).status in (OK, WARNING, NOT_USED)
    assert not list(tmp_path.iterdir())


def test_an_ignored_conf_folder_is_a_warning(tmp_path: Path):
    assert folders.settings(planned_run()).status == OK
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("")
    assert "--config-dir" in folders.settings(planned_run()).remedy


def test_killed_runs_are_listed_and_running_ones_are_not():
    from esper.tolaria.run_folder import RunFolder

    here = planned_run()
    alive, killed = (RunFolder(here.outputs_dir / "mine" / name) for name in ("alive", "killed"))
    for run in (alive, killed):
        run.acquire()
        run.set_status("running")
    killed.release()  # as when a process is killed; its .lock remains
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, filelock; a = filelock.FileLock(sys.argv[1]); a.acquire(); print(flush=True); input()",
            str(alive.path / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    alive.release()
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = folders.runs(here)
    finally:
        holder.kill()
        holder.communicate()
    assert found.status == WARNING
    assert found.found == "2, 1 of them running, 1 killed: mine/killed"
