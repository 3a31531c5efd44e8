"""Killed at any sub-step of a growth, or on the way back from one, a run ends as one that was not killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NUM_KILLS = 4


@pytest.mark.long
@pytest.mark.parametrize("gain_rate", [1.0, 1e30], ids=["growing", "going back"])
def test_killed_in_a_growth_and_started_again_a_run_ends_as_one_that_was_not(gain_rate: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tolaria.kills", str(tmp_path), str(NUM_KILLS), str(gain_rate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_calls"] > 400
    assert len(found["kills"]) == NUM_KILLS
    assert [kill for kill in found["kills"] if not (kill["killed"] and kill["same"])] == []
