"""Start ranks that train one network as real processes, and read what they wrote."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forked import ESPER_TRAIN, ROOT, ForkedPython

# A host with group norms: a batch may be divided without changing what is computed. 33 images do not divide evenly.
TINY = (
    "model=timm", "model.name=test_efficientnet_gn", "model.target_layers=[auto]",
    "dataset=synthetic", "dataset.image_size=32", "dataset.num_examples=320", "dataset.batch_size=33",
    "dataset.val_split=0.4", "optimization.learning_rate=0.01", "optimization.gradient_clip_norm=1",
    "morphogenetic=schedule", "morphogenetic.schedule_at=[0.3]", "morphogenetic.blueprint=group_norm",
    "morphogenetic.holding_epochs=1", "logging.log_interval=1", "tracking=none", "device=cpu",
)  # fmt: skip
GROWS = (*TINY, "optimization.max_epochs=4")
LONG = (*TINY, "optimization.max_epochs=20")
# The same with layer norms, and two blocks a stage or more.
STACKS = (
    *TINY, "model.name=test_convnext", "morphogenetic=stack", "morphogenetic.blueprint=null",
    "optimization.max_epochs=4",
)  # fmt: skip
# A host with batch norms, and a newborn with some, which is forked, incubated and judged.
NORMED = (
    *TINY, "model=resnet_small", "model.name=resnet_small", "model.widths=[8,8]", "model.depths=[1,1]",
    "model.target_layers=[layer1,layer2]", "dataset.image_size=8", "morphogenetic=heuristic",
    "morphogenetic.blueprint=basic_block", "morphogenetic.health_threshold=1.0", "morphogenetic.growth_from=0",
    "morphogenetic.adaptation_frequency=1", "morphogenetic.fork_steps=2", "morphogenetic.incubation=fit",
    "morphogenetic.incubation_steps=2", "optimization.max_epochs=3", "checkpoint.save_interval=3",
)  # fmt: skip


def torchrun(num: int, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", ESPER_TRAIN, *overrides],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def both_ranks(module: str, *arguments: str, num_threads: int = 1, within_s: float = 250) -> list[Any]:
    """Run a module of tests as two ranks; returns what each printed in its last line, as JSON."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(num_threads),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=within_s) for process in processes]
    finally:
        for process in processes:
            with process:
                process.kill()
    assert [process.returncode for process in processes] == [0, 0], [stderr for _, stderr in ended]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in ended]


def _free_port() -> int:
    """A port for rank 0 to listen on; nobody else is given it, since it stays bound until this process ends."""
    bound = socket.socket()
    atexit.register(bound.close)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # rank 0 sets it, too, and so may bind it as well
    bound.bind(("localhost", 0))
    port: int = bound.getsockname()[1]
    return port


def start_step(*overrides: Sequence[str], first: str = "") -> list[ForkedPython]:
    """Start ranks as srun does, each with its own overrides; `first`: code that they run first."""
    step = {
        "SLURM_STEP_NUM_TASKS": str(len(overrides)),
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": str(_free_port()),
    }
    return [
        ForkedPython(first + ESPER_TRAIN, *own, cwd=Path.cwd(), SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **step)
        for rank, own in enumerate(overrides)
    ]


def train_together(*overrides: str) -> None:
    """Train one network with two ranks."""
    codes, stderr = ends(start_step(overrides, overrides))
    assert codes == [0, 0], stderr


def ends(processes: list[ForkedPython]) -> tuple[list[int], str]:
    """Their exit codes, and everything they wrote to stderr."""
    errors = [process.communicate(timeout=250)[1] for process in processes]
    return [process.returncode for process in processes], "".join(errors)


def await_checkpoint(run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/step-*/manifest.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
