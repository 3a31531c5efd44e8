"""One training step, and the sums it leaves on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.data import TrainLoader
from esper.tolaria.capture import Capture

__all__ = ["StepSums", "TrainStep", "Window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Means over some steps; `first_bad_step` is the first step whose loss or gradient was not finite."""

    loss: float
    accuracy: float
    grad_norm: float
    num_steps: int
    first_bad_step: int | None


class StepSums:
    """Sums over steps, on the device; reading them is the only synchronisation of a training step.

    `epoch` holds (loss, hits / batch, gradient norm, steps) since the epoch began, `bad_step` the first bad step
    of the run or -1.
    """

    def __init__(self, device: torch.device) -> None:
        self.epoch = torch.zeros(4, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def read(self, since: Tensor | None = None) -> Window:
        """Means since the epoch began, or since an earlier value of `epoch`. Synchronises."""
        loss, accuracy, grad_norm, steps = (self.epoch - since if since is not None else self.epoch).tolist()
        bad_step = int(self.bad_step)
        count = max(steps, 1.0)
        return Window(
            loss=loss / count,
            accuracy=accuracy / count,
            grad_norm=grad_norm / count,
            num_steps=int(steps),
            first_bad_step=bad_step if bad_step >= 0 else None,
        )


class TrainStep:
    """The step: batch, forward, backward, clip, update, sums. Nothing in it reads the device, but for fp16's scaler.

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
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        loader: TrainLoader,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        clip_norm: float | None,
        is_captured: bool,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.device = device
        self.autocast_dtype = autocast_dtype
        self.clip_norm = clip_norm
        self.sums = StepSums(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype is torch.float16)
        # Epoch, index in it, step of the run: on the device, and as the host knows them to stand there.
        self._position = torch.zeros(3, dtype=torch.int64, device=device)
        self._advance = torch.tensor([0, 1, 1], device=device)
        self._known = (0, 0, 0)
        self._capture = Capture(device) if is_captured and device.type == "cuda" else None

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

    def autocast(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _run(self) -> None:
        epoch, index, step = self._position.unbind()
        images, labels = self.loader.batch(epoch, index)
        with self.autocast():
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._add(loss.detach(), logits.detach(), labels, grad_norm, step)
        self._position += self._advance

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _add(self, loss: Tensor, logits: Tensor, labels: Tensor, grad_norm: Tensor, step: Tensor) -> None:
        hits = (logits.argmax(dim=1) == labels).double().mean()
        # An infinite gradient is how fp16 loss scaling finds its scale; only there it is not a fault.
        finite = loss.isfinite() if self.scaler.is_enabled() else loss.isfinite() & grad_norm.isfinite()
        norm = grad_norm.nan_to_num(posinf=0.0) if self.scaler.is_enabled() else grad_norm
        self.sums.epoch += torch.stack([loss.double(), hits, norm.double(), torch.ones_like(hits)])
        first = ~finite & (self.sums.bad_step < 0)
        self.sums.bad_step.copy_(torch.where(first, step, self.sums.bad_step))
