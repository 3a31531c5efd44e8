"""A real SLURM on this machine, from scripts/slurm_up.sh, and sweeps that are launched on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ESPER_TRAIN, ROOT, ForkedPython

# Two nodes with a CPU each; some 15 epochs a second.
TINY = ("debug_mode=false", "morphogenetic=off", "logging.log_level=INFO")
QUEUE = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_s=0.5",
)


def _is_required() -> bool:
    return bool(os.environ.get("ESPER_REQUIRE_SLURM"))


def slurm_up(**settings: str) -> None:
    """Start SLURM; where that is impossible, skip the test, or fail it if SLURM is required."""
    why = ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        why = "one cluster is for one process; run pytest tests/slurm without -n"
    elif os.getuid() != 0:
        why = "needs root"
    elif shutil.which("slurmctld") is None and not _is_required():
        why = "SLURM is not installed; ESPER_REQUIRE_SLURM=1 has it installed from Debian's packages"
    else:
        done = subprocess.run(
            [ROOT / "scripts" / "slurm_up.sh"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        if done.returncode:
            why = done.stderr.strip()
    if why and _is_required():
        pytest.fail(f"SLURM is required here: {why}")
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """SLURM without accounting, as on many small clusters."""
    slurm_up(GRACE="20")
    yield
    subprocess.run([ROOT / "scripts" / "slurm_down.sh"], capture_output=True, check=False, timeout=120)


class Sweep:
    """A sweep that was launched in a folder; its experiment is `debug`."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.folder = cwd / "outputs" / "debug"

    def start(self, *arguments: str, script: str = ESPER_TRAIN) -> ForkedPython:
        """Start a command in the background."""
        if script == ESPER_TRAIN:
            experiment = () if any(one.startswith("experiment=") for one in arguments) else ("experiment=debug",)
            arguments = ("-m", *experiment, *TINY, *QUEUE, *arguments)
        return ForkedPython(script, *arguments, cwd=self.cwd, COLUMNS="300")

    def run(self, *arguments: str, script: str = ESPER_TRAIN) -> tuple[int, str, str]:
        """Exit code, output and errors of a command."""
        return ended(self.start(*arguments, script=script))

    def run_dir(self, part: str) -> Path:
        """The folder of the run whose name has this part; waits for it to begin."""
        wait_until(lambda: bool(list(self.folder.glob(f"*{part}*/journal.jsonl"))))
        (found,) = self.folder.glob(f"*{part}*/journal.jsonl")
        return found.parent

    def wait_for_epoch(self, part: str, epoch: int) -> Path:
        """The folder of the run whose name has this part, once it has done so many epochs."""
        run_dir = self.run_dir(part)
        wait_until(lambda: len(events(run_dir, "epoch")) >= epoch)
        return run_dir

    def job_id(self, part: str) -> str:
        """SLURM's id of the job of the run whose name has this part."""
        wait_until(lambda: bool(list(self.folder.glob(f".sweep/*{part}*/job.json"))))  # it may begin before
        (job,) = self.folder.glob(f".sweep/*{part}*/job.json")
        return str(json.loads(job.read_text())["id"])

    def statuses(self) -> list[str]:
        """The status of each run, from its status.json."""
        return [json.loads(path.read_text())["status"] for path in sorted(self.folder.glob("*/status.json"))]


@pytest.fixture
def sweep(slurm: None, tmp_path: Path) -> Iterator[Sweep]:
    # The nodes are this machine and share its folders.
    yield Sweep(tmp_path)
    ForkedPython.end_all()  # else a launcher submits again what is cancelled
    command("scancel", f"--user={os.getuid()}")
    wait_until(lambda: not command("squeue", "--noheader"))


def ended(launcher: ForkedPython, *, within_s: float = 200) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that was started."""
    out, err = launcher.communicate(timeout=within_s)
    return launcher.returncode, out, err


def command(*words: str) -> str:
    """Output of one of SLURM's commands."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_until(is_so: Callable[[], bool], *, within_s: float = 90) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in a run's journal."""
    *lines, _ = (run_dir / "journal.jsonl").read_text().split("\n")  # the last one may be half written
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def resumed(run_dir: Path) -> list[bool]:
    """For every process that trained the run, whether it resumed from a checkpoint."""
    return [event["resumed_from"] is not None for event in events(run_dir, "run_started")]


def epochs(run_dir: Path) -> list[int]:
    return [event["epoch"] for event in events(run_dir, "epoch")]
