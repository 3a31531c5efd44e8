from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sweep_overhead


@pytest.mark.long
def test_a_sweep_is_launched_and_its_phases_add_up_to_the_time_that_places_were_busy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out.json"
    sweep_overhead.main(["--out", str(out), "--members", "2", "--at-a-time", "1", "--launchers", "local"])
    found = json.loads(out.read_text())["seconds"]["local"]
    phases = [found[phase] for phase in sweep_overhead.PHASES]
    assert min(phases) > 0
    assert 2 * sum(phases) == pytest.approx(found["command"])
    assert found["overhead"] == pytest.approx(sum(phases) - found["train"])
    assert "| local | 2, 1 at a time |" in capsys.readouterr().out
