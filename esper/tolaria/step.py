"""One training step, and the sums it leaves on the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.data import Loader
from esper.tolaria.cuda_graph import Capture
from esper.tolaria.ema import WeightAverage
from esper.tolaria.ranks import Ranks
from esper.tolaria.regional_compile import Regions
from esper.tolaria.sums import StepSums

__all__ = ["TrainStep"]


class TrainStep:
    """The step: batch, forward, backward, clip, update, average, sums. Nothing in it reads the device.

    Where several processes train, each works on its rows of the batch; after the backward pass gradients, loss and hits
    are added up over all of them, so that what follows is the same everywhere.

    On CUDA the whole of it is captured as one graph and replayed, which saves launching every kernel anew; it is
    captured again after `invalidate`. The steps before a capture are real ones, run eagerly.

    Args:
        model: the network, in training mode.
        optimizer: its optimizer.
        loader: the training batches.
        device: where everything is.
        autocast_dtype: number format of the forward pass; None: float32.
        clip_norm: largest norm of the gradient over all parameters; None: no clipping.
        is_captured: whether to capture on CUDA.
        average: average of the weights to keep up; None: none.
        regions: compiled parts of the network, to which this adds its own; None: nothing is compiled.
        ranks: the processes that train this network; None: only this one.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Loader,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        clip_norm: float | None,
        is_captured: bool,
        average: WeightAverage | None = None,
        regions: Regions | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.device = device
        self.autocast_dtype = autocast_dtype
        self.clip_norm = clip_norm
        self.average = average
        self.regions = regions
        self.ranks = ranks or Ranks()
        self.sums = StepSums(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype is torch.float16)
        # Epoch, index in it, step of the run: on the device, and as the host knows them to stand there.
        self._position = torch.zeros(3, dtype=torch.int64, device=device)
        self._advance = torch.tensor([0, 1, 1], device=device)
        self._known = (0, 0, 0)
        self._capture = Capture(device) if is_captured and device.type == "cuda" else None
        self._batch = regions.compiled(loader.batch) if regions else loader.batch
        self._add = regions.compiled(self._add_measured) if regions else self._add_measured

    def __call__(self, *, epoch: int, index: int, step: int) -> None:
        """Do step number `step`, on batch `index` of an epoch."""
        self.loader.seek(epoch, index)
        if self._known != (epoch, index, step):
            self._position.copy_(torch.tensor([epoch, index, step]))
        if self._capture is None:
            self._run()
        else:
            self._capture.run(self._run)
        self._known = (epoch, index + 1, step + 1)

    def invalidate(self) -> None:
        """The network or the optimizer's parameters have changed: a captured step is of no use any more."""
        if self._capture is not None:
            self._capture.invalidate()

    def adopt(self, kernel: nn.Module, *, step: int) -> None:
        """A module has joined the network before step `step`: let compiling and averaging follow."""
        if self.regions is not None:
            self.regions.add(kernel)
        self.follow(step=step)

    def follow(self, *, step: int) -> None:
        """The network's parameters have changed before step `step`."""
        if self.average is not None:
            self.average.follow(step=step)
        self.invalidate()

    def restart_average(self, *, step: int) -> None:
        """What was averaged before step `step` was another network: begin anew."""
        if self.average is not None:
            self.average.restart(step=step)

    def averaged(self, *, step: int) -> AbstractContextManager[None]:
        """While this lasts, before step `step`, the network has its averaged weights, where an average is kept."""
        return self.average.applied(step=step) if self.average is not None else nullcontext()

    def autocast(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def average_gradients(self, *, num_images: int) -> None:
        """Make the gradients there are, of the mean over some images, those of the mean over all processes' images."""
        if self.ranks.size > 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, num_images / self.loader.batch_size)
            self.ranks.add_up(gradients)

    def _run(self) -> None:
        with self.regions.active() if self.regions else nullcontext():
            self._step()

    def _step(self) -> None:
        epoch, index, step = self._position.unbind()
        images, labels = self._batch(epoch, index)
        with self.autocast():
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
        if self.ranks.size > 1:
            loss, hits = self._backward_together(loss, logits.detach(), labels)
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        if self.ranks.size > 1:
            self._add_to_sums(loss, hits, grad_norm, step)
        else:
            self._add(loss.detach(), logits.detach(), labels, grad_norm, step)
        self._position += self._advance

    def _backward_together(self, loss: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss of the whole batch in all processes; returns that loss and the share of hits."""
        share = len(labels) / self.loader.batch_size  # parts may differ by a row
        self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        figures = torch.stack([loss.detach() * share, _hits(logits, labels).float() * share])
        self.ranks.add_up([*(p.grad for p in self.model.parameters() if p.grad is not None), figures])
        return figures[0], figures[1].double()

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _add_measured(self, loss: Tensor, logits: Tensor, labels: Tensor, grad_norm: Tensor, step: Tensor) -> None:
        self._add_to_sums(loss, _hits(logits, labels), grad_norm, step)

    def _add_to_sums(self, loss: Tensor, hits: Tensor, grad_norm: Tensor, step: Tensor) -> None:
        # An infinite gradient is how fp16 loss scaling finds its scale; only there it is not a fault.
        finite = loss.isfinite() if self.scaler.is_enabled() else loss.isfinite() & grad_norm.isfinite()
        norm = grad_norm.nan_to_num(posinf=0.0) if self.scaler.is_enabled() else grad_norm
        self.sums.epoch += torch.stack([loss.double(), hits, norm.double(), torch.ones_like(hits)])
        first = ~finite & (self.sums.bad_step < 0)
        self.sums.bad_step.copy_(torch.where(first, step, self.sums.bad_step))


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the images that are classified correctly, 0-dim float64."""
    return (logits.argmax(dim=1) == labels).double().mean()
