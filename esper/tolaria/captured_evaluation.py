"""Evaluation as a CUDA graph: one forward pass over a batch of fixed size, replayed for every batch of a split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esper.errors import one_line
from esper.kasmina.modes import evaluating
from esper.tasks import Task, sum_values
from esper.tolaria.cuda_graph import CapturedFunction
from esper.tolaria.memory import is_out_of_memory

__all__ = ["CapturedMeasure", "FixedBatch", "NoDeviceReads"]

_MAX_REASON = 160


class CapturedMeasure:
    """Measures a network as `evaluate.measure` does, in the number format of training, by replays of one graph.

    Every batch is copied into buffers of the first one's shape. A batch of fewer examples fills a part of them, and the
    rest does not count; one of another shape is measured eagerly. Nothing is read from the device.

    Args:
        model: the network; `graph` is invalidated whenever it changes.
        task: its losses and metrics.
        graph: captures and replays.
        autocast_dtype: number format of the forward pass; None: float32.

    Attributes:
        obstacle: why batches are measured eagerly instead; None: they are not.
    """

    def __init__(
        self, model: nn.Module, task: Task, *, graph: CapturedFunction, autocast_dtype: torch.dtype | None
    ) -> None:
        self.obstacle: str | None = None
        self._model = model
        self._task = task
        self._graph = graph
        self._dtype = autocast_dtype
        self._batch: FixedBatch | None = None

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
        """For each batch the losses of its examples or tokens; what `sum_values` adds up."""
        losses, sums = [], []
        with evaluating(self._model), torch.no_grad():
            for inputs, targets in batches:
                loss, summed = self._measured(inputs, targets)
                losses.append(loss)
                sums.append(summed)
        return losses, torch.stack(sums).sum(0)

    def _measured(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._batch is None:
            self._batch = FixedBatch(inputs, targets)
        batch = self._batch
        if self.obstacle is not None or not batch.fits(inputs, targets):
            return self._eager(inputs, targets, counted=None)
        batch.fill(inputs, targets)
        num_left = self._graph.num_warmup_left
        try:
            with (
                NoDeviceReads() if num_left else nullcontext(),  # type: ignore[no-untyped-call]
                _no_synchronisation() if num_left == 1 else nullcontext(),
            ):
                self._graph.run(lambda: self._measure_into(batch))
        except DeviceReadError as error:
            self.obstacle = str(error)
        except Exception as error:
            if num_left or not is_out_of_memory(error):  # eagerly, memory is shared with everything else
                raise
            self.obstacle = one_line(error, max_length=_MAX_REASON)
        else:
            return batch.results()
        self._graph.invalidate()
        return self._eager(inputs, targets, counted=None)

    def _measure_into(self, batch: FixedBatch) -> None:
        batch.take(*self._eager(batch.inputs, batch.targets, counted=batch.is_real()))

    def _eager(self, inputs: Tensor, targets: Tensor, *, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        # Without its cache: a weight that was converted outside of the graph would be freed, and never updated.
        with torch.autocast(inputs.device.type, self._dtype, enabled=self._dtype is not None, cache_enabled=False):
            output = self._model(inputs)
            losses = self._task.losses(output, targets)
            return losses, sum_values(self._task.metrics, output, targets, counted=counted)


class FixedBatch:
    """Buffers for batches of up to as many examples as the first has, and for what is measured on them."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs.clone(), targets.clone()  # in the same memory format
        self._rows = torch.arange(len(inputs), device=inputs.device)
        self._num_real = torch.zeros((), dtype=torch.int64, device=inputs.device)
        self._num = 0
        self._results: tuple[Tensor, Tensor] | None = None

    def fits(self, inputs: Tensor, targets: Tensor) -> bool:
        """Whether a batch is of the first one's shape, with as many examples or fewer."""
        return len(inputs) <= len(self.inputs) and all(
            one.shape[1:] == buffer.shape[1:] and one.dtype == buffer.dtype
            for one, buffer in ((inputs, self.inputs), (targets, self.targets))
        )

    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        """Copy a batch into the buffers; the rows behind it keep an earlier batch's examples."""
        self._num = len(inputs)
        self.inputs[: self._num].copy_(inputs)
        self.targets[: self._num].copy_(targets)
        self._num_real.fill_(self._num)

    def is_real(self) -> Tensor:
        """Which rows belong to the batch, bool (N,)."""
        return self._rows < self._num_real

    def take(self, losses: Tensor, sums: Tensor) -> None:
        """Store what was measured, outside of the graph's own memory."""
        if self._results is None or self._results[0].shape != losses.shape:
            self._results = losses.clone(), sums.clone()  # in the first call, which is eager
        else:
            self._results[0].copy_(losses)
            self._results[1].copy_(sums)

    def results(self) -> tuple[Tensor, Tensor]:
        """The losses of the batch's examples or tokens, and the sums."""
        assert self._results is not None, "measure first"
        losses, sums = self._results
        return losses[: self._num].clone(), sums.clone()


class DeviceReadError(Exception):
    """Something reads the device, or depends on values in it, which a CUDA graph cannot."""


class NoDeviceReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager of an eager call: refuse what cannot be captured, before a capture fails for it.

    Raises:
        DeviceReadError: a value is read, a shape depends on values, or a tensor is copied to or from the CPU.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to hide the mode from torch.compile, torch would import torch._dynamo, sympy and more."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _depends_on_values(func, args):
            raise DeviceReadError(f"{func.name()} reads the device")
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            devices = {leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)}
            if len(devices) > 1:
                raise DeviceReadError(f"{func.name()} copies between {' and '.join(sorted(map(str, devices)))}")
        return result


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Context manager: as `NoDeviceReads`, but for reads inside of operators, where torch only knows that they wait.

    For the last eager call: before, libraries may wait while they compile and choose algorithms.
    """
    # Torch warns that the mode is a prototype. For good: `catch_warnings` would change the filters of all threads.
    warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise DeviceReadError("an operator reads the device, or waits for it") from None
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _depends_on_values(func: Any, args: Any) -> bool:
    if func.overloadpacket is torch.ops.aten.index:  # by numbers it does not
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)
