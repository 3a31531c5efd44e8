"""The tables of the benchmark of growing: who is compared with whom, and in which direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growing_report
from benchmarks.growing_studies import STATIC


def rows_of(arm: str, epochs: int, tests: list[float], *, val: float, steps: int, grown: bool = False) -> list[Any]:
    return [
        {
            "study": "claims", "arm": arm, "budget": epochs, "seed": seed, "test_accuracy": test, "val_accuracy": val,
            "test_loss": 0.4, "val_loss": 0.4, "total_macs": 1e12 * epochs, "num_macs_before": 50 if grown else 100,
            "num_macs": 100, "steps": steps, "growth_steps": [steps // 3] if grown else [], "seconds": 10.0,
        }
        for seed, test in enumerate(tests)
    ]  # fmt: skip


def measured(num: int) -> list[Any]:
    wobble = [0.001 * (seed % 3) for seed in range(num)]
    at = {"host": (0.86, 0.80), "between": (0.85, 0.90), "final": (0.84, 0.70)}
    rows = [
        row
        for arm, (test, val) in at.items()
        for row in rows_of(arm, 20, [test + one for one in wobble], val=val, steps=100)
    ]
    rows += rows_of("grown", 20, [0.87 + 2 * one for one in wobble], val=0.5, steps=120, grown=True)
    rows += rows_of("host", 40, [0.87] * num, val=0.8, steps=400)
    return rows + rows_of("final", 40, [0.88] * num, val=0.8, steps=200)


def test_the_best_static_arm_is_chosen_by_validation_and_claims_need_twelve_seeds() -> None:
    (study,) = growing_report.report(measured(12))
    best, reference = study["differences"]
    assert (best["other"], best["is_best_static"], best["n"]) == ("between", True, 12)
    assert best["mean"] == pytest.approx(2.1)
    assert best["low"] < 2.1 < best["high"]
    assert best["adjusted_p"] == best["p"] < 0.01
    assert (reference["other"], reference["adjusted_p"]) == ("final", None)
    (study,) = growing_report.report(measured(11))
    assert study["differences"][0]["adjusted_p"] is None


def test_a_budget_counts_the_seeds_that_all_arms_have_and_needs_all_static_arms() -> None:
    rows = [row for row in measured(12) if (row["arm"], row["seed"]) != ("host", 3)]
    assert growing_report.report(rows)[0]["differences"][0]["n"] == 11
    rows = [row for row in rows if row["arm"] != "between"]
    assert [one["is_best_static"] for one in growing_report.report(rows)[0]["differences"]] == [False]


def test_crossing_and_transfer_are_reported() -> None:
    (study,) = growing_report.report(measured(12))
    crossing, transfer = study["curves"]
    assert crossing.startswith("host and final cross at E = 3")
    # 0.8720 lies between 0.8410 at 100 steps and 0.88 at 200: at 173.5. (173.5 - 80) / 40
    assert "transfer rho 2.34; a step of the host costs 0.50" in transfer


def test_json_has_the_same_and_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, measured(1))) + "\n")
    growing_report.main([str(tmp_path / "rows.jsonl"), "--json"])
    (study,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [(arm["budget"], arm["arm"]) for arm in study["arms"]][:4] == [(20, arm) for arm in (*STATIC[:3], "grown")]
    assert study["differences"][0]["p"] is None


# --- studies that compare losses --------------------------------------------------------------------------------------


def text_rows(arm: str, budget: float, tests: list[float], *, val: float) -> list[Any]:
    rows = rows_of(arm, 1, tests, val=val, steps=100)
    accuracies = ("test_accuracy", "val_accuracy")  # text has none
    return [
        {name: value for name, value in row.items() if name not in accuracies}
        | {"study": "gpt", "budget": budget, "total_macs": 1e12 * budget, "test_loss": test, "val_loss": val}
        for row, test in zip(rows, tests, strict=True)
    ]


def measured_text(num: int) -> list[Any]:
    wobble = [0.0001 * (seed % 3) for seed in range(num)]
    at = {"host": (0.857, 0.87), "between": (0.860, 0.86), "final": (0.864, 0.88), "grown": (0.854, 0.9)}
    rows = [
        row
        for arm, (test, val) in at.items()
        for row in text_rows(arm, 90, [test + (1 + (arm == "grown")) * one for one in wobble], val=val)
    ]
    return rows + text_rows("grown", 45, [0.866 + one for one in wobble], val=0.9)


def test_the_best_loss_is_the_lowest_and_differences_are_in_nats() -> None:
    (study,) = growing_report.report(measured_text(12))
    (best, reference) = [one for one in study["differences"] if one["budget"] == 90]
    assert (best["arm"], best["other"], best["is_best_static"]) == ("grown", "between", True)
    assert best["mean"] == pytest.approx(-0.0059)
    assert best["low"] < -0.0059 < best["high"] < 0
    assert best["adjusted_p"] == best["p"] < 0.01
    assert (reference["other"], reference["mean"]) == ("final", pytest.approx(-0.0099))


def test_the_compute_is_reported_with_which_growing_reaches_the_best_static_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In the logarithm of the compute 0.8601 lies at 0.506 of the way from 0.8661 at 45 to 0.8542 at 90: 45 * 2^0.506.
    expected = "MB = 90: grown reaches the loss of between, the best static arm, with 71% of its compute"
    rows = measured_text(12)
    assert expected in growing_report.report(rows)[0]["curves"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    growing_report.main([str(tmp_path / "rows.jsonl")])
    shown = capsys.readouterr().out
    assert expected in shown
    assert "| 90 | grown | 12 | 0.8542 ± 0.0002 | 0.9000 |" in shown
    assert "| 90 | grown − between (best static) | 12 | -0.0059 |" in shown
    assert "accuracy" not in shown


def test_where_static_losses_cross_is_reported() -> None:
    rows = [row for row in measured_text(2) if row["arm"] != "grown"]
    for arm, loss in (("host", 0.85), ("final", 0.84)):
        rows += text_rows(arm, 180, [loss] * 2, val=loss)
    # 0.007 behind at 90 and 0.01 ahead at 180: at 90 * 2^(7 / 17).
    assert growing_report.report(rows)[0]["curves"] == ["host and final cross at MB = 119.7"]
