"""What a step with dormant seeds costs, told without a clock: the operations it does, and what it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from esper.contracts.decisions import AdaptationDecision
from esper.tolaria import TolariaTrainer
from esper.tolaria.loop import train_step
from tests.conftest import tiny_config, use

READING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal"}
"""Operations whose result the host has to wait for."""
READING_METHODS = {"item", "tolist", "numpy", "__array__", "cpu", "__bool__", "__int__", "__float__", "__index__"}


class Operations(TorchDispatchMode):
    """Counts every operation, with the shapes that it works on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func, *(tuple(one.shape) for one in args if isinstance(one, Tensor))] += 1
        return func(*args, **(kwargs or {}))


class NoReads(TorchDispatchMode):
    """Refuses operations that read a device, or move a tensor from one to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(one, Tensor) and one.dtype is torch.bool for arg in args if isinstance(arg, list) for one in arg
        )
        assert name not in READING, f"{func} reads the device"
        assert not by_mask, f"{func} reads how much a mask lets through"
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor):
            assert result.device == args[0].device, f"{func} moves a tensor"
        return result


class NoReadingMethods(TorchFunctionMode):
    """The same for what a CPU tensor does without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in READING_METHODS, f"{func.__name__} reads a tensor"
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> Counter[tuple[Any, ...]]:
    with Operations() as seen:
        work()
    return seen.counts


def of_a_step(run_dir: Path, *, grow: bool = False, **changes: Any) -> Counter[tuple[Any, ...]]:
    """Operations of the third step of a run; with `grow` a module has grown before."""

    async def body(trainer: TolariaTrainer) -> Counter[tuple[Any, ...]]:
        run = trainer.run
        train_step(run)
        if grow:
            assert run.growth.apply(AdaptationDecision(should_adapt=True, target_layer="layer1"))
        train_step(run)
        return operations(lambda: train_step(run))

    found = use(tiny_config(**changes), run_dir, body)
    assert isinstance(found, Counter)
    return found


def test_a_step_with_dormant_seeds_does_the_operations_of_one_without(tmp_path: Path) -> None:
    dormant = of_a_step(tmp_path / "dormant")
    assert dormant == of_a_step(tmp_path / "off", morphogenetic__enable_tamiyo=False)
    assert dormant.total() > 100
    assert dormant != of_a_step(tmp_path / "grown", grow=True)


def test_forward_and_backward_through_dormant_seeds_do_the_plain_hosts_operations(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        model = trainer.run.model
        images, labels = trainer.run.parts.loader.batch(0, 0)

        def passes(network: torch.nn.Module) -> Counter[tuple[Any, ...]]:
            network.zero_grad()
            return operations(lambda: F.cross_entropy(network(images), labels).backward())  # type: ignore[no-untyped-call]

        through_seeds = passes(model)
        assert model.slots
        assert through_seeds == passes(model.host)

    use(tiny_config(), run_dir, body)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimization__gradient_clip_norm": 1.0, "optimization__ema_decay": 0.9, "mixed_precision": True},
    ],
    ids=["plain", "clipped-average-bfloat16"],
)
def test_no_step_reads_the_device_with_seeds_dormant_or_grown(changes: dict[str, Any], run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        run = trainer.run
        train_step(run)  # an epoch begins with the copy of its order
        with NoReadingMethods(), NoReads():
            train_step(run)
        assert run.growth.apply(AdaptationDecision(should_adapt=True, target_layer="layer1"))
        train_step(run)
        with NoReadingMethods(), NoReads():
            train_step(run)

    use(tiny_config(**changes), run_dir, body)


@pytest.mark.parametrize(
    "read",
    [
        lambda loss: float(loss),
        lambda loss: loss.item(),
        lambda loss: loss.numpy(),
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
        lambda loss: loss.nonzero(),
        lambda loss: loss.to("meta"),
    ],
    ids=["float", "item", "numpy", "if", "mask", "nonzero", "move"],
)
def test_a_step_that_did_read_the_device_would_be_caught(read: Callable[[Tensor], object]) -> None:
    loss = torch.ones(3).mean()
    with pytest.raises(AssertionError), NoReadingMethods(), NoReads():
        read(loss)
