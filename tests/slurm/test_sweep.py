"""Sweeps on a real SLURM: jobs that are requeued, preempted, timed out, killed and cancelled."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path

import psutil
import pytest

from tests.forked import ESPER
from tests.slurm.conftest import Sweep, command, ended, epochs, resumed, slurm_up, wait_until

pytestmark = pytest.mark.long


def test_an_array_of_eight_finishes_and_its_jobs_are_named_for_their_runs(sweep: Sweep):
    overrides = ["optimization.max_epochs=2", "optimization.learning_rate=0.02,0.05", "rng_seed=range(0,4)"]
    code, out, err = sweep.run(*overrides)
    assert (code, err) == (0, "")
    assert "8 runs: 8 submitted" in out
    assert sweep.statuses() == ["finished"] * 8
    array = sweep.job_id("0.02-max_epochs_2-morphogenetic_off-rng_seed_0").partition("_")[0]
    shown = command("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%j|%T")
    assert set(shown.splitlines()) == {
        f"learning_rate={rate}-rng_seed={seed}|COMPLETED" for rate in (0.02, 0.05) for seed in range(4)
    }
    assert stat.S_IMODE((sweep.folder / ".sweep").stat().st_mode) == 0o700
    code, out, _ = sweep.run(*overrides)
    assert code == 0
    assert "0 submitted, 8 already finished" in out


def test_runs_that_share_a_gpu_are_jobs_of_two_which_save_requeue_and_resume(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ESPER_TEST_PACKED_ON_CPU", "1")
    launcher = sweep.start("hydra.launcher.members=2", "optimization.max_epochs=150", "rng_seed=range(0,5)")
    runs = [sweep.wait_for_epoch(f"rng_seed_{seed}", 10) for seed in (0, 1)]
    jobs = [sweep.job_id(f"rng_seed_{seed}") for seed in range(5)]
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_{index}" for index in (0, 0, 1, 1, 2)]
    command("scancel", "--signal=USR2", jobs[0])
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    assert "5 runs: 5 submitted" in out
    assert "members=2" in out
    assert sweep.statuses() == ["finished"] * 5
    shown = command("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i|%T")
    assert sorted(shown.splitlines()) == [f"{array}_{index}|COMPLETED" for index in range(3)]
    for run_dir in runs:
        assert resumed(run_dir) == [False, True]
        assert epochs(run_dir) == list(range(1, 151))


def test_a_crashing_member_fails_alone_and_its_error_is_printed(sweep: Sweep):
    code, _, err = sweep.run("optimization.max_epochs=2", "optimization.learning_rate=1e20,0.05")
    assert code == 1
    assert sorted(sweep.statuses()) == ["failed", "finished"]
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "optimization.learning_rate=1e+20: loss, gradient or weights at step 1 are not finite" in err
    assert command("squeue", "--noheader", "--states=all", f"--jobs={sweep.job_id('1e_20')}", "--format=%T") == "FAILED"
    code, out, _ = sweep.run("status", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    assert code == 1
    assert "are not finite" in out
    assert "2 runs: " in out


def test_usr2_saves_requeues_and_resumes(sweep: Sweep):
    launcher = sweep.start("optimization.max_epochs=150", "rng_seed=0")
    run_dir = sweep.wait_for_epoch("rng_seed_0", 10)
    job = sweep.job_id("rng_seed_0")
    command("scancel", "--signal=USR2", job)
    wait_until(lambda: "Restarts=1" in command("scontrol", "show", "job", job))
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    assert "waiting     " in out  # in between
    assert resumed(run_dir) == [False, True]
    assert epochs(run_dir) == list(range(1, 151))


def test_a_run_of_two_processes_saves_requeues_and_resumes(sweep: Sweep):
    two = ["hydra.launcher.nodes=2", "hydra.launcher.setup=['export MASTER_ADDR=localhost']"]  # both are this machine
    launcher = sweep.start("optimization.max_epochs=150", "rng_seed=0", "device=cpu", *two)
    run_dir = sweep.wait_for_epoch("rng_seed_0", 10)
    command("scancel", "--signal=USR2", sweep.job_id("rng_seed_0"))
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    assert "waiting     " in out  # in between
    assert resumed(run_dir) == [False, True]
    assert epochs(run_dir) == list(range(1, 151))
    assert "2 ranks share each batch" in (run_dir / "journal.jsonl").read_text()


def test_a_preempted_job_resumes_in_the_same_run_and_the_same_mlflow_run(sweep: Sweep):
    launcher = sweep.start("optimization.max_epochs=200", "rng_seed=0,1", "tracking=mlflow", "logging.log_interval=100")
    for seed in ("rng_seed_0", "rng_seed_1"):
        sweep.wait_for_epoch(seed, 10)
    urgent = command("sbatch", "--parsable", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1")
    wait_until(
        lambda: command("squeue", "--noheader", "--states=all", f"--jobs={urgent}", "--format=%T") == "COMPLETED"
    )
    code, _, err = ended(launcher)
    assert (code, err) == (0, "")
    folders = [sweep.run_dir("rng_seed_0"), sweep.run_dir("rng_seed_1")]
    assert sorted(map(resumed, folders)) == [[False], [False, True]]
    for run_dir in folders:
        assert epochs(run_dir) == list(range(1, 201))
    assert _epochs_in_mlflow(sweep.cwd) == {run_dir.name: 200 for run_dir in folders}


def test_a_job_at_its_time_limit_resumes_in_the_next_job(sweep: Sweep):
    # SLURM looks at its clocks every half minute: the signal comes after 10 to 40 seconds.
    times = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=50", "hydra.launcher.max_num_timeout=5"]
    launcher = sweep.start("optimization.max_epochs=5000", "rng_seed=0", *times)
    run_dir = sweep.run_dir("rng_seed_0")
    wait_until(lambda: resumed(run_dir) == [False, True])
    sweep.wait_for_epoch("rng_seed_0", epochs(run_dir)[-1] + 10)
    command("scancel", sweep.job_id("rng_seed_0"))
    assert ended(launcher)[0] == 1
    assert epochs(run_dir) == list(range(1, epochs(run_dir)[-1] + 1))


def test_a_run_that_timed_out_too_often_ends_and_the_same_command_resumes_it(sweep: Sweep):
    overrides = ["optimization.max_epochs=150", "rng_seed=0", "hydra.launcher.max_num_timeout=0"]
    # Of ten minutes or less submitit takes every signal for a timeout.
    launcher = sweep.start(*overrides, "hydra.launcher.timeout_min=10")
    run_dir = sweep.wait_for_epoch("rng_seed_0", 10)
    command("scancel", "--signal=USR2", sweep.job_id("rng_seed_0"))
    code, out, err = ended(launcher)
    assert code == 1
    assert "interrupted" in out
    assert "timed-out too many times" in err
    assert sweep.run(*overrides)[0] == 0
    assert resumed(run_dir) == [False, True]


def test_scancel_of_one_member_ends_only_that_member_and_is_reported(sweep: Sweep):
    overrides = ["optimization.max_epochs=150", "rng_seed=0,1"]
    launcher = sweep.start(*overrides)
    cancelled = sweep.wait_for_epoch("rng_seed_0", 10)
    command("scancel", sweep.job_id("rng_seed_0"))
    code, out, err = ended(launcher)
    assert code == 1
    assert "rng_seed=0: SIGTERM" in err
    assert "rng_seed=1" not in err
    assert "finished    " in out
    assert sorted(sweep.statuses()) == ["finished", "interrupted"]
    code, out, err = sweep.run("resume", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    assert (code, err) == (0, "")
    assert "1 submitted, 1 already finished" in out
    assert resumed(cancelled) == [False, True]
    assert epochs(cancelled) == list(range(1, 151))


def test_a_killed_job_is_shown_as_killed_and_resumed(sweep: Sweep):
    launcher = sweep.start("optimization.max_epochs=150", "rng_seed=0")
    run_dir = sweep.wait_for_epoch("rng_seed_0", 10)
    os.kill(json.loads((run_dir / "status.json").read_text())["pid"], signal.SIGKILL)
    code, out, _ = ended(launcher)
    assert code == 1
    assert "killed      " in out
    code, _, _ = sweep.run("resume", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    assert code == 0
    assert resumed(run_dir) == [False, True]
    assert epochs(run_dir) == list(range(1, 151))


def test_waiting_jobs_keep_their_configuration_after_an_edit_and_a_killed_launcher(sweep: Sweep):
    mine = sweep.cwd / "mine" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    written = "# @package _global_\ndefaults:\n  - debug\noptimization:\n  max_epochs: {}\n"
    mine.write_text(written.format(3))
    blocker = command(
        "sbatch", "--parsable", "--nodes=2", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 600"
    )
    wait_until(lambda: command("squeue", "--noheader", f"--jobs={blocker}", "--format=%T") == "RUNNING")
    overrides = ["experiment=mine", "rng_seed=0,1", "--config-dir", str(mine.parents[1])]
    left = sweep.start(*overrides)
    wait_until(lambda: len(list(sweep.folder.glob(".sweep/*/job.json"))) == 2)
    left.send_signal(signal.SIGINT)  # no terminal to ask at: the jobs are left alone
    code, out, _ = ended(left)
    assert code == 130
    assert f"jobs {sweep.job_id('rng_seed_0').partition('_')[0]}_[0-1] remain in the queue" in out
    mine.write_text(written.format(7))
    command("scancel", blocker)
    resuming = sweep.start("resume", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    wait_until(lambda: len(sweep.statuses()) == 2)
    resuming.kill()
    code, out, err = sweep.run("resume", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    assert (code, err) == (0, "")
    assert "2 runs: 0 submitted" in out
    for seed in ("rng_seed_0", "rng_seed_1"):
        assert epochs(sweep.run_dir(seed)) == [1, 2, 3]


def test_ctrl_c_cancels_with_on_interrupt_cancel(sweep: Sweep):
    overrides = ["optimization.max_epochs=500", "rng_seed=0,1,2", "hydra.launcher.on_interrupt=cancel"]
    launcher = sweep.start(*overrides)  # the third one waits
    run_dir = sweep.wait_for_epoch("rng_seed_0", 5)
    launcher.send_signal(signal.SIGINT)
    code, out, _ = ended(launcher)
    assert code == 130
    assert f"cancelled jobs {sweep.job_id('rng_seed_0').partition('_')[0]}_[0-2]" in out
    assert set(sweep.statuses()) == {"interrupted"}
    assert any((run_dir / "checkpoints").iterdir())
    code, out, _ = sweep.run("status", str(sweep.folder), script="import sys; sys.argv.insert(1, 'sweep');" + ESPER)
    assert code == 0
    assert out.startswith("3 runs: 3 interrupted\n")
    assert "interrupted rng_seed=2: cancelled before it began" in out


def test_ctrl_c_cancels_jobs_that_are_still_starting(sweep: Sweep):
    overrides = ["optimization.max_epochs=500", "rng_seed=0,1", "hydra.launcher.on_interrupt=cancel"]
    launcher = sweep.start(*overrides)
    jobs = str(sweep.folder / ".sweep" / "jobs")
    # SIGHUP is Esper's own: submitit handles SIGTERM a moment before, and then ignores it.
    wait_until(lambda: sum(_catches(signal.SIGHUP, pid) for pid in _processes("submitit.core._submit", jobs)) == 2)
    launcher.send_signal(signal.SIGINT)
    assert ended(launcher)[0] == 130
    assert set(sweep.statuses()) <= {"interrupted"}  # a run that has not begun has none
    outcomes = [json.loads(path.read_text()) for path in sweep.folder.glob(".sweep/*/outcome.json")]  # else killed
    assert [(one["status"], one["reason"]) for one in outcomes] == [("interrupted", "SIGTERM")] * 2


def test_a_refusal_of_sbatch_is_one_line(sweep: Sweep):
    code, _, err = sweep.run("optimization.max_epochs=2", "rng_seed=0", "hydra.launcher.partition=gpu")
    assert code == 2
    assert err.startswith("error: hydra/launcher=slurm: sbatch refused: ")
    assert "invalid partition specified: gpu" in err
    assert err.count("\n") == 1


def test_with_accounting_sacct_has_the_final_states(sweep: Sweep):
    slurm_up(GRACE="20", ACCOUNTING="1")
    code, _, _ = sweep.run("optimization.max_epochs=2", "optimization.learning_rate=1e20,0.05")
    assert code == 1

    def states() -> list[str]:
        array = sweep.job_id("1e_20").partition("_")[0]
        shown = command("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={array}", "--format=State")
        return sorted(shown.splitlines())

    wait_until(lambda: states() == ["COMPLETED", "FAILED"])


def _processes(*words: str) -> list[int]:
    """Ids of the Python processes whose command line has these words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line and "python" in line[0] and all(word in line for word in words):
            found.append(process.pid)
    return found


def _catches(number: int, pid: int) -> bool:
    """Whether a process handles a signal, as a job does before it imports what it runs."""
    try:
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
    except OSError:  # it has ended
        return False
    return caught is not None and bool(int(caught.group(1), 16) >> (number - 1) & 1)


def _epochs_in_mlflow(cwd: Path) -> dict[str, int]:
    """How many points the validation accuracy of each run has in MLflow, every epoch once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd / 'outputs' / 'mlflow.db'}")
    ids = [one.experiment_id for one in client.search_experiments()]
    found = {}
    for run in client.search_runs(ids):
        if not run.data.metrics:  # the parent of the sweep's runs
            continue
        name = next(one for one in run.data.metrics if one.endswith("val_accuracy"))
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps))
        found[str(run.info.run_name)] = len(steps)
    return found
