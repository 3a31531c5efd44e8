"""Text in captured steps on a real GPU; see test_step.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints.contents import snapshot
from tests.conftest import use
from tests.cuda.test_step import do_steps, pytestmark  # noqa: F401
from tests.text import text_config, write_texts
from tests.tolaria.checkpoints.test_resume import assert_same, train


@pytest.mark.parametrize(("positions", "optimizer"), [("learned", "adamw"), ("rotary", "muon")])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_eager_and_captured_steps_of_text_are_bit_identical(
    tmp_path: Path, storage: str, positions: str, optimizer: str
) -> None:
    config = text_config(
        write_texts(tmp_path / "texts"),
        device="cuda",
        dataset__storage=storage,
        model__positions=positions,
        optimization__optimizer=optimizer,
    )

    def trained(run_dir: Path, *, captured: bool) -> tuple[list[float], dict[str, Tensor]]:
        async def body(trainer: TolariaTrainer) -> tuple[list[float], dict[str, Tensor]]:
            if not captured:
                trainer.run.step._graph = None
            losses = do_steps(trainer, 12)  # an epoch has 8
            return losses, {name: tensor.clone() for name, tensor in snapshot(trainer.run).model.items()}

        return use(config, run_dir, body)

    eager, weights = trained(tmp_path / "eager", captured=False)
    captured, same = trained(tmp_path / "captured", captured=True)
    assert captured == eager
    assert_same(weights, same)


def test_a_captured_language_model_that_stops_after_growth_goes_on_bit_identically(tmp_path: Path) -> None:
    config = text_config(write_texts(tmp_path / "texts"), device="cuda")
    whole, counters = train(config, tmp_path / "whole")
    assert len(counters["recipe"]) == 1
    train(config, tmp_path / "parts", stop_at=12)
    assert_same(whole, train(config, tmp_path / "parts")[0])


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_steps_on_text_never_wait_for_the_device(tmp_path: Path, storage: str) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        do_steps(trainer, 5)  # a pass begins with a copy of its order, and the step is captured
        torch.cuda.set_sync_debug_mode("error")
        try:
            for index in range(5, 8):
                trainer.run.step.forward_backward_update(epoch=0, index=index, step=index)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    use(text_config(write_texts(tmp_path / "texts"), device="cuda", dataset__storage=storage), tmp_path / "run", body)


def test_a_captured_step_does_not_depend_on_workspaces_that_others_free(tmp_path: Path) -> None:
    config = text_config(write_texts(tmp_path / "texts"), device="cuda")

    def trained(run_dir: Path, *, frees: bool) -> list[float]:
        async def body(trainer: TolariaTrainer) -> list[float]:
            losses = do_steps(trainer, 6)
            if frees:  # as Lightning does at the end of a training
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.empty_cache()
            return losses + do_steps(trainer, 6)

        return use(config, run_dir, body)

    assert trained(tmp_path / "freed", frees=True) == trained(tmp_path / "kept", frees=False)
