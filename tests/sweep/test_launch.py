"""Sweeps as jobs on this machine (`hydra/launcher=local`); tests/slurm has those on SLURM."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TolariaConfig
from esper.configs.paths import absolute_paths
from esper.errors import ConfigError, RunError
from esper.sweep import progress as progress_module
from esper.sweep.job import MemberJob
from esper.sweep.launchers import queue_of
from esper.sweep.manifest import Job, Member, freeze, launcher_of, members_of, write_launcher
from esper.sweep.member_state import member_states
from esper.sweep.progress import Progress
from esper.sweep.queues import local
from esper.sweep.queues.local import LocalOptions, LocalQueue
from esper.sweep.queues.slurm import private_check
from tests.forked import ESPER, ESPER_TRAIN, ForkedPython
from tests.sweep.conftest import await_signal, suspended

TINY = ["-m", "experiment=debug", "debug_mode=false", "morphogenetic=off", "hydra/launcher=local"]
FAST = "hydra.launcher.poll_s=0.2"


def start(*arguments: str, cwd: Path, script: str = ESPER_TRAIN, stdin: int = subprocess.DEVNULL) -> ForkedPython:
    return ForkedPython(script, *arguments, cwd=cwd, stdin=stdin, CUDA_VISIBLE_DEVICES="")


def finish(process: ForkedPython) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def member(sweep_dir: Path, name: str = "run-1", override: str = "rng_seed=1", **settings: object) -> Member:
    one = Member(sweep_dir=sweep_dir, name=name, overrides=(override,), cwd=str(sweep_dir), siblings={})
    freeze(one, TolariaConfig(**settings))
    return one


@pytest.mark.long
def test_members_run_two_at_a_time_and_failures_are_printed_at_the_end(tmp_path: Path):
    overrides = [*TINY, FAST, "hydra.launcher.jobs=2", "optimization.learning_rate=0.05,1e20,0.02"]
    code, out, err = finish(start(*overrides, cwd=tmp_path))
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "optimization.learning_rate=1e+20: loss, gradient or weights" in err
    assert "3 runs: 3 submitted; this machine, 2 at a time" in out
    code, out, err = finish(start(*overrides, cwd=tmp_path))
    assert code == 1
    assert "3 runs: 1 submitted, 2 already finished" in out
    code, out, _ = finish(start("sweep", "status", "outputs/debug", cwd=tmp_path, script=ESPER))
    assert code == 1
    assert out.startswith("3 runs: 2 finished, 1 failed\n")
    assert re.search(r"^learning_rate=0.05 +finished +2/2 +[0-9.]+ % ", out, flags=re.MULTILINE)
    assert re.search(
        r"^failed learning_rate=1e\+20: loss, gradient or weights at step 1 are not finite", out, flags=re.MULTILINE
    )
    assert "DivergenceError" in Path(out.split("log: ")[1].strip()).read_text()


@pytest.mark.long
def test_ctrl_c_cancels_jobs_after_they_save_and_resume_continues_them(tmp_path: Path, stops: str):
    (tmp_path / "stop").write_text("until a signal")
    launcher = start(*TINY, FAST, stops, "rng_seed=0,1", "hydra.launcher.on_interrupt=cancel", cwd=tmp_path)
    sweep_dir = tmp_path / "outputs" / "debug"
    run = suspended(tmp_path)
    launcher.send_signal(signal.SIGINT)
    await_signal(run, signal.SIGTERM)
    run.resume()
    code, out, _ = finish(launcher)
    assert code == 130
    assert "cancelled jobs " in out
    first, second = members_of(sweep_dir)
    states = member_states([first, second])
    assert {state.state for state in states.values()} == {"interrupted"}
    assert states[second.name].reason == "cancelled before it began"
    code, _, err = finish(start("sweep", "resume", str(sweep_dir), cwd=tmp_path, script=ESPER))
    assert (code, err) == (0, "")
    began = [json.loads(line) for line in (first.run_dir / "journal.jsonl").read_text().splitlines()]
    assert [one["resumed_from"] is None for one in began if one["kind"] == "run_started"] == [True, False]


@pytest.mark.long
def test_a_run_outlives_a_killed_runner_and_resume_waits_for_it(tmp_path: Path, stops: str):
    launcher = start(*TINY, FAST, stops, "optimization.max_epochs=3,2", cwd=tmp_path)
    sweep_dir = tmp_path / "outputs" / "debug"
    run = suspended(tmp_path)
    second, first = members_of(sweep_dir)
    assert first.job().short_id == str(run.pid)
    submitted, runner = second.job(), run.parent()
    launcher.kill()
    runner.kill()
    runner.wait(60)
    launcher.communicate()
    assert [state.state for state in member_states([first, second]).values()] == ["running", "lost"]
    resume = start("sweep", "resume", str(sweep_dir), cwd=tmp_path, script=ESPER)
    while second.job() in (None, submitted) and resume.poll() is None:
        time.sleep(0.1)
    run.resume()
    code, out, err = finish(resume)
    assert (code, err) == (0, "")
    assert "2 runs: 1 submitted, 1 already submitted" in out
    began = [started(one.run_dir) for one in (first, second)]
    assert [len(events) for events in began] == [1, 1]  # neither was resumed
    ended = json.loads((first.run_dir / "journal.jsonl").read_text().splitlines()[-1])
    assert ended["time_unix_s"] < began[1][0]["time_unix_s"]  # one at a time, as before


def started(run_dir: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "run_started"]


@pytest.fixture
def _sigterm() -> Iterator[None]:
    """Puts back the handler of SIGTERM, which a `_Runner` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_sigterm")
