"""The benchmark of growing by copies: its studies can run, and cells run once at equal compute."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import growing, growing_report
from benchmarks.corpus import write_archive
from benchmarks.growing import Queue, Row, estimate, read_rows
from benchmarks.growing_cells import Cell, plan
from benchmarks.growing_studies import STUDIES
from esper.contracts.events import EpochEnded, Event
from esper.tracking import Journal
from tests.benchmarks.test_corpus import write_wheel

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


SMALL = ("model.width=8", "model.heads=2", "compile_model=false")
PIXELS = ("dataset.image_size=8", "dataset.batch_size=16")


def tiny(study: str, data: Path, outputs: Path, **changes: Any) -> list[Cell]:
    extra = ("model.widths=[4,8,8]", *PIXELS)
    return plan(study, data=data, outputs=outputs, **{"seeds": [1], "budgets": [2], "extra": extra} | changes)


def queue_of(cells: list[Cell], folder: Path, *, seconds: float = 1000.0, is_last_call: bool = False) -> Queue:
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
        is_last_call=is_last_call,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("study", "num"),
    [
        ("claims", 128),
        ("late", 96),
        ("ablation", 75),
        ("controller", 35),
        ("capacity", 84),
        ("resnet18", 40),
        ("small", 96),
        ("vit", 48),
        ("vit_narrow", 12),
    ],
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
        for _, group in itertools.groupby(arms, key=lambda cell: cell.seed):
            lengths = [cell.budget for cell in group]
            assert lengths == sorted(lengths, reverse=True)


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
    given = ["--seeds=1", "--budgets=2", "model.widths=[4,8,8]", *PIXELS]
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


def check_arms(rows: list[Row], *, batch_size: int, epoch_steps: int) -> None:
    """All arms have spent the budget, and the grown one grew at the end of the epoch in which its share was spent."""
    assert [row["arm"] for row in rows] == ["host", "between", "final", "grown"]
    host, between, final, grown = rows
    assert host["num_macs"] == grown["num_macs_before"] < between["num_macs"] < final["num_macs"] == grown["num_macs"]
    for row in rows:
        assert abs(row["total_macs"] - row["max_macs"]) <= 3 * batch_size * row["num_macs"] / 2
    epoch = 3 * batch_size * epoch_steps * host["num_macs"]
    assert grown["growth_steps"] == [epoch_steps * math.ceil(0.3 * host["max_macs"] / epoch)]
    assert grown["growth_steps"][0] < grown["steps"] < host["steps"]


@pytest.mark.long
def test_a_vit_grows_in_the_epoch_in_which_its_share_is_spent(data: Path, tmp_path: Path) -> None:
    queue = queue_of(tiny("vit", data, tmp_path, budgets=[4], extra=(*SMALL, *PIXELS)), tmp_path)
    while queue.run_next():
        pass
    check_arms(read_rows(queue.out), batch_size=16, epoch_steps=72 // 16)


def epochs_of(journal: Path) -> list[str]:
    return [line for line in journal.read_text().splitlines() if '"kind": "epoch"' in line]


def run_next_stopped_after_an_epoch(queue: Queue) -> None:
    """In a process of its own, which sends SIGTERM itself: the run may end before another process sees the epoch."""
    write = Journal.write

    def write_and_stop(journal: Journal, event: Event) -> None:
        write(journal, event)
        if event.kind == EpochEnded.kind:
            os.kill(os.getpid(), signal.SIGTERM)

    Journal.write = write_and_stop  # type: ignore[method-assign]
    queue.run_next()


@pytest.mark.long
def test_a_cell_that_was_stopped_goes_on(data: Path, tmp_path: Path) -> None:
    cells = tiny("claims", data, tmp_path, budgets=[20])[:1]
    queue = queue_of(cells, tmp_path)
    worker = multiprocessing.get_context("spawn").Process(target=run_next_stopped_after_an_epoch, args=(queue,))
    worker.start()
    try:
        worker.join()
    finally:
        worker.kill()
    journal = cells[0].run_dir / "journal.jsonl"
    epochs = epochs_of(journal)
    assert json.loads((cells[0].run_dir / "status.json").read_text())["status"] == "interrupted"
    assert not read_rows(queue.out)

    assert queue.run_next()
    assert len(read_rows(queue.out)) == 1
    assert epochs_of(journal)[0] == epochs[0]


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
    queue = queue_of([cell], tmp_path, seconds=10, is_last_call=True)
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


@pytest.mark.long
def test_the_command_trains_gpt_on_a_corpus_and_compares_losses(tmp_path: Path) -> None:
    wheels = {
        split: [write_wheel(tmp_path / f"{split}-1.0-py3-none-any.whl", {f"{split}.py": f"{split} = [1, 2]\n" * 40})]
        for split in ("train", "val", "test")
    }
    write_archive(tmp_path / "corpus.tar.xz", wheels)
    options = (
        "--device=cpu", "--workers-per-gpu=1", "--seeds=1", "--budgets=0.004", "dataset.context=16",
        "dataset.batch_size=2", *SMALL,
    )  # fmt: skip
    subprocess.run(
        ["bash", "benchmarks/growing.sh", "gpt", tmp_path / "corpus.tar.xz", tmp_path / "out", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "WORK": str(tmp_path / "work"), "MINUTES": "60"},
        check=True,
    )
    rows = read_rows(tmp_path / "out" / "growing.jsonl")
    share = math.ceil(0.3 * rows[0]["max_macs"] / (3 * 2 * rows[0]["num_macs"]))  # steps: an epoch is as long
    check_arms(rows, batch_size=2, epoch_steps=share)
    assert rows[3]["growth_steps"] == [share]
    assert "val_bits_per_byte" in rows[0]
    assert "nats a byte (lower is better)" in (tmp_path / "out" / "tables.md").read_text()
