"""A language model from training to text: it grows, resumes, is exported, and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import esper
from esper.cli import main
from esper.inference.sample import continuation
from esper.tolaria import TolariaTrainer
from tests.conftest import journal_of, use
from tests.text import text_config, write_texts
from tests.tolaria.checkpoints.test_resume import assert_same, train

TOKENS = torch.arange(64, 96)[None, :16]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_grown_language_model_is_exported_and_continues_text(
    tmp_path: Path, run_dir: Path, positions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def body(trainer: TolariaTrainer) -> Tensor:
        await trainer.train()
        with torch.no_grad():
            logits: Tensor = trainer.run.model.eval()(TOKENS)
        return logits

    config = text_config(write_texts(tmp_path / "texts"), model__positions=positions)
    logits = use(config, run_dir, body)
    (ended,) = journal_of(run_dir, "run_ended")
    assert ended["result"]["num_parameters"] > ended["result"]["num_parameters_before"]
    assert ended["result"]["test_loss"] < 4.5 < math.log(256)
    out = tmp_path / "exported"
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run_dir), "--out", str(out)])
    assert len(json.loads((out / "model.json").read_text())["mlp_widths"]) == 4
    capsys.readouterr()
    texts = []
    for folder in (run_dir, out):
        model = esper.load(folder)
        with torch.no_grad():
            assert torch.allclose(model.network.eval()(TOKENS), logits, atol=1e-5)
        settings: dict[str, Any] = {"num_tokens": 20, "temperature": 0.9, "top_k": 9, "rng_seed": 4}
        texts.append(continuation(model, "the cat", **settings))
    assert texts[0] == texts[1] != ""
    with pytest.raises(SystemExit, match="0"):
        main(["sample", str(out), "--prompt", "the cat", "--tokens", "20", "--temperature", "0.9", "--top-k", "9",
              "--seed", "4", "--device", "cpu"])  # fmt: skip
    assert capsys.readouterr().out == f"the cat{texts[0]}\n"


@pytest.mark.parametrize(("stop_at", "storage"), [(5, "memory"), (12, "stream")])
def test_stopping_before_and_after_growth_changes_no_bit(tmp_path: Path, stop_at: int, storage: str) -> None:
    config = text_config(write_texts(tmp_path / "texts"), dataset__storage=storage)
    whole, counters = train(config, tmp_path / "whole")
    assert [graft.sources for graft in counters["recipe"]] == [("blocks.0", "blocks.1")]
    train(config, tmp_path / "parts", stop_at=stop_at)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)


def test_streamed_and_resident_text_train_alike(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    runs = [
        train(text_config(texts, dataset__storage=storage), tmp_path / storage)[0] for storage in ("memory", "stream")
    ]
    assert_same(*runs)
    ended = [journal_of(tmp_path / storage, "run_ended")[0]["result"] for storage in ("memory", "stream")]
    assert ended[0]["test_loss"] == ended[1]["test_loss"]
