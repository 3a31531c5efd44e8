"""The throughput benchmark measures what it says, compares within rounds, and leaves nothing out in silence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.esper_run import Rates
from benchmarks.throughput import main
from benchmarks.throughput_report import BARE, DEFAULT, OFF, Row, ratios

SMALL = (
    *("--device", "cpu", "--model", "resnet_small", "--images", "320", "--image-size", "8", "--batch-sizes", "32"),
    *("--seconds", "0.05", "--rounds", "2", "--workers", "0", "--tracking", "none", "--no-compile"),
)


@pytest.mark.long
def test_esper_and_a_plain_loop_are_measured_in_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "throughput.json"
    main([*SMALL, "--out", str(out), "--parts", "esper,default,bare,peers", "--peers", "plain PyTorch"])
    found = json.loads(out.read_text())
    rates = {row["name"]: row["rates"] for row in found["rows"]}
    assert list(rates) == [OFF, DEFAULT, BARE, "plain PyTorch"]
    assert all({"1", "2"} <= by_round.keys() and min(by_round.values()) > 0 for by_round in rates.values())
    assert all(row["failed"] is None and row["ready_s"] > 0 for row in found["rows"])
    assert found["tracker"] == "none"
    assert found["hardware"]["torch"]
    printed = capsys.readouterr().out
    assert all(f"| {name} | 32 | no |" in printed for name in (*rates, "off, end to end / fastest peer"))


@pytest.mark.long
@pytest.mark.parametrize("model", ["gpt", "vit"])
def test_transformers_are_measured_and_absent_peers_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    out = tmp_path / "throughput.json"
    small = ("--width", "16", "--depth", "1", "--context", "16", "--epoch-windows", "64", "--rounds", "1")
    peers = "plain PyTorch,Hugging Face Trainer"
    main([*SMALL, *small, "--model", model, "--out", str(out), "--parts", "esper,bare,peers", "--peers", peers])
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.pop("Hugging Face Trainer")["failed"].startswith("skipped: ModuleNotFoundError")
    assert [row["failed"] for row in rows.values()] == [None] * 3
    assert all(min(row["rates"].values()) > 0 for row in rows.values())
    assert ("tokens/s" if model == "gpt" else "images/s") in capsys.readouterr().out


def test_failures_and_skipped_contenders_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "throughput.json"
    main([*SMALL, "--out", str(out), "--parts", "esper,default,bare", "--model", "resnet99"])
    assert capsys.readouterr().out.count("failed: ConfigError: model.name=resnet99") == 3
    main([*SMALL, "--out", str(out), "--parts", "esper,default,bare", "--budget-seconds", "0"])
    assert capsys.readouterr().out.count("not run: the 0 s of --budget-seconds were used up") == 3


def test_ratios_pair_the_rounds_and_take_the_fastest_peer_of_each() -> None:
    rates = {OFF: (300.0, 320.0), BARE: (330.0, 330.0), "one": (100.0, 100.0), "other": (90.0, 160.0)}
    rows = [
        Row(name=name, part="peers" if name in ("one", "other") else "", batch_size=128, is_compiled=False)
        for name in rates
    ]
    for row in rows:
        for number, rate in enumerate(rates[row.name], start=1):
            row.add(number, Rates(rate, 2 * rate if row.name == OFF else None))
    rows[-1].add(0, Rates(1000.0))
    found = {ratio.name: ratio for ratio in ratios(rows)}
    assert found["off, end to end / fastest peer"].values == pytest.approx((3.0, 2.0))
    assert found["off, end to end / bare step"].values == pytest.approx((300 / 330, 320 / 330))
    assert found["off, steps alone / bare step"].values == pytest.approx((600 / 330, 640 / 330))
    assert not any(name.startswith("default") for name in found)


def test_transformers_are_compared_in_one_form() -> None:
    rows = [
        Row(name=OFF if part == "" else f"peer {form}", part=part, batch_size=128, is_compiled=form)
        for part in ("", "peers")
        for form in (False, True)
    ]
    for row, rate in zip(rows, (300.0, 360.0, 150.0, 300.0), strict=True):
        row.add(1, Rates(rate))
    found = [one for one in ratios(rows, in_one_form=True) if one.name == "off, end to end / fastest peer"]
    assert [(one.is_compiled, one.values, one.goal) for one in found] == [(False, (2.0,), 1.5), (True, (1.2,), 1.2)]
