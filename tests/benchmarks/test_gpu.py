"""The commands for a machine with one GPU or several, with a stand-in for Python: nothing that fails stops the rest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!/bin/bash
echo "table of $1"
echo "chatter of $1" >&2
[[ $1 == *growth_latency.py || $1 == *scaling.py ]] && exit 3
[[ $1 == *memory.py ]] && sleep 60
exit 0
"""


@pytest.mark.long
def test_all_programs_run_though_one_fails_and_one_takes_too_long(tmp_path: Path) -> None:
    done = run_script("gpu.sh", tmp_path, GPU_SH_SECONDS="7")
    assert done.returncode == 1
    told = dict(line.split(": ") for line in done.stdout.partition("== summary\n")[2].splitlines())
    assert told["growth_latency"].startswith("FAILED (3)")
    assert told["memory_and_cuda_tests"].startswith("FAILED (timed out)")
    assert all(told[name].startswith("ok") for name in ("throughput", "overhead", "startup"))
    assert "table of benchmarks/overhead.py" in done.stdout
    assert "chatter of benchmarks/overhead.py" not in done.stdout
    assert "chatter of benchmarks/growth_latency.py" in done.stdout  # why it failed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.txt", "logs.tar.gz"}


def test_the_tests_of_sums_run_though_the_benchmark_fails(tmp_path: Path) -> None:
    done = run_script("gpus.sh", tmp_path)
    assert done.returncode == 1
    told = dict(line.split(": ") for line in done.stdout.partition("== summary\n")[2].splitlines())
    assert told["scaling"].startswith("FAILED (3)")
    assert told["tests_of_sums"].startswith("ok")
    assert "chatter of benchmarks/scaling.py" in done.stdout  # why it failed
    assert "table of -m" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.txt", "logs.tar.gz"}


def run_script(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return subprocess.run(
        ["bash", f"benchmarks/{name}", str(folder / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
