"""The GPU memory that processes use, and a server that lets them compute at the same time."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["PeakMemory", "mps"]


class PeakMemory:
    """Context manager: the peak of the GPU memory in use, in GB above what was in use before; 0 without a GPU."""

    def __enter__(self) -> PeakMemory:
        self.peak_gb, self._before, self._end = 0.0, self._used_gb(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            self.peak_gb = max(self.peak_gb, self._used_gb() - self._before)

    @staticmethod
    def _used_gb() -> float:
        if shutil.which("nvidia-smi") is None:
            return 0.0
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        return float(done.stdout.split()[0]) * 2**20 / 1e9 if done.returncode == 0 and done.stdout.split() else 0.0


@contextlib.contextmanager
def mps(folder: Path) -> Iterator[dict[str, str] | None]:
    """Context manager: an MPS server of this benchmark's own; variables for its clients, or None without one."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or not torch.cuda.is_available():
        yield None
        return
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for path in variables.values():
        Path(path).mkdir()
    env = {**os.environ, **variables}
    started = subprocess.run([control, "-d"], env=env, check=False, capture_output=True, text=True, timeout=30)
    if started.returncode:
        print(f"MPS does not start: {started.stdout}{started.stderr}", flush=True)
        yield None
        return
    try:
        yield variables
    finally:
        subprocess.run([control], env=env, input="quit\n", check=False, capture_output=True, text=True, timeout=60)