def test_a_job_that_starts_as_its_runner_is_stopped_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, popen = member(tmp_path), subprocess.Popen

    def interrupted(*command: Any, **settings: Any) -> Any:
        process = popen(*command, **settings)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(local.subprocess, "Popen", interrupted)
    runner = local._Runner(num_jobs=1, gpus=[], busy=[], queue="local", program=["esper.sweep.job"])
    runner.run([[[one]]], after=[])
    assert one.outcome()["status"] == "interrupted"


@pytest.mark.usefixtures("_sigterm")
def test_a_run_that_outlives_its_runner_keeps_its_gpu_and_can_be_cancelled(tmp_path: Path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as process:
        one = member(tmp_path)
        one.set_job(Job(queue="local", id=local._job_id(process.pid)))
        one.begin()
        assert member_states([one])["run-1"].state == "running"
        other = member(tmp_path, "run-2", "rng_seed=2")
        assert local._busy([[other]]) == [one.job().id]
        runner = local._Runner(
            num_jobs=2, gpus=["0", "1"], busy=local._busy([[other]]), queue="local", program=["esper.sweep.job"]
        )
        assert runner._free_workers == [0]
        LocalQueue(LocalOptions()).cancel([one.job()])
        assert process.wait(60) == -signal.SIGTERM
    runner._reap()
    assert runner._free_workers == [0, 1]


def test_a_job_that_ends_as_it_is_cancelled_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "_is_alive", lambda _: True)  # it was, a moment ago
    LocalQueue(LocalOptions()).cancel([Job(queue="local", id=f"{2**22 + 1}@1.00")])  # no process has such a number


@pytest.mark.long
def test_ctrl_c_at_a_terminal_asks_and_can_leave_the_jobs_running(tmp_path: Path, stops: str):
    master, terminal = pty.openpty()
    overrides = [*TINY, FAST, stops, "rng_seed=0"]
    launcher = start(*overrides, cwd=tmp_path, stdin=terminal)
    os.close(terminal)
    assert launcher.stdout is not None
    lines = iter(launcher.stdout.readline, "")
    assert any("running" in line for line in lines)
    run = suspended(tmp_path)
    launcher.send_signal(signal.SIGINT)
    os.write(master, b"n\n")
    code, out, _ = finish(launcher)
    os.close(master)
    assert code == 130
    (submitted,) = members_of(tmp_path / "outputs" / "debug")
    pid = run.pid
    assert f"1 runs are waiting or running as jobs {pid}. Cancel them? [y/N] jobs {pid} remain in the queue;" in out
    assert not member_states([submitted])[submitted.name].is_over
    again = start(*overrides, cwd=tmp_path)
    assert again.stdout is not None
    assert "1 runs: 0 submitted, 1 already submitted" in again.stdout.readline()
    run.resume()
    code, _, err = finish(again)
    assert (code, err) == (0, "")
    assert submitted.result() is not None


