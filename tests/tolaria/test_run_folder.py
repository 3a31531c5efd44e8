"""A run folder that is damaged is mended; one that is not this process's any more is not written in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper import fit
from esper.errors import RunError, WriteError
from esper.files import write_atomically
from esper.report.run_record import read_run
from esper.tolaria.run_folder import RunFolder, recorded_config
from esper.tracking.journal import read
from esper.tracking.liveness import read_status, recorded_status
from tests.forked import suspend
from tests.sweep.test_launch import finish, start
from tests.tracking.conftest import wait_for
from tests.tracking.test_liveness import LONG, has_epoch

DEBUG = ("experiment=debug", "debug_mode=false", "morphogenetic=off", "tracking=none", "device=cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run_dir = tmp_path_factory.mktemp("damaged") / "out"
    fit(*DEBUG, run_dir=run_dir)
    return run_dir


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def interrupt(run_dir: Path) -> None:
    """Leave the run as a kill before its last epoch was saved does."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "journal.jsonl").write_text("".join(line for line in lines if '"run_ended"' not in line))
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps({**status, "status": "running", "result": None}))
    for prefix in ("step", "best"):
        shutil.rmtree(max((run_dir / "checkpoints").glob(f"{prefix}-*")))


def flip(path: Path, text: bytes) -> None:
    """Flip a bit of the first byte of a text in a file."""
    content = path.read_bytes()
    path.write_bytes(content.replace(text, bytes([text[0] ^ 2]) + text[1:], 1))


def notices(run_dir: Path) -> list[str]:
    return [event["message"] for event in read(run_dir / "journal.jsonl") if event["kind"] == "notice"]


# --- what can be rebuilt is rebuilt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", '{"status": "run', "[]", '{"status": "finished", "reason": "", "result": null}']
)
def test_a_damaged_status_does_not_stop_a_run_whose_checkpoints_are_sound(out: Path, content: str) -> None:
    interrupt(out)
    (out / "status.json").write_text(content)
    assert read_status(out)[0] == "killed"
    outcome = fit(*DEBUG, run_dir=out)
    assert outcome.result is not None
    assert recorded_status(out)["status"] == "finished"  # type: ignore[index]
    assert (out / "status.damaged.json").read_text() == content
    events = list(read(out / "journal.jsonl"))
    assert [event["resumed_from"] is not None for event in events if event["kind"] == "run_started"] == [False, True]
    assert any("status.damaged.json" in message for message in notices(out))


@pytest.mark.parametrize("content", ["", "{}", '{"status": "finished", "reason": "", "result": {"val_accuracy": 1}}'])
def test_the_status_of_a_finished_run_comes_back_from_the_journal(
    out: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, journal = recorded_status(out), (out / "journal.jsonl").read_bytes()
    assert before is not None
    (out / "status.json").write_text(content)
    assert fit(*DEBUG, run_dir=out).result == before["result"]
    assert "status.json: damaged, moved to status.damaged.json" in capsys.readouterr().out
    assert (out / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize("text", [b'"run_started"', b'"validation"', b'"kind": "checkpoint"'])
def test_one_flipped_bit_in_the_journal_does_not_stop_a_run(out: Path, text: bytes) -> None:
    interrupt(out)
    flip(out / "journal.jsonl", text)
    with pytest.raises(
        RunError, match=r"journal\.jsonl, line \d+ is damaged: .*; the run's own command sets that line"
    ):
        read_run(out)
    assert fit(*DEBUG, run_dir=out).result is not None
    assert read_run(out).status == "finished"
    assert (out / "journal.damaged.jsonl").read_bytes().count(b"\n") == 1
    assert any("journal.damaged.jsonl" in message for message in notices(out))


@pytest.mark.parametrize(
    "damage", [lambda text: "", lambda text: text[:400], lambda text: text.replace("model:", "a: [")]
)
def test_the_configuration_comes_back_from_the_journal(out: Path, damage: Callable[[str], str]) -> None:
    file = out / "config.yaml"
    before = yaml.safe_load(file.read_text())
    file.write_text(damage(file.read_text()))
    with pytest.raises(RunError, match=r"out holds a run of other settings: rng_seed: 0 → 4"):
        fit(*DEBUG, "rng_seed=4", run_dir=out)
    with pytest.raises(RunError, match=r"config\.yaml is not the configuration.*; the run's own command rebuilds it"):
        recorded_config(out)
    assert fit(*DEBUG, run_dir=out).result is not None
    assert recorded_config(out) == before
    assert (out / "config.damaged.yaml").exists()


def test_a_configuration_that_is_a_link_to_nowhere_is_damaged_and_not_missing(out: Path) -> None:
    file = out / "config.yaml"
    before = recorded_config(out)
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(
        RunError, match=r"config\.yaml is not the configuration of a run; the run's own command rebuilds"
    ):
        recorded_config(out)
    assert fit(*DEBUG, run_dir=out).result is not None
    assert recorded_config(out) == before


def test_finished_without_a_result_is_not_finished(out: Path) -> None:
    interrupt(out)
    status = json.loads((out / "status.json").read_text())
    (out / "status.json").write_text(json.dumps({**status, "status": "finished"}))
    with pytest.raises(RunError, match=r"status\.json is damaged: .*finished without a result"):
        recorded_status(out)
    assert fit(*DEBUG, run_dir=out).result is not None
    assert recorded_status(out)["result"] is not None  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [{"pid": -1}, {"pid": 10**30}, {"status": "done"}, {"reason": None}, {"result": {"seconds": -1}}, {"host": 3}],
)
def test_a_status_is_read_strictly(out: Path, change: dict[str, Any]) -> None:
    status = json.loads((out / "status.json").read_text())
    (out / "status.json").write_text(json.dumps({**status, **change}))
    with pytest.raises(RunError, match=r"status\.json is damaged: "):
        recorded_status(out)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("journal.jsonl", "journal.jsonl is not a regular file; restore it, or move its folder elsewhere"),
        (".lock", "cannot write .*/out/.lock: Is a directory"),
    ],
)
def test_a_folder_instead_of_a_file_that_a_run_needs_is_named(out: Path, name: str, told: str) -> None:
    (out / name).unlink()
    (out / name).mkdir()
    with pytest.raises(RunError, match=told):
        fit(*DEBUG, run_dir=out)


