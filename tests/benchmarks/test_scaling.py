"""The scaling benchmark measures what it says with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import scaling


def test_one_process_and_two_take_turns_and_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    small = "--device cpu --model resnet_small --image-size 8 --num-examples 320 --batch-sizes 15 --rounds 3 --steps 2"
    done = subprocess.run(
        [sys.executable, scaling.__file__, "--out", out, *small.split()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["batch_size"], row["ranks"]) == (15, 2)
    assert {name: len(speeds) for name, speeds in row["images_per_s"].items()} == {"alone": 3, "strong": 3, "weak": 3}
    assert "| 15 | " in done.stdout