@pytest.mark.long
def test_runs_that_share_a_process_are_launched_and_shown_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = [*TINY[:-1], "hydra/launcher=packed", FAST, "rng_seed=0,1", "hydra.launcher.members=2"]
    code, _, err = finish(start(*packed, cwd=tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "no GPU to share; on CPUs use hydra/launcher=local" in err
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("ESPER_TEST_PACKED_ON_CPU", "1")
    code, out, err = finish(start(*packed, cwd=tmp_path))
    assert (code, err) == (0, "")
    assert "2 runs: 2 submitted" in out
    assert len({one.job() for one in members_of(tmp_path / "outputs" / "debug")}) == 1
    code, out, _ = finish(start("sweep", "status", "outputs/debug", cwd=tmp_path, script=ESPER))
    assert (code, out.splitlines()[0]) == (0, "2 runs: 2 finished")


def test_a_dry_run_lists_the_members_to_submit_and_leaves_nothing_behind(tmp_path: Path):
    code, out, err = finish(start(*TINY, "rng_seed=0,1", "dry_run=true", cwd=tmp_path))
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[:5] for row in rows[1:3]] == [[f"rng_seed={seed}", "to", "submit", "2", "1,454"] for seed in (0, 1)]
    times = [" ".join(row[5:]) for row in rows[1:3]]
    assert all(re.fullmatch(r"\d+ (s|min|h \d\d min)", one) for one in times)  # as the machine is busy
    assert "2 runs: 2 to submit; this machine, 1 at a time\n" in out
    assert not list(tmp_path.iterdir())


def test_the_installed_command_has_the_launchers(tmp_path: Path):
    # An editable install has a hydra_plugins that Hydra cannot look into.
    done = subprocess.run(
        [Path(sys.executable).with_name("esper-train"), *TINY, FAST, "rng_seed=0"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 runs: 1 submitted" in done.stdout


@pytest.mark.long
def test_a_dry_run_names_the_member_that_cannot_train(tmp_path: Path):
    code, _, err = finish(start(*TINY, "optimization.learning_rate=0.05,1e20", "dry_run=true", cwd=tmp_path))
    assert code == 1
    assert re.match(r"error: .*learning_rate=1e\+20.*: loss, gradient or weights at step 1 are not finite", err)
    assert err.count("\n") == 1


def test_a_frozen_member_reads_back_and_is_private(tmp_path: Path):
    frozen = member(tmp_path, rng_seed=7)
    (read,) = members_of(tmp_path)
    assert read == frozen
    assert read.config() == absolute_paths(TolariaConfig(rng_seed=7))
    assert (tmp_path / ".sweep").stat().st_mode & 0o777 == 0o700


def open_to_others(folder: Path) -> None:
    folder.chmod(0o770)


def link_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def give_away(folder: Path) -> None:
    os.chown(folder, 12345, -1)


def runs_after_check(folder: Path) -> bool:
    """Whether a job's script goes on after the check of a folder."""
    script = f"{private_check(folder)}\necho ran"
    return subprocess.run(["sh", "-c", script], capture_output=True, check=False).stdout == b"ran\n"


@pytest.mark.parametrize("change", [open_to_others, link_away, give_away])
@pytest.mark.parametrize("where", [".sweep", ".sweep/run-1"])
def test_a_folder_that_others_can_have_written_in_is_refused(
    tmp_path: Path, change: Callable[[Path], None], where: str
) -> None:
    if change is give_away and os.geteuid():
        pytest.skip("giving a folder away needs root")
    frozen = member(tmp_path)
    change(tmp_path / where)
    with pytest.raises(RunError, match=rf"{where} (is a link|is writable by others|belongs to another user)"):
        members_of(tmp_path)
    with pytest.raises(RunError, match=r"run the sweep's command again"):
        MemberJob(frozen.folder)()
    assert not runs_after_check(tmp_path / where)


def test_a_private_folder_passes_the_check_of_slurms_jobs(tmp_path: Path) -> None:
    member(tmp_path)
    assert runs_after_check(tmp_path / ".sweep")


def test_a_sweep_is_read_while_its_jobs_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = member(tmp_path)
    names = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*names(folder), folder / ".outcome.json.7"])  # gone by now
    assert members_of(tmp_path) == [frozen]


@pytest.mark.parametrize("name", ["member.json", "job.json", "outcome.json", "../launcher.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"queue": 3}', '{"status": "done"}', "{" * 5000, '{"a": 1e999}'])
def test_a_record_that_is_damaged_is_one_line_or_done_without(tmp_path: Path, name: str, content: str) -> None:
    one = member(tmp_path)
    one.set_job(Job(queue="local", id="1@1.00"))
    one.end("failed", reason="no luck")
    write_launcher(tmp_path, queue="local", options={})
    (one.folder / name).write_text(content)
    if name == "outcome.json":
        assert member_states(members_of(tmp_path))["run-1"].state == "lost"
        return
    with pytest.raises(RunError, match="is damaged: "):
        launcher_of(tmp_path) if name == "../launcher.json" else member_states(members_of(tmp_path))


def test_members_are_sorted_by_their_overrides(tmp_path: Path):
    for name, seed in (("a", 10), ("b", 2), ("c", 1)):
        member(tmp_path, name, f"rng_seed={seed}")
    assert [one.overrides for one in members_of(tmp_path)] == [("rng_seed=1",), ("rng_seed=2",), ("rng_seed=10",)]


def test_freezing_again_removes_the_outcome_of_the_last_job(tmp_path: Path):
    one = member(tmp_path)
    one.begin()
    one.end("failed", reason="no luck")
    assert member_states([one])["run-1"].state == "failed"
    member(tmp_path)
    assert member_states([one])["run-1"].reason == "was never submitted"


def test_a_job_whose_process_ended_without_an_outcome_is_lost_with_its_last_line(tmp_path: Path):
    one = member(tmp_path)
    one.set_job(Job(queue="local", id=f"{os.getpid()}@1.00"))  # the number is another process's by now
    one.begin()
    (one.folder / "job.log").write_text("first\nKilled\n\n")
    state = member_states([one])["run-1"]
    assert (state.state, state.reason) == ("lost", "its process ended: Killed")
    assert state.is_over


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="no sweep was launched there"):
        members_of(tmp_path)


def test_an_unknown_launcher_option_is_refused():
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.jbos: no such setting; did you mean jobs\?"):
        queue_of("local", {"jbos": 2})
    assert isinstance(queue_of("local", {"jobs": 2}), LocalQueue)


def test_progress_is_read_as_the_journal_grows_and_starts_over_when_it_is_rewound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal = tmp_path / "journal.jsonl"
    fields = {"run_name": "r", "experiment_name": "e", "total_steps": 8, "num_parameters": 1, "num_macs": 1}
    fields |= {"num_sites": 0, "device": "cpu", "environment": {}, "resumed_from": None, "step": 0, "time_unix_s": 1.0}
    config = dataclasses.asdict(TolariaConfig())
    started = json.dumps({"kind": "run_started", **fields, "total_epochs": 4, "config": config}) + "\n"
    progress = Progress(journal=journal)
    progress.update()
    assert progress.total_epochs == 0
    now = time.time()
    monkeypatch.setattr(progress_module.time, "time", lambda: now + 3)

    def epoch(number: int, at: float) -> str:
        fields = {"step": 2 * number, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
        fields |= {"learning_rate": 0.1, "adaptations_applied": 0, "epoch_time": 1.0, "time_unix_s": at}
        return json.dumps({"kind": "epoch", "epoch": number, **fields}) + "\n"

    journal.write_text(started + epoch(1, now - 10) + epoch(2, now))
    progress.update()
    assert (progress.epoch, progress.total_epochs, progress.metric) == (2, 4, 0.5)
    assert progress.macs == 3 * 4 * config["dataset"]["batch_size"]  # 4 steps of a network of one MAC
    assert progress.eta_s() == pytest.approx(2 * 10 - 3)
    journal.write_text(started + epoch(1, now - 10))
    progress.update()
    assert progress.epoch == 1
    assert progress.eta_s() is None
