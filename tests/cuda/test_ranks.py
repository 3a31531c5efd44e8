"""Two GPUs that train one network, through NCCL, with a captured step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import journal_of
from tests.tolaria.processes import GROWS, LONG, NORMED, STACKS, await_checkpoint, ends, start_step, torchrun

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

CUDA = ("device=cuda", "mixed_precision=false")


def test_two_gpus_train_and_grow_as_one_on_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With TF32's ten bits, losses drift apart by 0.1 % within 20 steps.
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    alone, together = tmp_path / "alone", tmp_path / "together"
    torchrun(1, *GROWS, *CUDA, f"hydra.run.dir={alone}")
    torchrun(2, *GROWS, *CUDA, f"hydra.run.dir={together}")
    for kind, metric in [("step", "loss"), ("validation", "val_loss")]:
        one, two = ([line[metric] for line in journal_of(run_dir, kind)] for run_dir in (alone, together))
        assert two == pytest.approx(one, abs=1e-4)  # a device sums in another order
    assert [line["outcome"] for line in journal_of(together, "decision")] == [
        line["outcome"] for line in journal_of(alone, "decision")
    ]


def test_two_gpus_copy_blocks_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    alone, together = tmp_path / "alone", tmp_path / "together"
    torchrun(1, *STACKS, *CUDA, f"hydra.run.dir={alone}")
    torchrun(2, *STACKS, *CUDA, f"hydra.run.dir={together}")
    one, two = ([line["val_loss"] for line in journal_of(run_dir, "validation")] for run_dir in (alone, together))
    assert two == pytest.approx(one, abs=1e-4)
    assert (together / "recipe.json").read_text() == (alone / "recipe.json").read_text()


def test_two_gpus_with_synchronised_batch_norm_train_fork_and_judge_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    alone, together = tmp_path / "alone", tmp_path / "together"
    torchrun(1, *NORMED, *CUDA, f"hydra.run.dir={alone}")
    torchrun(2, *NORMED, *CUDA, "ranks.sync_batch_norm=true", f"hydra.run.dir={together}")
    for kind, metric in [("step", "loss"), ("validation", "val_loss"), ("judgement", "gain")]:
        one, two = ([line[metric] for line in journal_of(run_dir, kind)] for run_dir in (alone, together))
        assert two == pytest.approx(one, abs=1e-3), kind


def test_a_gpu_does_not_wait_for_ever_for_a_rank_that_died(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    processes = start_step(*[(*LONG, *CUDA, "optimization.max_epochs=100000", f"hydra.run.dir={run_dir}")] * 2)
    await_checkpoint(run_dir)
    processes[1].kill()
    codes, stderr = ends(processes)
    assert codes == [1, -signal.SIGKILL]
    assert stderr.count("error: another rank of this run has ended") == 1
