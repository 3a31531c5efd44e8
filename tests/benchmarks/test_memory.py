"""The memory benchmark measures each arm alone, and finds what grows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.memory_arms import ARMS, cycles, peaks, slope

SMALL = {
    "device": "cpu",
    "model": "resnet_small",
    "cycled_model": "resnet_small",
    "batch_size": 8,
    "images": 200,
    "steps": 1,
    "cycles": 3,
}


@pytest.mark.parametrize("arm", ["plain loop", "default"])
def test_an_arm_trains_validates_and_only_dormant_seeds_are_scored(arm: str, tmp_path: Path) -> None:
    found = peaks(argparse.Namespace(arm=arm, **SMALL), tmp_path)
    assert list(found) == ["training", "validation"] + (["scoring"] if arm == "default" else [])
    peak = [phase["allocated"] for phase in found.values()]
    assert peak == sorted(peak)  # of the process so far


@pytest.mark.long
def test_every_cycle_is_counted_and_nothing_grows(tmp_path: Path) -> None:
    counted = cycles(argparse.Namespace(**SMALL), tmp_path)
    assert len(counted) == 3
    assert counted[1]["parameters"] == counted[2]["parameters"] > 0


def test_tables_and_goals_are_made_of_what_the_processes_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = {"plain loop": 1000, "off": 1020, "default": 1040, "off, not captured": 1000}

    def found(_: argparse.Namespace, arm: str) -> object:
        if arm == "cycles":
            return [{"allocated_bytes": 10, "tensors": 7 + number, "rss_bytes": 5 * number} for number in range(4)]
        phase = {"allocated": peak[arm] * 2**20, "reserved": 2000 * 2**20, "graphs": 0}
        return {"training": phase, "validation": phase}

    monkeypatch.setattr(memory, "_measured", found)
    memory.main(["--out", str(tmp_path / "memory.json")])
    printed = capsys.readouterr().out
    assert "off / plain loop, allocated 1.0200: goal <= 1.03: met" in printed
    assert "default / plain loop, allocated 1.0400: goal <= 1.03: MISSED" in printed
    assert "growth and culling (tensors grows): goal nothing grows: MISSED" in printed
    assert set(json.loads((tmp_path / "memory.json").read_text())["peak_bytes"]) == set(ARMS)


def test_a_slope_is_a_straight_lines() -> None:
    assert slope([3, 5, 7, 9]) == pytest.approx(2.0)
    assert slope([4, 4, 4]) == 0.0
