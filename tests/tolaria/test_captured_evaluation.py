"""What the captured evaluation computes, called eagerly as CPUs need; tests/cuda captures it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from esper.configs import TaskConfig
from esper.data import DataSpec
from esper.tasks import Task, build_task
from esper.tolaria.captured_evaluation import CapturedMeasure, DeviceReadError, NoDeviceReads
from esper.tolaria.cuda_graph import CapturedFunction
from esper.tolaria.evaluate import measure

CPU = torch.device("cpu")
CLASSES = DataSpec(inputs=(3, 4, 4), num_outputs=7)
TEXT = DataSpec(inputs=(5,), num_outputs=11, dtype=torch.int64)


class Eager(CapturedFunction):
    """The part of a captured function that does not need a device."""

    def __init__(self) -> None:
        self.num_calls = 0

    @property
    def num_warmup_left(self) -> int:
        return 2

    def invalidate(self) -> None:
        pass

    def run(self, function: Callable[[], None]) -> None:
        self.num_calls += 1
        function()


def images(num: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(7, (num,), generator=generator)
    yield from zip(inputs.split(size), targets.split(size), strict=True)


def windows(lengths: list[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for num, length in lengths:
        tokens = torch.randint(11, (num, length + 1), generator=generator)
        yield tokens[:, :-1], tokens[:, 1:]


def classifier() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 7))
    return model, build_task(TaskConfig(), CLASSES, CPU)


def assert_measures_alike(model: nn.Module, task: Task, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> int:
    graph = Eager()
    captured = CapturedMeasure(model, task, graph=graph, autocast_dtype=None)
    for _ in range(2):  # buffers are used again
        losses, sums = captured(batches())
        expected, expected_sums = measure(model, batches(), task)
        assert [one.shape for one in losses] == [one.shape for one in expected]
        for one, other in zip(losses, expected, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(sums, expected_sums)
    assert captured.obstacle is None
    return graph.num_calls


@pytest.mark.parametrize("num", [8, 20, 16])
def test_a_last_batch_with_fewer_images_measures_the_same_in_the_same_graph(num: int) -> None:
    assert assert_measures_alike(*classifier(), lambda: images(num, 8)) == 2 * -(-num // 8)


def test_rows_behind_a_last_batch_do_not_count_even_if_they_are_nan() -> None:
    model, task = classifier()
    inputs, targets = next(images(8, 8))
    inputs[5] = float("nan")
    captured = CapturedMeasure(model, task, graph=Eager(), autocast_dtype=None)
    captured([(inputs, targets)])
    (loss,), sums = captured([(inputs[:3], targets[:3])])
    assert loss.isfinite().all()
    torch.testing.assert_close(sums, measure(model, [(inputs[:3], targets[:3])], task)[1])


def test_a_shorter_last_window_of_a_text_is_measured_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))
    task = build_task(TaskConfig(name="language_model"), TEXT, CPU)
    assert assert_measures_alike(model, task, lambda: windows([(4, 5), (4, 5), (2, 5), (1, 3)])) == 2 * 3


def test_the_network_stays_in_its_mode_and_keeps_its_statistics() -> None:
    model, task = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    CapturedMeasure(model, task, graph=Eager(), autocast_dtype=torch.bfloat16)(images(20, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Reading(nn.Module):
    def __init__(self, read: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.read = read
        self.head = nn.Linear(48, 7)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(x.flatten(1))
        self.read(output)
        return output


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda x: float(x.sum()), "aten::_local_scalar_dense reads the device"),
        (lambda x: x[x > 0], "aten::index.Tensor reads the device"),
        (lambda x: x.nonzero(), "aten::nonzero reads the device"),
    ],
    ids=["a value", "a mask", "a shape"],
)
def test_a_network_that_reads_the_device_is_measured_eagerly_and_says_why(
    read: Callable[[Tensor], object], told: str
) -> None:
    model, task = Reading(read), classifier()[1]
    captured = CapturedMeasure(model, task, graph=Eager(), autocast_dtype=None)
    losses, sums = captured(images(20, 8))
    expected, expected_sums = measure(model, images(20, 8), task)
    assert captured.obstacle == told
    assert torch.equal(torch.cat(losses), torch.cat(expected))
    assert torch.equal(sums, expected_sums)


def test_what_can_be_captured_is_not_refused() -> None:
    with NoDeviceReads():  # type: ignore[no-untyped-call]
        x = torch.randn(4, 5)
        x[torch.tensor([1, 2])] = 0.0
        x[torch.arange(3)].topk(2).values.to(torch.float64).where(x[:3, :2] > 0, 0).sum()
    with pytest.raises(DeviceReadError, match=r"copies between cpu and meta"), NoDeviceReads():  # type: ignore[no-untyped-call]
        torch.randn(3).to("meta")


def test_nothing_of_the_compiler_is_imported_to_find_reads_of_the_device() -> None:
    dispatch = NoDeviceReads.__torch_dispatch__
    assert inspect.unwrap(dispatch) is dispatch  # torch wraps it to hide it from torch._dynamo, which that imports
