from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks import bus


@pytest.mark.long
def test_what_is_published_arrives_and_every_question_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("redis-server") is None:
        if os.environ.get("ESPER_REQUIRE_REDIS"):
            pytest.fail("redis-server is required here, and not installed")
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "bus.json"
    sizes = {"rate": 100, "rounds": 2, "events": 120, "messages": 128, "questions": 3, "runs": 3, "seconds": 1}
    bus.main(["--out", str(out), *(word for name, value in sizes.items() for word in (f"--{name}", str(value)))])
    found = json.loads(out.read_text())
    states = found["publishing"]
    assert {name: one["epoch_s"]["n"] for name, one in states.items()} == dict.fromkeys(bus.STATES, 234)
    assert {name: one["signals_s"]["n"] for name, one in states.items()} == dict.fromkeys(bus.STATES, 6)
    assert states["up"]["arrived_and_dropped"] == [[117, 0], [117, 0]]
    assert all(arrived + dropped >= 117 for arrived, dropped in states["hung"]["arrived_and_dropped"])
    assert {len(one) for row in found["messages"] for one in row["per_s"].values()} == {5}
    assert {name: waits["n"] for name, waits in found["one_run"].items()} == {"shared": 3, "in_process": 3}
    assert found["many_runs"]["waits"]["n"] >= 3
    assert found["many_runs"]["missed"] == []
    assert found["environment"]["redis"]
    told = capsys.readouterr().out
    assert "| hung | 234 |" in told
    assert "| 3 runs at once |" in told
