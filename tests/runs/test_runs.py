"""`esper runs`: what is listed, in which order, and what can be removed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import threading
from pathlib import Path

import pytest

from esper.cli import main
from esper.configs.load import to_yaml
from esper.launch.run import run
from esper.runs import command
from esper.tolaria.run_folder import RunFolder
from esper.tracking.files import read_members, write_members
from tests.conftest import result_of, tiny_config
from tests.forked import ESPER, ForkedPython

BITS = {"name": "bits_per_byte", "label": "bits a byte", "unit": "bits", "higher_is_better": False}


def made(run_dir: Path, status: str, *, at: float = 100.0, seed: int = 0, **result: object) -> Path:
    """A run folder as a run leaves it."""
    run_dir.mkdir(parents=True)
    found = result_of(**result) if status == "finished" else None
    (run_dir / "status.json").write_text(json.dumps({"status": status, "reason": "", "result": found}))
    event = {"kind": "notice", "time_unix_s": at, "step": 0, "level": "INFO", "message": "m"}
    (run_dir / "journal.jsonl").write_text(json.dumps(event) + "\n")
    (run_dir / "config.yaml").write_text(to_yaml(tiny_config(rng_seed=seed)))
    return run_dir


def esper(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return int(ended.value.code or 0)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    capsys.readouterr()
    assert esper("runs", *arguments, "--json") == 0
    return [row["name"] for row in json.loads(capsys.readouterr().out)]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    made(tmp_path / "e" / "good", "finished", at=300, test_accuracy=0.9, total_macs=50, seconds=9.0)
    made(tmp_path / "e" / "bad", "finished", at=100, seed=3, test_accuracy=0.5, total_macs=20, seconds=5.0)
    made(tmp_path / "other" / "failed", "failed", at=200)
    return tmp_path


def test_the_table_shows_figures_with_units_and_costs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = {"metrics": [BITS], "test_bits_per_byte": 1.5, "val_bits_per_byte": 1.6}
    made(outputs / "text" / "gpt", "finished", total_macs=7_000_000_000, seconds=61, **loss)
    assert esper("runs", outputs) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["experiment", "name", "status", "figure", "MACs", "time", "age"]
    assert table[1].split()[:9] == ["e", "good", "finished", "test", "accuracy", "90.0", "%", "50", "0:09"]
    text = next(line for line in table if "gpt" in line)
    assert "test bits a byte 1.500 bits" in text
    assert "7.00 G" in text
    assert text.split()[-1] == "d"


def test_runs_are_sorted_best_cheapest_and_newest_first(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, outputs) == ["good", "failed", "bad"]
    assert listed(capsys, outputs, "--sort", "figure") == ["good", "bad", "failed"]
    assert listed(capsys, "--sort", "macs", outputs) == ["bad", "good", "failed"]
    assert listed(capsys, outputs, "--sort", "macs", "--reverse") == ["good", "bad", "failed"]
    assert listed(capsys, outputs, "--sort", "experiment") == ["bad", "good", "failed"]


def test_runs_are_filtered_by_name_column_and_setting(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, outputs, "--filter", "status=FIN*") == ["good", "bad"]
    assert listed(capsys, outputs, "--filter", "other/") == ["failed"]
    assert listed(capsys, outputs, "--filter", "rng_seed=3") == ["bad"]
    assert listed(capsys, outputs, "--filter", "max_epochs=3", "--filter", "experiment=other") == ["failed"]
    assert esper("runs", outputs, "--filter", "optimization.max_epoch=3") == 2
    assert "did you mean optimization.max_epochs?" in capsys.readouterr().err


def test_a_run_without_a_result_shows_what_it_has_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(tiny_config(), tmp_path / "e" / "run")
    events = [json.loads(line) for line in (outcome.run_dir / "journal.jsonl").read_text().splitlines()]
    times = {event["kind"]: event["time_unix_s"] for event in events}  # the last of each kind
    ended = json.loads((outcome.run_dir / "status.json").read_text())
    (outcome.run_dir / "status.json").write_text(json.dumps({**ended, "status": "interrupted", "result": None}))
    capsys.readouterr()
    assert esper("runs", tmp_path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert outcome.result is not None
    assert 0.9 * outcome.result["total_macs"] < row["total_macs"] <= outcome.result["total_macs"]
    assert row["seconds"] == pytest.approx(times["epoch"] - times["run_started"])
    assert (row["split"], row["value"]) == ("val", outcome.result["val_accuracy"])


def test_watching_ends_when_no_run_is_running(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_QUIET_S", 1e-9)  # less than it takes to read and print
    run_dir = made(outputs / "e" / "live", "running")
    folder = RunFolder(run_dir)
    folder.acquire()
    (run_dir / "status.json").write_text(
        json.dumps({"status": "running", "reason": "", "pid": os.getpid(), "host": os.uname().nodename})
    )
    seen = threading.Event()

    def watch() -> None:
        command.listing(outputs, sort="age", is_reversed=False, filters=[], as_json=False, watch=True, interval_s=0.01)
        seen.set()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert not seen.wait(0.2)
    finally:
        folder.set_status("interrupted")
        folder.release()
        thread.join(20)
    assert seen.is_set()


def test_watching_sees_runs_that_a_search_adds_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "search" / "first", "finished")
    waits = list[float]()
    monkeypatch.setattr(command, "_QUIET_S", math.inf)  # the run that there is ended long ago

    def add_later(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            made(tmp_path / "search" / "second", "finished")
        if len(waits) == 4:
            monkeypatch.setattr(command, "_QUIET_S", -1.0)

    monkeypatch.setattr(command.time, "sleep", add_later)
    command.listing(tmp_path, sort="age", is_reversed=False, filters=[], as_json=False, watch=True)
    assert len(waits) == 4
    assert "second" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("runs", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "no run", "link", "experiment", "locked", "running"])
def test_nothing_is_removed_if_one_is_no_run_or_is_running(
    outputs: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good, other = outputs / "e" / "good", outputs / "x" / "y"
    with contextlib.ExitStack() as stack:
        if kind == "no run":
            other.mkdir(parents=True)
            (other / "journal.jsonl").write_text("mine")
        elif kind == "link":
            other.parent.mkdir()
            other.symlink_to(outputs / "e" / "bad")
        elif kind == "experiment":
            other = outputs / "e"
        elif kind == "locked":
            folder = RunFolder(made(other, "interrupted"))
            folder.acquire()
            stack.callback(folder.release)
        elif kind == "running":
            made(other, "running")
            (other / "status.json").write_text(
                json.dumps({"status": "running", "reason": "", "pid": os.getpid(), "host": os.uname().nodename})
            )
        assert esper("runs", "rm", good, other, "--yes") == 2
    error = capsys.readouterr().err
    assert str(other) in error
    assert error.count("\n") == 1
    assert good.is_dir()
    assert other.exists() or kind == "missing"


def test_a_removed_run_is_gone_from_its_sweep_too(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_members(outputs / "e", {"good": ["rng_seed=0"], "bad": ["rng_seed=3"]})
    assert esper("runs", "rm", outputs / "e" / "good", "--yes") == 0
    assert "removed 1 run, " in capsys.readouterr().out
    assert sorted(path.name for path in (outputs / "e").iterdir()) == [".sweep.json.lock", "bad", "sweep.json"]
    assert read_members(outputs / "e") == {"bad": ["rng_seed=3"]}


def test_checkpoints_elsewhere_are_named(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = outputs / "checkpoints" / "good"
    kept.mkdir(parents=True)
    config = tiny_config(checkpoint__checkpoint_dir=str(kept.parent))
    (outputs / "e" / "good" / "config.yaml").write_text(to_yaml(config))
    assert esper("runs", "rm", outputs / "e" / "good", "--yes") == 0
    assert str(kept) in capsys.readouterr().out
    assert kept.is_dir()


def test_where_nobody_can_be_asked_nothing_is_removed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper("runs", "rm", outputs / "e" / "good") == 2
    assert "add --yes" in capsys.readouterr().err
    assert (outputs / "e" / "good").is_dir()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_removing_asks(outputs: Path, answer: str) -> None:
    good = outputs / "e" / "good"
    master, terminal = pty.openpty()
    process = ForkedPython(ESPER, "runs", "rm", str(good), cwd=outputs, stdin=terminal)
    os.close(terminal)
    os.write(master, f"{answer}\n".encode())
    out, _ = process.communicate()
    os.close(master)
    assert process.returncode == {"y": 0, "n": 1}[answer]
    assert good.is_dir() is (answer == "n")
    assert str(good) in out
    assert "[y/N]" in out
