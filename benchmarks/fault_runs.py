"""Small trainings for `faults.py`: real `esper-train` commands that can be disturbed, repeated and compared."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

__all__ = ["CANARY", "Lost", "Storm", "Training", "check", "check_refused", "esper"]

CANARY = "canary-5d1c"
"""A secret that must not be written or printed anywhere."""
_ROOT = Path(__file__).resolve().parent.parent
_TRAIN = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"
_ESPER = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"
_TIMEOUT_S = 300
_COMMON = ("experiment=debug", "debug_mode=false", "experiment_name=storm", "logging.log_level=INFO", "device=cpu")
_SCENARIOS: dict[str, tuple[str, ...]] = {
    "grows": ("optimization.max_epochs=12", "checkpoint.max_checkpoints=1"),
    "copies": (
        "optimization.max_epochs=12", "model.depths=[2,2]", "morphogenetic=stack", "morphogenetic.schedule_at=[0.3]",
    ),
    "streams": (
        "optimization.max_epochs=8", "dataset=imagefolder", "dataset.storage=stream", "dataset.num_workers=2",
        "dataset.image_size=16", "dataset.batch_size=16", "dataset.num_examples=null",
    ),
}  # fmt: skip


class Lost(Exception):  # noqa: N818  (a verdict, not a program's error)
    """A fault was not survived."""


def check(is_so: bool, reason: str) -> None:
    """Raise `Lost` unless so."""
    if not is_so:
        raise Lost(reason)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of the errors; empty if there is none."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def check_refused(ended: Ended, *, codes: tuple[int, ...] = (1, 2), names: str = "") -> None:
    """An expected failure: one error line, which names what is wrong, and no traceback."""
    check(ended.code in codes, f"exit {ended.code} instead of {codes}: {ended.last_line}")
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    check(len(errors) == 1, f"{len(errors)} error lines: {ended.last_line}")
    check(names in errors[0], f"{names!r} is not named: {errors[0]}")


def esper(*arguments: str, cwd: Path) -> Ended:
    """Run an `esper` command to its end."""
    return _ended(_start(_ESPER, arguments, cwd=cwd))


class Training:
    """A training in a working folder of its own; the same command again resumes it."""

    def __init__(self, cwd: Path, *overrides: str) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.cwd = cwd
        self.overrides = overrides

    def start(self, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the command."""
        return _start(_TRAIN, (*_COMMON, *self.overrides, *more), cwd=self.cwd, env=env or {})

    def start_ranks(self, num: int, *more: str) -> list[subprocess.Popen[str]]:
        """Start the command on several ranks, as srun does."""
        with socket.create_server(("localhost", 0)) as free:
            port = str(free.getsockname()[1])
        step = {"SLURM_STEP_NUM_TASKS": str(num), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
        ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(num)]
        return [self.start(*more, env=step | rank) for rank in ranks]

    def run(self, *more: str, env: Mapping[str, str] | None = None) -> Ended:
        """Run the command to its end."""
        return self.end(self.start(*more, env=env))

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a command that was started."""
        return _ended(process)

    @property
    def run_dir(self) -> Path | None:
        """The run folder, once there is one."""
        return next((path.parent for path in self.cwd.glob("outputs/storm/*/journal.jsonl")), None)

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoints for resuming, the newest first."""
        return sorted(self.cwd.glob("outputs/storm/*/checkpoints/step-*"), reverse=True)

    def wait_for(self, text: str, process: subprocess.Popen[str]) -> None:
        """Wait until the journal has a text, or the process has ended."""
        while process.poll() is None:
            run_dir = self.run_dir
            if run_dir and text in (run_dir / "journal.jsonl").read_text(errors="replace"):
                return
            time.sleep(0.005)

    def check_whole(self, ended: Ended, expected: str) -> None:
        """The command finished, quietly, and the final weights are the expected ones to the bit."""
        check(ended.code == 0, f"exit {ended.code}: {ended.last_line}")
        check(self.weights() == expected, "other weights than the undisturbed run")

    def weights(self) -> str:
        """SHA-256 of the newest checkpoint's tensors."""
        check(bool(self.checkpoints), "no checkpoint is left")
        total = hashlib.sha256()
        for name, value in sorted(load_file(self.checkpoints[0] / "model.safetensors").items()):
            total.update(name.encode() + value.numpy().tobytes())
        return total.hexdigest()


@dataclass
class Storm:
    """Source of random choices and of undisturbed runs to compare with.

    Attributes:
        folder: where the trainings run.
        rng: every choice of a round.
        num_trainings: how many disturbed trainings there were; the last one's folder is named for it.
    """

    folder: Path
    rng: random.Random
    num_trainings: int = 0
    _expected: dict[str, tuple[str, float]] = field(default_factory=dict)

    def training(self, scenario: str | None = None, *more: str, num_ranks: int = 1) -> tuple[Training, str, float]:
        """A fresh training, its final weights when undisturbed, and the seconds that it then takes."""
        name = scenario or self.rng.choice(sorted(_SCENARIOS))
        overrides = (*_SCENARIOS[name], *more)
        if name == "streams":
            overrides += (f"dataset.data_dir={self._photos()}",)
        key = " ".join((name, *more, str(num_ranks)))
        if key not in self._expected:
            reference = Training(self.folder / f"undisturbed-{len(self._expected)}", *overrides)
            ranks = [reference.start()] if num_ranks == 1 else reference.start_ranks(num_ranks)
            for ended in map(reference.end, ranks):
                check(ended.code == 0, f"undisturbed run: exit {ended.code}: {ended.last_line}")
            assert reference.run_dir is not None
            result = json.loads((reference.run_dir / "status.json").read_text())["result"]
            self._expected[key] = reference.weights(), float(result["seconds"])
        self.num_trainings += 1
        return Training(self.folder / str(self.num_trainings), *overrides), *self._expected[key]

    def strike(self, training: Training, seconds: float) -> subprocess.Popen[str]:
        """Start a training and return at a random moment after its first checkpoint, or at its end."""
        process = training.start()
        training.wait_for('"checkpoint"', process)
        time.sleep(self.rng.uniform(0, seconds))
        return process

    def interrupted(self, scenario: str | None = None) -> tuple[Training, str]:
        """A training that was killed in the middle and has a checkpoint."""
        training, expected, seconds = self.training(scenario)
        process = self.strike(training, 0.5 * seconds)
        process.kill()
        training.end(process)
        return training, expected

    def _photos(self) -> Path:
        folder = self.folder / "photos"
        for split, num in (("train", 60), ("val", 12)):
            for label in ("a", "b"):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                for i in range(num):
                    path = folder / split / label / f"{i}.jpg"
                    if not path.exists():
                        coarse = np.random.default_rng(i + 1000 * (label == "b")).integers(0, 256, (4, 4, 3), np.uint8)
                        Image.fromarray(coarse).resize((24, 24)).save(path)
        return folder


def _start(
    script: str, arguments: tuple[str, ...], *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | dict(env or {}),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        # A background job of a shell ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def _ended(process: subprocess.Popen[str]) -> Ended:
    try:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Lost(f"still running after {_TIMEOUT_S} s") from None
    ended = Ended(process.returncode, out, err)
    # Decoders that were starting when their parent was killed print one.
    has_traceback = ended.code != -signal.SIGKILL and re.search(r"^Traceback", out + err, re.MULTILINE)
    check(not has_traceback, f"a traceback: {ended.last_line}")
    return ended