def test_leftovers_of_dead_processes_go_and_those_of_others_stay(out: Path) -> None:
    host = socket.gethostname()
    dead = (out / f".report.html.{host}.999999999", out / f".status.json.{host}.999999998")
    others = (
        out / f".status.json.{host}.{os.getppid()}",
        out / ".status.json.another-host.999999999",
        out / f".notes.{host}.999999999",
    )
    for path in (*dead, *others):
        path.write_text("half")
    interrupt(out)
    fit(*DEBUG, run_dir=out)
    assert [path.exists() for path in dead] == [False, False]
    assert [path.exists() for path in others] == [True, True, True]


# --- fencing ----------------------------------------------------------------------------------------------------------


def remove_lock(run_dir: Path) -> None:
    (run_dir / ".lock").unlink()


def replace_lock(run_dir: Path) -> None:
    remove_lock(run_dir)
    RunFolder(run_dir).acquire()


def replace_folder(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("elsewhere"))
    shutil.copytree(run_dir.with_name("elsewhere"), run_dir)


@pytest.mark.parametrize("change", [remove_lock, replace_lock, shutil.rmtree, replace_folder])
def test_a_folder_that_another_process_may_have_is_not_written_in(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.acquire()
    folder.set_status("running")
    change(tmp_path / "out")
    with pytest.raises(WriteError, match=r"out or the \.lock in it was removed or replaced while the run trained"):
        folder.set_status("finished", result={})
    assert not (tmp_path / "out").exists() or recorded_status(tmp_path / "out")["status"] == "running"  # type: ignore[index]
    folder.release()


@pytest.mark.long
@pytest.mark.parametrize("change", [remove_lock, shutil.rmtree, replace_folder])
def test_a_run_whose_folder_goes_ends_with_one_line_and_writes_no_more(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    process = start(*LONG, "hydra.run.dir=out", cwd=tmp_path)
    wait_for(lambda: has_epoch(tmp_path / "out"))
    suspend(process)  # not while the folder is half removed
    change(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    process.send_signal(signal.SIGCONT)
    code, _, err = finish(process)
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith(f"error: {tmp_path / 'out'} or the .lock in it was removed or replaced")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {tmp_path / "out" / "train.log"}
    if change is shutil.rmtree:
        assert not (tmp_path / "out").exists()


def test_moving_a_folder_and_linking_its_old_name_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.acquire()
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "out").symlink_to(tmp_path / "moved")
    folder.set_status("interrupted")
    assert recorded_status(tmp_path / "moved")["status"] == "interrupted"  # type: ignore[index]
    folder.release()


def test_a_page_may_name_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "report.html", f"run {tmp_path / os.fsdecode(b'od' + bytes([255]))}")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == f"run {tmp_path}/od\\udcff"
