"""The studies of transformers, at toy size: all arms spend one budget, and the grown one grows at its share of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.corpus import write_archive
from benchmarks.growing import read_rows
from tests.benchmarks.test_corpus import write_wheel

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("model.width=8", "model.heads=2", "compile_model=false")


def write_images(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, num in (("train", 40), ("test", 10)):
        for label in range(2):
            (folder / split / f"class{label}").mkdir(parents=True)
            for index in range(num):
                pixels = draw.integers(0, 128, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{index}.png")
    return folder


def write_text(folder: Path) -> Path:
    """An archive as corpus.py writes it."""
    folder.mkdir()
    wheels = {
        split: [write_wheel(folder / f"{split}-1.0-py3-none-any.whl", {f"{split}.py": f"{split} = [1, 2, 3]\n" * 40})]
        for split in ("train", "val", "test")
    }
    write_archive(folder / "corpus.tar.xz", wheels)
    return folder / "corpus.tar.xz"


def train(study: str, data: Path, folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a study with its command for a machine, and its tables."""
    command = ["bash", "benchmarks/growing.sh", study, data, folder / "out", "--device=cpu", "--workers-per-gpu=1"]
    subprocess.run(
        [*command, "--seeds=1", *options, *SMALL],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "WORK": str(folder / "work")},
        check=True,
    )
    return read_rows(folder / "out" / "growing.jsonl"), (folder / "out" / "tables.md").read_text()


def check_arms(rows: list[dict[str, Any]], *, batch_size: int, steps_per_epoch: int) -> None:
    assert [row["arm"] for row in rows] == ["host", "between", "final", "grown"]
    host, between, final, grown = rows
    for row in rows:
        assert abs(row["total_macs"] - row["max_macs"]) <= 3 * batch_size * row["num_macs"] / 2
    assert host["num_macs"] == grown["num_macs_before"] < between["num_macs"] < final["num_macs"] == grown["num_macs"]
    host_step = 3 * batch_size * host["num_macs"]
    epochs = math.ceil(0.3 * host["max_macs"] / (host_step * steps_per_epoch))
    assert grown["growth_steps"] == [epochs * steps_per_epoch]
    assert epochs * steps_per_epoch < grown["steps"] < host["steps"]


@pytest.mark.long
def test_vit_grows_at_the_first_epoch_after_its_share_of_the_budget(tmp_path: Path) -> None:
    options = ("--budgets=4", "dataset.image_size=8", "dataset.batch_size=16")
    rows, tables = train("vit", write_images(tmp_path / "images"), tmp_path, *options)
    check_arms(rows, batch_size=16, steps_per_epoch=72 // 16)
    assert "grown − final" in tables


@pytest.mark.long
def test_gpt_grows_at_its_share_of_the_budget_and_is_compared_by_loss(tmp_path: Path) -> None:
    options = ("--budgets=0.006", "dataset.context=16", "dataset.batch_size=2")
    rows, tables = train("gpt", write_text(tmp_path / "text"), tmp_path, *options)
    host = rows[0]
    share = math.ceil(0.3 * host["max_macs"] / (3 * 2 * host["num_macs"]))
    check_arms(rows, batch_size=2, steps_per_epoch=share)
    assert rows[3]["growth_steps"] == [share]
    assert "val_bits_per_byte" in host
    assert "nats a byte (lower is better)" in tables
