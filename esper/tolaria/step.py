"""One training step: forward, backward, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper import hanging, turns
from esper.data import Loader
from esper.errors import MemoryLimitError, one_line
from esper.tasks import Task, mean_values
from esper.tolaria.buckets import GradientBuckets
from esper.tolaria.captured_evaluation import CapturedMeasure
from esper.tolaria.cuda_graph import CapturedFunction
from esper.tolaria.ema import WeightEMA
from esper.tolaria.memory import is_out_of_memory, within_memory
from esper.tolaria.ranks import Ranks
from esper.tolaria.sums import StepSums
from esper.tolaria.sync_norm import SynchronisedNorms
from esper.urza import Kernel

if TYPE_CHECKING:
    from esper.tolaria.regional_compile import Regions

__all__ = ["TrainStep"]

_SETTLING_STEPS = 5
"""Steps after a change of the network in which it may be compiled and captured."""


class TrainStep:
    """Batch, forward, backward, gradient clipping, update, EMA, metric sums. Nothing in a step reads the device.

    With several ranks, each trains on its rows of the batch; gradients and metrics are all-reduced, so that the update
    is the same on all ranks: gradients during the backward pass where the step is captured or batch norms are
    synchronised, else after it.

    On CUDA the step is captured as one graph and replayed, which saves the kernel launches; `invalidate` makes it be
    captured again. The warm-up steps before a capture are training steps, run eagerly. Validation is captured too.

    With `accumulate`, the batch goes through the network in so many parts, whose gradients are added up; after `split`,
    in twice as many.

    Args:
        model: the network, in training mode.
        task: its loss and metrics.
        optimizer: its optimizer.
        loader: the training batches.
        device: of everything.
        autocast_dtype: number format of the forward pass; None: float32.
        clip_norm: largest norm of the gradient over all parameters; None: no clipping.
        is_captured: whether to capture on CUDA.
        accumulate: parts of a batch, one after the other.
        ema: exponential moving average of the weights to update; None: none.
        regions: compiled regions of the network, to which the step adds its own; None: nothing is compiled.
        ranks: None: a single rank.
        sync_batch_norm: whether batch norms use the batch of all ranks.

    Attributes:
        gradients: their sums over several ranks.
        num_splits: factor on the parts of a batch since it did not fit into memory; saved in checkpoints.
        captured_measure: measures the network in the number format of training; None: nothing is captured.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer,
        loader: Loader,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        clip_norm: float | None,
        is_captured: bool,
        accumulate: int = 1,
        ema: WeightEMA | None = None,
        regions: Regions | None = None,
        ranks: Ranks | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.loader = loader
        self.device = device
        self.autocast_dtype = autocast_dtype
        self.clip_norm = clip_norm
        self.ema = ema
        self.regions = regions
        self.ranks = ranks or Ranks()
        self.gradients = GradientBuckets(model, self.ranks) if self.ranks.size > 1 else None
        self._norms = SynchronisedNorms(self.ranks) if sync_batch_norm and self.ranks.size > 1 else None
        self.accumulate = accumulate
        self.num_splits = 1
        self.sums = StepSums(task.training_metrics, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype is torch.float16)
        # Epoch, batch index, step of the run: on the device, and the values known to be there.
        self._position = torch.zeros(3, dtype=torch.int64, device=device)
        self._advance = torch.tensor([0, 1, 1], device=device)
        self._known_position = (0, 0, 0)
        self._has_updated = False  # in this step
        self._num_since_change = 0
        self._graph = self._evaluation_graph = None
        self.captured_measure: CapturedMeasure | None = None
        if is_captured and device.type == "cuda":
            self._graph = CapturedFunction(device)
            self._evaluation_graph = CapturedFunction(device, shares=self._graph)
            self.captured_measure = CapturedMeasure(
                model, task, graph=self._evaluation_graph, autocast_dtype=autocast_dtype
            )
        self._batch = regions.compiled(loader.batch) if regions else loader.batch
        self._measure = regions.compiled(self._add_measured) if regions else self._add_measured

    def forward_backward_update(self, *, epoch: int, index: int, step: int) -> None:
        """Do optimizer step number `step`, on batch `index` of an epoch.

        Raises:
            MemoryLimitError: a forward or backward pass, of any rank, needs more memory than there is; no weight has
                changed, and the step may be tried again.
        """
        self._has_updated = False
        try:
            self.loader.seek(epoch, index)
            if self._known_position != (epoch, index, step):
                self._position.copy_(torch.tensor([epoch, index, step]))
            hanging.beat()
            pauses = nullcontext() if self._num_since_change < _SETTLING_STEPS else hanging.steady()
            with pauses, self.regions.active() if self.regions else nullcontext():
                if self._graph is None:
                    self._step()
                else:
                    self._graph.run(self._step)
        except Exception as error:
            if self._has_updated or self.ranks.size > 1 or not is_out_of_memory(error):
                raise
            raise MemoryLimitError(one_line(error)) from None
        self._known_position = (epoch, index + 1, step + 1)
        self._num_since_change += 1
        if self._num_since_change == _SETTLING_STEPS:
            hanging.forget()
        turns.step_done()

    def _step(self) -> None:
        epoch, index, step = self._position.unbind()
        inputs, targets = self._batch(epoch, index)
        if self.ranks.size > 1 or self.num_parts > 1:
            loss, means = self._backward_shares(inputs, targets)
            self._add_to_sums(loss, means, self._update(), step)
        else:
            with self.training_forward():
                output = self.model(inputs)
                loss = self.task.objective(output, targets)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._measure(loss.detach(), output.detach(), targets, self._update(), step)
        self._position += self._advance

    def _backward_shares(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss of the whole batch, over parts and ranks; returns that loss and `mean_values`."""
        if self._is_capturing() or self._norms is not None:  # ranks that wait in a batch norm cannot agree
            metrics = self._backward_parts(inputs, targets, overlapped=True)
        else:
            metrics = within_memory(lambda: self._backward_parts(inputs, targets, overlapped=False), self.ranks)
        if self.gradients is not None:
            wait = self.ranks.start_all_reduce_sum(metrics)
            self.gradients.reduce()
            wait()
        return metrics[0], metrics[1:]

    def _backward_parts(self, inputs: Tensor, targets: Tensor, *, overlapped: bool) -> Tensor:
        shares = []
        parts = zip(inputs.tensor_split(self.num_parts), targets.tensor_split(self.num_parts), strict=True)
        for i, (part, part_targets) in enumerate(parts):
            share = len(part_targets) / self.loader.batch_size  # ranks and parts may differ by a row
            with self.training_forward():
                output = self.model(part)
                loss = self.task.objective(output, part_targets)
            is_last = i == self.num_parts - 1
            with self.gradients.last_backward(overlapped=overlapped) if self.gradients and is_last else nullcontext():
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            means = mean_values(self.task.training_metrics, output.detach(), part_targets)
            shares.append(torch.cat([loss.detach().to(means.dtype)[None], means]) * share)
        return torch.stack(shares).sum(0)

    def _update(self) -> Tensor:
        """Unscale and clip the gradients, update weights and their EMA; returns the norm before clipping."""
        self._has_updated = not self._is_capturing()
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return grad_norm

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _add_measured(self, loss: Tensor, output: Tensor, targets: Tensor, grad_norm: Tensor, step: Tensor) -> None:
        self._add_to_sums(loss, mean_values(self.task.training_metrics, output, targets), grad_norm, step)

    def _add_to_sums(self, loss: Tensor, means: Tensor, grad_norm: Tensor, step: Tensor) -> None:
        # fp16 loss scaling finds its scale by infinite gradients; without it they are a fault.
        finite = loss.isfinite() if self.scaler.is_enabled() else loss.isfinite() & grad_norm.isfinite()
        norm = grad_norm.nan_to_num(posinf=0.0) if self.scaler.is_enabled() else grad_norm
        dtype = self.sums.epoch.dtype
        rest = torch.stack([norm.to(dtype), torch.ones_like(norm, dtype=dtype)])
        self.sums.epoch += torch.cat([loss.to(dtype)[None], means, rest])
        first = ~finite & (self.sums.bad_step < 0)
        self.sums.bad_step.copy_(torch.where(first, step, self.sums.bad_step))

    # --- too little memory -----------------------------------------------------------------------------------------

    @property
    def num_parts(self) -> int:
        """Parts of a batch, one after the other."""
        return self.accumulate * self.num_splits

    @property
    def can_split(self) -> bool:
        """Whether `split` is possible: once, and batch norm needs two images in each part of each rank."""
        return self.num_splits == 1 and self.loader.batch_size // self.ranks.size >= 4 * self.accumulate

    def split(self) -> None:
        """From now on, train each batch in twice as many parts; a step that ran out of memory may be tried again."""
        self.num_splits = 2
        self.optimizer.zero_grad(set_to_none=True)
        self._known_position = (-1, -1, -1)
        self.invalidate()
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()

    # --- growth changes the network between steps ------------------------------------------------------------------

    def invalidate(self) -> None:
        """Drop the captured graphs: the network or the optimizer's parameters have changed."""
        self._num_since_change = 0
        for graph in (self._graph, self._evaluation_graph):
            if graph is not None:
                graph.invalidate()
        if self.gradients is not None:
            self.gradients.forget()

    @property
    def is_changed(self) -> bool:
        """Whether the network has changed since the last step, or no step was done."""
        return self._num_since_change == 0

    def add_kernel(self, kernel: Kernel, *, step: int) -> None:
        """Compile a module that was added to the network before step `step`, and update what `sync_parameters` does."""
        if self.regions is not None:
            for module in kernel.regions:
                self.regions.add(module)
        self.sync_parameters(step=step)

    def sync_parameters(self, *, step: int) -> None:
        """Update EMA and captured graph to the parameters that the network has before step `step`."""
        if self.ema is not None:
            self.ema.sync_parameters(step=step)
        self.invalidate()

    def _is_capturing(self) -> bool:
        return self._graph is not None and torch.cuda.is_current_stream_capturing()

    def all_reduce_gradients(self, *, num_images: int) -> None:
        """Turn gradients of the mean loss over a rank's `num_images` into those over the images of all ranks."""
        if self.ranks.size > 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, num_images / self.loader.batch_size)
            self.ranks.all_reduce_sum(gradients)

    # --- forward passes --------------------------------------------------------------------------------------------

    def ema_weights(self, *, step: int) -> AbstractContextManager[None]:
        """Context manager: give the network its EMA weights as of before step `step`; does nothing without an EMA."""
        return self.ema.applied(step=step) if self.ema is not None else nullcontext()

    @contextmanager
    def training_forward(self) -> Iterator[None]:
        """Context manager of a forward pass in training, which all ranks do: number format and batch norms."""
        with self.autocast(), self._norms or nullcontext():
            yield

    def autocast(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)
