"""The captured step on a real GPU. CI has none: `benchmarks/gpu.sh` runs these and keeps what they say."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import DatasetConfig, TolariaConfig
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.progress import Progress
from esper.tolaria import TolariaTrainer
from esper.tolaria.optim import set_learning_rates
from esper.tolaria.progress import ProgressReporter
from tests.conftest import journal_of, tiny_config, use
from tests.data.photos import write_photos
from tests.tolaria.checkpoints.test_resume import assert_same, train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

GROW = AdaptationDecision(should_adapt=True, site="layer1.0:after", blueprint_id="basic_block")
COPY = AdaptationDecision(should_adapt=True, site="layer1.1:after", blueprint_id="copy")
COPIES = {
    "model__depths": [2, 2],
    "model__site_kinds": ["after"],
    "morphogenetic__blueprint_categories": ["copy"],
    "mixed_precision": False,
}
MIXED = {
    "dataset__mixup_alpha": 0.2,
    "dataset__cutmix_alpha": 1.0,
    "dataset__random_erasing": 0.5,
    "dataset__rand_augment_num_ops": 2,
}
CULL = AdaptationDecision(should_adapt=True, site="layer1.0:after", action=Action.CULL)


@pytest.fixture(autouse=True)
def _synchronising_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_cuda(**changes: Any) -> TolariaConfig:
    settings = {"device": "cuda", "morphogenetic__policy": "never", "logging__log_interval": 50}
    return tiny_config(**(settings | changes))


def do_steps(trainer: TolariaTrainer, num_steps: int) -> list[float]:
    """Do steps as the trainer does them; returns the running sum of their losses after each."""
    run, sums = trainer.run, []
    for _ in range(num_steps):
        epoch, index = divmod(run.state.global_step, run.steps_per_epoch)
        set_learning_rates(run.optimizer, run.schedule(run.state.global_step), step=run.state.global_step)
        run.growth.before_step()
        run.step.forward_backward_update(epoch=epoch, index=index, step=run.state.global_step)
        run.state.global_step += 1
        sums.append(run.step.sums.epoch[0].clone())
    return [float(value) for value in sums]


def growing(num_steps: int = 8, *, captured: bool, grow: AdaptationDecision = GROW) -> Callable[[TolariaTrainer], Any]:
    async def body(trainer: TolariaTrainer) -> tuple[list[float], dict[str, Tensor]]:
        if not captured:
            trainer.run.step._graph = None
        losses = do_steps(trainer, num_steps)
        assert trainer.run.growth.apply(grow)
        losses += do_steps(trainer, num_steps)
        assert trainer.run.growth.apply(dataclasses.replace(CULL, site=grow.site))
        losses += do_steps(trainer, num_steps)
        return losses, {name: value.clone() for name, value in trainer.run.model.state_dict().items()}

    return body


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": False},
        {"optimization__gradient_clip_norm": 0.5},
        {"autocast_dtype": "float16"},
        {"optimization__ema_decay": 0.9},
        {"optimization__optimizer": "adamw", "optimization__learning_rate": 0.001},
        {"optimization__optimizer": "nadam", "optimization__learning_rate": 0.001},
        {"optimization__accumulate": 2},
        MIXED,
    ],
    ids=["float32", "bfloat16-clipped", "float16", "average", "adamw", "nadam", "parts", "mixed"],
)
def test_eager_and_captured_steps_are_bit_identical_through_growth_and_culling(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    eager, weights = use(on_cuda(**settings), tmp_path / "eager", growing(captured=False))
    captured, same = use(on_cuda(**settings), tmp_path / "captured", growing(captured=True))
    assert captured == eager
    assert_same(weights, same)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimization__ema_decay": 0.9},
        {"optimization__optimizer": "adamw", "optimization__learning_rate": 0.001},
        {"morphogenetic__copy_optimizer_state": True},
    ],
    ids=["plain", "average", "adamw", "state"],
)
def test_eager_and_captured_steps_of_copies_are_bit_identical(settings: dict[str, Any], tmp_path: Path) -> None:
    config = on_cuda(**COPIES | settings)
    eager, weights = use(config, tmp_path / "eager", growing(captured=False, grow=COPY))
    captured, same = use(config, tmp_path / "captured", growing(captured=True, grow=COPY))
    assert captured == eager
    assert_same(weights, same)


def test_compiled_copies_give_the_plain_ones_losses(tmp_path: Path) -> None:
    plain, _ = use(on_cuda(**COPIES), tmp_path / "plain", growing(captured=True, grow=COPY))
    compiled, _ = use(on_cuda(compile_model=True, **COPIES), tmp_path / "compiled", growing(captured=True, grow=COPY))
    assert compiled == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize("stop_at", [6, 9, 14])
def test_a_captured_run_that_stops_among_its_copies_goes_on_bit_identically(stop_at: int, tmp_path: Path) -> None:
    config = on_cuda(morphogenetic__policy="stack", morphogenetic__judged=False, **COPIES)
    whole, counters = train(config, tmp_path / "whole")
    assert len(counters["recipe"]) == 2
    train(config, tmp_path / "parts", stop_at=stop_at)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)


def test_the_compiled_step_gives_the_plain_ones_losses(tmp_path: Path) -> None:
    settings = {"mixed_precision": False}
    plain, _ = use(on_cuda(**settings), tmp_path / "plain", growing(captured=True))
    compiled, _ = use(on_cuda(compile_model=True, **settings), tmp_path / "compiled", growing(captured=True))
    assert compiled == pytest.approx(plain, rel=2e-2)


def test_a_display_gets_the_loss_of_captured_steps_and_nothing_waits_for_it(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        run, told = trainer.run, list[Progress]()
        do_steps(trainer, run.steps_per_epoch + 1)  # as below
        reporter = ProgressReporter(told.append)
        reporter.begin_epoch(run)
        torch.cuda.set_sync_debug_mode("error")
        for index in range(1, run.steps_per_epoch):
            run.step.forward_backward_update(epoch=1, index=index, step=run.state.global_step)
            run.state.global_step += 1
            reporter.after_step(run)
        time.sleep(1.0)  # the device is done, and the next report is due
        reporter.after_step(run)
        assert told[-1].step == run.state.global_step
        assert math.isfinite(told[-1].loss or math.nan)

    use(on_cuda(), run_dir, body)


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_never_wait_for_the_device(captured: bool, dtype: str, run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        run = trainer.run
        if not captured:
            run.step._graph = None
        do_steps(trainer, run.steps_per_epoch + 1)  # an epoch begins with a copy of its order
        torch.cuda.set_sync_debug_mode("error")
        for index in range(1, run.steps_per_epoch):
            set_learning_rates(run.optimizer, run.schedule(run.state.global_step), step=run.state.global_step)
            run.growth.before_step()
            run.step.forward_backward_update(epoch=1, index=index, step=run.state.global_step)
            run.state.global_step += 1

    use(on_cuda(autocast_dtype=dtype, optimization__ema_decay=0.9, **MIXED), run_dir, body)


def test_growing_and_culling_again_and_again_keeps_no_memory(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> list[tuple[int, int]]:
        memory = []
        for _ in range(50):
            do_steps(trainer, 4)
            assert trainer.run.growth.apply(GROW)
            do_steps(trainer, 4)
            assert trainer.run.growth.apply(CULL)
            trainer.run.growth.advance_seeds(is_last=False)
            trainer.run.state.epoch += 1  # the embargo ends
            torch.cuda.synchronize()
            memory.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        return memory

    gc.collect()  # what earlier tests left
    memory = use(on_cuda(morphogenetic__adaptation_cooldown=0, optimization__max_epochs=200), run_dir, body)
    assert memory[-1][0] <= memory[9][0]
    assert memory[-1][1] <= memory[9][1]


def test_a_run_that_stops_and_goes_on_is_bit_identical(tmp_path: Path) -> None:
    config = on_cuda(morphogenetic__policy="schedule", optimization__ema_decay=0.9)
    whole, _ = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=9)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)


def test_a_step_that_is_split_is_captured_anew_and_bit_identical_to_the_eager_one(tmp_path: Path) -> None:
    def splitting(*, captured: bool) -> Callable[[TolariaTrainer], Any]:
        async def body(trainer: TolariaTrainer) -> tuple[list[float], dict[str, Tensor]]:
            step = trainer.run.step
            if not captured:
                step._graph = None
            losses = do_steps(trainer, 8)
            step.split()
            losses += do_steps(trainer, 8)
            assert step._graph is None or step._graph._graph is not None
            return losses, {name: value.clone() for name, value in trainer.run.model.state_dict().items()}

        return body

    eager, weights = use(on_cuda(), tmp_path / "eager", splitting(captured=False))
    captured, same = use(on_cuda(), tmp_path / "captured", splitting(captured=True))
    assert captured == eager
    assert_same(weights, same)


@pytest.mark.parametrize("fitting_calls", [0, 3], ids=["eager", "in the capture"])
def test_a_step_that_runs_out_of_memory_is_split_and_captured(fitting_calls: int, run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        num_calls = 0

        def exhaust(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal num_calls
            if module.training and torch.is_grad_enabled() and len(args[0]) > 16:
                num_calls += 1
                if num_calls > fitting_calls:
                    torch.empty(1 << 50, device="cuda")

        trainer.run.model.host.register_forward_pre_hook(exhaust)
        await trainer.train()
        graph = trainer.run.step._graph
        assert graph is not None
        assert graph._graph is not None

    use(on_cuda(), run_dir, body)
    told = journal_of(run_dir)
    (step,) = [entry["step"] for entry in told if entry["kind"] == "notice" and "two halves" in entry["message"]]
    assert step == fitting_calls
    assert told[-1]["status"] == "finished"


def test_growth_that_brings_nan_is_undone_on_a_device_too(tmp_path: Path) -> None:
    explodes = on_cuda(morphogenetic__policy="schedule", morphogenetic__insertion_gain_rate=1e30)
    tensors, growth = train(explodes, tmp_path / "undone")
    assert growth["refusals"]["num_returns"] == 1
    without, _ = train(on_cuda(), tmp_path / "without")
    assert_same(tensors, without)


def test_forks_leave_no_trace_but_in_the_decision(tmp_path: Path) -> None:
    settings = {"morphogenetic__policy": "heuristic", "morphogenetic__fork_steps": 5, "optimization__max_epochs": 6}
    config = on_cuda(morphogenetic__growth_until=0.7, **settings)
    one, _ = train(config, tmp_path / "one")
    two, _ = train(config, tmp_path / "two")
    assert_same(one, two)


def test_a_recorded_network_is_rebuilt_and_trained(tmp_path: Path) -> None:
    config = on_cuda(morphogenetic__policy="schedule", morphogenetic__judged=False)
    train(config, tmp_path / "grown")
    replay = on_cuda(morphogenetic__policy="replay", morphogenetic__recipe_path=str(tmp_path / "grown"))
    tensors, counters = train(replay, tmp_path / "replayed")
    assert len(counters["recipe"]) == 1
    assert any(name.startswith("slots.") and "conv" in name for name in tensors)


def test_log_lines_tell_the_steps_they_are_about(run_dir: Path) -> None:
    use(on_cuda(logging__log_interval=2), run_dir, lambda trainer: trainer.train())
    lines = journal_of(run_dir, "step")
    assert [entry["step"] for entry in lines] == list(range(2, 19, 2))
    assert all(entry["loss"] > 0 and entry["images_per_s"] > 0 for entry in lines)


def test_a_step_that_cannot_be_captured_says_why(run_dir: Path) -> None:
    config = on_cuda(model__gradient_checkpointing=True, optimization__max_epochs=1)
    use(config, run_dir, lambda trainer: trainer.train())
    assert "not captured as a CUDA graph: model.gradient_checkpointing=true" in (run_dir / "journal.jsonl").read_text()


class _Dropped(torch.nn.Module):
    def __init__(self, host: torch.nn.Module) -> None:
        super().__init__()
        self.host = host

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(self.host(x), 0.5, self.training)


def test_random_numbers_are_new_in_every_replay_and_resume_where_they_stood(tmp_path: Path) -> None:
    def draw(*, captured: bool) -> Callable[[TolariaTrainer], Any]:
        async def body(trainer: TolariaTrainer) -> tuple[list[float], Tensor]:
            step = trainer.run.step
            step.model = _Dropped(trainer.run.model).train()
            if not captured:
                step._graph = None
            torch.cuda.manual_seed(7)
            return do_steps(trainer, 10), torch.cuda.get_rng_state()

        return body

    eager, state = use(on_cuda(), tmp_path / "eager", draw(captured=False))
    captured, same = use(on_cuda(), tmp_path / "captured", draw(captured=True))
    assert captured == eager
    assert torch.equal(state, same)


def test_a_streamed_training_is_captured_too_and_never_waits(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    images = DatasetConfig(
        name="imagefolder", storage="stream", data_dir=str(photos), image_size=8, batch_size=16, num_workers=2
    )

    def steps(*, captured: bool) -> Callable[[TolariaTrainer], Any]:
        async def body(trainer: TolariaTrainer) -> list[float]:
            if not captured:
                trainer.run.step._graph = None
            losses = do_steps(trainer, 8)
            torch.cuda.set_sync_debug_mode("error")
            for index in range(8, 12):  # within an epoch
                epoch, within = divmod(index, trainer.run.steps_per_epoch)
                trainer.run.step.forward_backward_update(epoch=epoch, index=within, step=index)
            torch.cuda.set_sync_debug_mode("default")
            return [*losses, float(trainer.run.step.sums.epoch[0])]

        return body

    eager = use(on_cuda(dataset=images), tmp_path / "eager", steps(captured=False))
    assert use(on_cuda(dataset=images), tmp_path / "captured", steps(captured=True)) == eager
