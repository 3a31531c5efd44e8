"""The end of an epoch on a real GPU: validation as a CUDA graph, checkpoints copied while training continues."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints import host_copy
from esper.tolaria.checkpoints.files import find_checkpoints, load
from esper.tolaria.checkpoints.host_copy import HostCopy
from esper.tolaria.checkpoints.saving import start_saving
from tests.conftest import journal_of, use
from tests.cuda.test_step import CULL, GROW, do_steps, on_cuda, pytestmark  # noqa: F401
from tests.data.photos import write_photos
from tests.tolaria.checkpoints.test_resume import assert_same

Figures = list[tuple[float, dict[str, float]]]


@pytest.fixture(autouse=True)
def _synchronising_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def validating(*, captured: bool) -> Callable[[TolariaTrainer], Any]:
    """Validate between steps, before a growth, after it, and after it is culled."""

    async def body(trainer: TolariaTrainer) -> tuple[Figures, dict[str, Tensor]]:
        run, figures = trainer.run, []
        measure, graph = run.step.captured_measure, run.step._evaluation_graph
        assert measure is not None
        assert graph is not None
        if not captured:
            run.step.captured_measure = None
        for change in (None, GROW, CULL):
            if change is not None:
                assert run.growth.apply(change)
            for _ in range(4):
                do_steps(trainer, 4)
                figures.append(run.begin_validation().figures())
            assert (graph._graph is not None) == captured
        assert measure.obstacle is None
        return figures, {name: value.clone() for name, value in run.model.state_dict().items()}

    return body


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixed_precision": False},
        {"autocast_dtype": "float16"},
        {"optimization__ema_decay": 0.9},
        {"compile_model": True},
    ],
    ids=["bfloat16", "float32", "float16", "average", "compiled"],
)
def test_captured_validations_are_bit_identical_to_eager_ones_through_growth_and_culling(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.data.evaluation._BATCH", 16)  # four whole batches
    eager, weights = use(on_cuda(**settings), tmp_path / "eager", validating(captured=False))
    captured, same = use(on_cuda(**settings), tmp_path / "captured", validating(captured=True))
    assert captured == eager
    assert_same(weights, same)  # training does not notice


@pytest.mark.parametrize("settings", [{}, {"optimization__ema_decay": 0.9}], ids=["plain", "average"])
def test_a_last_batch_with_fewer_images_is_captured_too(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.data.evaluation._BATCH", 24)  # 24, 24, 16: of a smaller batch, kernels may be others
    eager, weights = use(on_cuda(**settings), tmp_path / "eager", validating(captured=False))
    captured, same = use(on_cuda(**settings), tmp_path / "captured", validating(captured=True))
    for (loss, metrics), (expected, expected_metrics) in zip(captured, eager, strict=True):
        assert loss == pytest.approx(expected, rel=1e-2)
        assert metrics["accuracy"] == pytest.approx(expected_metrics["accuracy"], abs=2 / 64)
    assert_same(weights, same)


def test_a_validation_of_streamed_images_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.data.evaluation._BATCH", 4)
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    images = DatasetConfig(
        name="imagefolder", storage="stream", data_dir=str(photos), image_size=8, batch_size=16, num_workers=2
    )

    def validated(*, captured: bool) -> Callable[[TolariaTrainer], Any]:
        async def body(trainer: TolariaTrainer) -> list[float]:
            run = trainer.run
            if not captured:
                run.step.captured_measure = None
            do_steps(trainer, 4)
            return [run.begin_validation().figures()[0] for _ in range(4)]

        return body

    eager = use(on_cuda(dataset=images), tmp_path / "eager", validated(captured=False))
    captured = use(on_cuda(dataset=images), tmp_path / "captured", validated(captured=True))
    assert captured == pytest.approx(eager, rel=1e-2)


@torch.library.custom_op("esper_tests::largest", mutates_args=())
def largest(x: Tensor) -> float:
    """An operator that reads the device itself, which the dispatcher does not show."""
    return float(x.max())


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda x: float(x.sum()), "aten::_local_scalar_dense reads the device"),
        (largest, "an operator reads the device, or waits for it"),
    ],
    ids=["through the dispatcher", "inside an operator"],
)
def test_a_network_that_reads_the_device_in_validation_is_validated_eagerly_and_says_so(
    read: Callable[[Tensor], float], told: str, run_dir: Path
) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            if not module.training:
                read(args[0])

        trainer.run.model.host.register_forward_pre_hook(hook)
        await trainer.train()
        assert trainer.run.step._graph is not None
        assert trainer.run.step._graph._graph is not None

    use(on_cuda(), run_dir, body)
    events = journal_of(run_dir)
    reason = f"not captured as a CUDA graph: {told}"
    assert [event["kind"] for event in events if event.get("message", "").endswith(reason)] == ["notice"]
    assert events[-1]["status"] == "finished"


def test_the_end_of_an_epoch_waits_for_the_device_only_to_read_its_figures(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.data.evaluation._BATCH", 24)

    async def body(trainer: TolariaTrainer) -> None:
        run = trainer.run
        do_steps(trainer, run.steps_per_epoch)
        for _ in range(3):
            run.begin_validation().figures()
        torch.cuda.set_sync_debug_mode("error")
        evaluation = run.begin_validation()
        start_saving(run, "best", is_finite=True)
        start_saving(run, is_finite=True, is_same_network=True)
        torch.cuda.set_sync_debug_mode("default")
        assert evaluation.figures()[0] > 0

    use(on_cuda(optimization__ema_decay=0.9), run_dir, body)
    best, step = (load(find_checkpoints(run_dir / "checkpoints", prefix=prefix)[0]) for prefix in ("best", "step"))
    assert_same(dict(best.model), dict(step.model))


@pytest.mark.parametrize("limit", [2**29, 0], ids=["gathered on the device", "one by one"])
def test_a_copy_holds_what_tensors_were_although_they_change_at_once(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_copy, "_MAX_DEVICE_BYTES", limit)
    tensors = {
        "weight": torch.randn(64, 32, 3, 3, device="cuda").to(memory_format=torch.channels_last),
        "half": torch.randn(1000, device="cuda", dtype=torch.bfloat16),
        "count": torch.tensor(7, device="cuda"),
        "host": torch.randn(5),
    }
    expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):  # as training has one
            copy = HostCopy(tensors)
            for tensor in tensors.values():
                tensor.add_(1)
        found = copy.wait()
        torch.cuda.synchronize()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert all(value.is_contiguous() for value in found.values())
        expected = {name: value + 1 for name, value in expected.items()}


def test_a_run_that_validates_and_saves_after_every_epoch_resumes_bit_identically(tmp_path: Path) -> None:
    async def body(trainer: TolariaTrainer) -> dict[str, Tensor]:
        await trainer.train()
        return {name: value.clone() for name, value in trainer.run.model.state_dict().items()}

    async def stopped(trainer: TolariaTrainer) -> None:
        for _ in range(2):
            await trainer.train_epoch()
            await trainer.handle_end_of_epoch()

    config = on_cuda(morphogenetic__policy="schedule", optimization__ema_decay=0.9, optimization__max_epochs=4)
    config = dataclasses.replace(config, mixed_precision=False)
    whole = use(config, tmp_path / "whole", body)
    use(config, tmp_path / "parts", stopped)
    assert_same(whole, use(config, tmp_path / "parts", body))
