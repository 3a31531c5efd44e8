"""GPUs by number, and runs and networks that move between devices; see test_step.py."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.inference import load
from esper.tolaria import TolariaTrainer
from tests.conftest import journal_of, use
from tests.cuda.test_step import COPIES, do_steps, growing, on_cuda, pytestmark  # noqa: F401
from tests.tolaria.checkpoints.test_resume import assert_same, train

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
FLOAT32 = {"mixed_precision": False, "morphogenetic__policy": "schedule", "morphogenetic__judged": False}


def notices(run_dir: Path) -> list[str]:
    return [event["message"] for event in journal_of(run_dir, "notice")]


def test_a_gpu_by_its_number_trains_as_the_default_one(tmp_path: Path) -> None:
    default, weights = use(on_cuda(), tmp_path / "default", growing(captured=True))
    numbered, same = use(on_cuda(device="cuda:0"), tmp_path / "numbered", growing(captured=True))
    assert numbered == default
    assert_same(weights, same)


@TWO
def test_training_on_the_second_gpu_leaves_the_first_alone_and_gives_the_same(tmp_path: Path) -> None:
    first, weights = use(on_cuda(device="cuda:0"), tmp_path / "first", growing(captured=True))
    gc.collect()
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)

    async def body(trainer: TolariaTrainer) -> tuple[Any, Any]:
        losses, tensors = await growing(captured=True)(trainer)
        graph = trainer.run.step._graph
        assert graph is not None
        assert graph._graph is not None
        assert {tensor.device for tensor in tensors.values()} == {torch.device("cuda:1")}
        return losses, {name: tensor.cpu() for name, tensor in tensors.items()}

    second, same = use(on_cuda(device="cuda:1"), tmp_path / "second", body)
    assert torch.cuda.max_memory_allocated(0) == before
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert second == first
        assert_same({name: tensor.cpu() for name, tensor in weights.items()}, same)


@TWO
def test_a_run_goes_on_on_the_other_gpu_bit_identically(tmp_path: Path) -> None:
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("needs two GPUs of one kind")
    settings = {"morphogenetic__policy": "schedule", "morphogenetic__judged": False, "autocast_dtype": "float16"}
    whole, counters = train(on_cuda(device="cuda:0", **settings), tmp_path / "whole")
    assert len(counters["recipe"]) == 1
    train(on_cuda(device="cuda:1", **settings), tmp_path / "parts", stop_at=12)
    resumed, _ = train(on_cuda(device="cuda:0", **settings), tmp_path / "parts")
    assert_same(whole, resumed)
    assert not any(message.startswith("resumes on") for message in notices(tmp_path / "parts"))


@TWO
def test_a_run_says_that_it_leaves_gpus_idle(tmp_path: Path) -> None:
    train(on_cuda(device="cuda:1"), tmp_path / "run", stop_at=2)
    told = f"trains on one of {torch.cuda.device_count()} GPUs, cuda:1;"
    assert [message for message in notices(tmp_path / "run") if message.startswith(told)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("start", "end"), [("cuda", "cpu"), ("cpu", "cuda:0")])
def test_a_run_moves_between_cpu_and_gpu_through_growth(tmp_path: Path, start: str, end: str, optimizer: str) -> None:
    settings = {**FLOAT32, "optimization__optimizer": optimizer, "optimization__learning_rate": 0.002}
    whole, counters = train(on_cuda(device="cpu", **settings), tmp_path / "whole")
    assert len(counters["recipe"]) == 1
    train(on_cuda(device=start, **settings), tmp_path / "parts", stop_at=12)
    moved, _ = train(on_cuda(device=end, **settings), tmp_path / "parts")
    assert moved.keys() - {"rng|cuda"} == whole.keys() - {"rng|cuda"}
    for name, tensor in whole.items():
        if name.startswith(("host.", "slots.")) and "|" not in name and tensor.is_floating_point():
            torch.testing.assert_close(moved[name].cpu(), tensor, rtol=0.05, atol=0.02, msg=name)
    assert any(
        message.startswith(f"resumes on {end} what trained on {start}") for message in notices(tmp_path / "parts")
    )


@TWO
def test_a_network_predicts_on_the_second_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(on_cuda(device="cuda:1", **COPIES), run_dir)
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    network = load(run_dir)
    expected = network.outputs(images)
    network = load(run_dir, device="cuda:1")
    assert network.device == torch.device("cuda:1")
    torch.testing.assert_close(network.outputs(images), expected, rtol=1e-2, atol=1e-2)


@TWO
def test_steps_on_the_second_gpu_never_wait_for_it(tmp_path: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        run = trainer.run
        do_steps(trainer, run.steps_per_epoch + 1)  # an epoch begins with a copy of its order
        torch.cuda.set_sync_debug_mode("error")
        try:
            for index in range(1, run.steps_per_epoch):
                run.step.forward_backward_update(epoch=1, index=index, step=run.state.global_step)
                run.state.global_step += 1
        finally:
            torch.cuda.set_sync_debug_mode("default")

    use(on_cuda(device="cuda:1"), tmp_path / "run", body)
