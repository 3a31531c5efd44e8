"""The benchmark of packed runs trains them as the launcher does, whatever its variant changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.packed import main


@pytest.mark.long
def test_packed_runs_are_compared_with_one_and_those_with_empty_steps_are_not_taken_for_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.json"
    small = ["--runs", "2", "--models", "resnet_small", "--depths", "1", "1", "1", "--image-size", "8"]
    length = ["--images", "3000", "--epochs", "3", "--budget-seconds", "500"]
    assert main(["--device", "cpu", *small, *length, "--ways", "packed", "empty steps", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    alone, packed, empty = written["cells"]
    assert [cell["num_runs"] for cell in (alone, packed, empty)] == [1, 2, 2]
    assert packed["digest"] == alone["digest"] != empty["digest"]
    ratios = {row["way"]: row["ratio"] for row in written["ratios"]}
    assert ratios["packed"] == pytest.approx(2 * alone["images_per_s"] / packed["images_per_s"])
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == "goal 12 runs of resnet_small in at most 4 times the time of one: not measured"
    (row,) = [line for line in last[-5:] if "empty steps" in line]
    assert row.endswith("| – |")
