"""The benchmark of growing by copies: its studies can run, cells run once, and the report says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import growing, growing_report
from benchmarks.growing import Queue, estimate, read_rows
from benchmarks.growing_cells import Cell, plan
from benchmarks.growing_studies import STATIC, STUDIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, num in (("train", 40), ("test", 10)):
        for label in range(2):
            (folder / split / f"class{label}").mkdir(parents=True)
            for index in range(num):
                pixels = draw.integers(0, 128, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{index}.png")
    return folder


def tiny(study: str, data: Path, outputs: Path, **changes: Any) -> list[Cell]:
    extra = ("model.widths=[4,8,8]", "dataset.image_size=8", "dataset.batch_size=16")
    return plan(study, data=data, outputs=outputs, **{"seeds": [1], "budgets": [2], "extra": extra} | changes)


def queue_of(cells: list[Cell], folder: Path, *, seconds: float = 1000.0) -> Queue:
    (folder / "locks").mkdir(exist_ok=True)
    (folder / "rows.jsonl").touch()
    now = time.time()
    return Queue(
        cells=cells,
        out=folder / "rows.jsonl",
        locks=folder / "locks",
        device="cpu",
        started=now,
        deadline=now + seconds,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("study", "num"),
    [("claims", 128), ("ablation", 75), ("controller", 35), ("capacity", 84), ("resnet18", 40), ("small", 96)],
)
def test_every_cell_of_a_study_can_run_and_its_arms_get_one_budget(
    study: str, num: int, data: Path, tmp_path: Path
) -> None:
    seeds = list(range(200, 212))
    cells = tiny(study, data, tmp_path, seeds=seeds, budgets=None)  # composes and checks the configurations
    assert len(cells) == num
    assert len({cell.place for cell in cells}) == len({cell.run_dir for cell in cells}) == num
    for name in STUDIES[study]:
        arms = [cell for cell in cells if cell.study == name and cell.arm != "trunk"]
        budgets = {(cell.budget, cell.max_macs) for cell in arms}
        assert len(budgets) == len({budget for budget, _ in budgets})
        order = [cell.seed for cell in arms if cell.budget == arms[0].budget]
        assert order == sorted(order)  # whole seeds first


@pytest.mark.long
def test_cells_run_once_at_equal_compute_and_count_for_other_studies(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tiny("claims", data, tmp_path)
    queue = queue_of(cells, tmp_path)
    while queue.run_next():
        pass
    rows = read_rows(queue.out)
    assert [row["arm"] for row in rows] == ["host", "between", "final", "grown"]
    for cell, row in zip(cells, rows, strict=True):
        step = 3 * 16 * row["num_macs"]
        assert abs(row["total_macs"] - cell.max_macs) <= step / 2
    assert rows[3]["num_macs"] == rows[2]["num_macs"] > rows[3]["num_macs_before"] == rows[0]["num_macs"]
    (grown_at,) = rows[3]["growth_steps"]
    assert 0 < grown_at < rows[3]["steps"]
    assert str(tmp_path) not in queue.out.read_text()

    options = ["claims", f"--data={data}", f"--out={queue.out}", f"--outputs={tmp_path}", "--device=cpu"]
    given = ["--seeds=1", "--budgets=2", "model.widths=[4,8,8]", "dataset.image_size=8", "dataset.batch_size=16"]
    with pytest.raises(SystemExit, match="0"):
        growing.main([*options, *given])
    assert "4 cells, 0 to do" in capsys.readouterr().out

    others = queue_of(tiny("controller", data, tmp_path), tmp_path, seconds=0)
    assert not others.run_next()
    copied = read_rows(queue.out)[4:]
    assert [(row["study"], row["arm"]) for row in copied] == [("controller", "all stages")]
    assert copied[0]["test_accuracy"] == rows[3]["test_accuracy"]

    growing_report.main([str(queue.out)])
    shown = capsys.readouterr().out
    assert "## claims" in shown
    assert "grown − final" in shown


@pytest.mark.long
def test_other_arms_start_from_the_trunk_and_wait_for_it(data: Path, tmp_path: Path) -> None:
    cells = tiny("capacity", data, tmp_path)
    assert [cell.arm for cell in cells] == ["trunk", "continue", "scratch", "grown"]
    waiting = queue_of(cells[1:2], tmp_path)
    assert not waiting.run_next()
    queue = queue_of(cells[:2], tmp_path)
    assert queue.run_next()
    assert queue.run_next()
    assert [row["arm"] for row in read_rows(queue.out)] == ["trunk", "continue"]


def test_a_cell_that_fails_is_recorded_and_not_tried_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell, *_) = tiny("claims", data, tmp_path)
    elsewhere = tuple(f"dataset.data_dir={tmp_path}" if "data_dir" in one else one for one in cell.overrides)
    broken = Cell(**{name: getattr(cell, name) for name in cell.__dataclass_fields__} | {"overrides": elsewhere})
    queue = queue_of([broken], tmp_path)
    with pytest.raises(SystemExit, match="3"):
        queue.run_next()
    assert not queue.run_next()
    (row,) = read_rows(queue.out)
    assert "needs a folder train/" in row["error"]
    assert "needs a folder train/" in capsys.readouterr().out


def test_a_cell_is_not_begun_that_would_not_end_in_time(data: Path, tmp_path: Path) -> None:
    (cell, *_) = tiny("claims", data, tmp_path)
    queue = queue_of([cell], tmp_path, seconds=10)
    known = {"study": "claims", "arm": "host", "budget": 1, "seed": 9, "digest": "another", "seconds": 20.0}
    queue.out.write_text(json.dumps(known) + "\n" + '{"cut off')
    assert not queue.run_next()
    assert read_rows(queue.out) == [known]


def test_the_estimate_is_that_of_the_most_similar_rows(tmp_path: Path) -> None:
    cell = Cell(
        study="claims", arm="grown", budget=40, seed=1, overrides=(), max_macs=1, digest="", run_dir=tmp_path
    )  # fmt: skip
    assert estimate(cell, []) == 0
    rows = [
        {"study": "claims", "arm": arm, "budget": epochs, "seconds": seconds}
        for arm, epochs, seconds in (("host", 40, 70.0), ("grown", 20, 30.0), ("grown", 20, 32.0), ("grown", 10, 99.0))
    ]
    assert estimate(cell, rows) == pytest.approx(1.1 * 64)
    assert estimate(cell, rows[:1]) == pytest.approx(1.1 * 70)
    assert estimate(cell, [{**rows[0], "study": "small"}]) == 0


# --- the report -------------------------------------------------------------------------------------------------------


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


# --- the command for a machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1])
def test_the_command_unpacks_the_data_and_writes_tables_though_a_cell_fails(
    status: int, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "data.tar"
    subprocess.run(["tar", "-cf", archive, "-C", data.parent, data.name], check=True)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$@"\n[[ $1 == *growing.py ]] && exit {status}\nexit 0\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "benchmarks/growing.sh", "claims", archive, tmp_path / "out", "--seeds=1"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python), "WORK": str(tmp_path / "work")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    folder = tmp_path / "work" / "data" / archive.name / data.name
    assert len(list(folder.glob("train/*/*.png"))) == 80
    assert f"claims --data {folder} --out {tmp_path}/out/growing.jsonl" in done.stdout
    assert "--seeds=1" in done.stdout
    assert "growing_report.py" in (tmp_path / "out" / "tables.md").read_text()
