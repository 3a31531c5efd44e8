from __future__ import annotations

from pathlib import Path

import pytest

from esper.configs import TolariaConfig
from esper.errors import ConfigError, RunError
from esper.sweep.launch import launch
from esper.sweep.launchers import queue_of
from esper.sweep.manifest import Job, Member, freeze, write_launcher
from esper.sweep.queues.slurm import SlurmQueue
from tests.sweep.test_launch import TINY, finish, start

JOB = Job(queue="slurm", id="7_0")


@pytest.fixture
def member(tmp_path: Path) -> Member:
    submitted = Member(sweep_dir=tmp_path, name="run", overrides=("rng_seed=0",), cwd=str(tmp_path), siblings={})
    freeze(submitted, TolariaConfig())
    submitted.set_job(JOB)
    return submitted


def squeue_prints(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a `squeue` that prints the line first on the PATH, and an `sbatch` that is never called."""
    for name, text in (("squeue", f"#!/bin/sh\n{line}\n"), ("sbatch", "#!/bin/sh\nexit 1\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("slurm_state", "has_begun", "state", "reason"),
    [
        ("PENDING", False, "waiting", ""),
        ("PENDING", True, "waiting", "requeued, pending"),
        ("CONFIGURING", False, "waiting", "configuring"),
        ("RUNNING", True, "running", ""),
        ("COMPLETING", True, "running", ""),
        ("TIMEOUT", True, "ended", "TIMEOUT"),
        ("CANCELLED", True, "ended", "CANCELLED"),
        ("CANCELLED", False, "interrupted", "cancelled before it began"),
        (None, True, "ended", "gone from the queue"),
    ],
)
def test_the_state_of_a_job_comes_from_squeue(
    member: Member,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slurm_state: str | None,
    has_begun: bool,
    state: str,
    reason: str,
) -> None:
    squeue_prints(f"echo '7_0|{slurm_state}'" if slurm_state else "", tmp_path, monkeypatch)
    if has_begun:
        member.begin()
    (job,) = SlurmQueue.job_states([(member, JOB)])
    assert (job.state, job.reason) == (state, reason)


def test_nothing_is_submitted_while_squeue_does_not_respond(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue_prints("exit 1", tmp_path, monkeypatch)
    with pytest.raises(RunError, match="squeue did not respond; cannot tell which jobs are running"):
        launch([(member, TolariaConfig())], queue_of("slurm", {}))


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster whose sbatch refuses; the folder of the commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "squeue": "",
        "srun": "",
        "sbatch": "echo 'sbatch: error: no such account' >&2; exit 1",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_members_that_share_a_gpu_share_a_job(refusing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (refusing / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 7\n")
    members = []
    for seed in range(5):
        one = Member(sweep_dir=tmp_path, name=f"seed-{seed}", overrides=(), cwd=str(tmp_path), siblings={})
        freeze(one, TolariaConfig(rng_seed=seed))
        members.append(one)
    queue = queue_of("slurm", {"members": 2})
    queue.require([TolariaConfig()])
    queue.submit([members], after=[])
    assert [one.job() for one in members] == [Job(queue="slurm", id=f"7_{number}") for number in (0, 0, 1, 1, 2)]
    assert "members=2" in queue.describe()
    log = SlurmQueue.log_file(members[0], JOB)
    assert log.name == "7_0_0_log.err"
    (members[0].folder / "pack.log").write_text("epoch 1\n")
    assert SlurmQueue.log_file(members[0], JOB).name == "pack.log"
    monkeypatch.delenv("ESPER_TEST_PACKED_ON_CPU", raising=False)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.members=2: needs a GPU"):
        queue_of("slurm", {"members": 2, "gpus_per_node": None}).require()


def test_ctrl_c_during_a_submission_waits_until_its_jobs_are_recorded(refusing: Path, tmp_path: Path) -> None:
    (refusing / "sbatch").write_text("#!/bin/sh\nkill -INT $PPID\necho Submitted batch job 7\n")
    (refusing / "squeue").write_text("#!/bin/sh\necho '7_0|PENDING'\necho '7_1|PENDING'\n")
    (tmp_path / "lab").mkdir()
    code, out, _ = finish(start(*TINY[:-1], "hydra/launcher=slurm", "rng_seed=0,1", cwd=tmp_path / "lab"))
    assert code == 130
    assert "jobs 7_[0-1] remain in the queue" in out


@pytest.mark.usefixtures("refusing")
def test_a_refused_sweep_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    code, _, err = finish(start(*TINY[:-1], "hydra/launcher=slurm", "rng_seed=0,1", cwd=tmp_path / "lab"))
    assert (code, err) == (2, "error: hydra/launcher=slurm: sbatch refused: no such account; set hydra.launcher.*\n")
    assert content(tmp_path / "lab") == {}


@pytest.mark.usefixtures("refusing")
def test_a_refused_sweep_leaves_an_earlier_one_as_it_was(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep"
    earlier = Member(sweep_dir=sweep_dir, name="run", overrides=("rng_seed=0",), cwd=str(tmp_path), siblings={})
    freeze(earlier, TolariaConfig(rng_seed=0))
    earlier.set_job(JOB)
    earlier.begin()
    earlier.end("failed", reason="no luck")
    write_launcher(sweep_dir, queue="slurm", options={"partition": "cpu"})
    another = Member(sweep_dir=sweep_dir, name="other", overrides=("rng_seed=1",), cwd=str(tmp_path), siblings={})
    before = content(sweep_dir)
    with pytest.raises(RunError, match="sbatch refused: no such account"):
        launch([(earlier, TolariaConfig(tags=["new"])), (another, TolariaConfig(rng_seed=1))], queue_of("slurm", {}))
    assert content(sweep_dir) == before
