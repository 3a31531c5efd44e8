"""Common training loops, each as its documentation recommends for speed; `throughput.py` times them.

All train the same network on the same images with the same crops and flips, in bf16 on CUDA, channels-last, with a
fused optimizer, and read loss and accuracy every 50 steps. A loop is a function from a task to a `Measure`, which warms
up, trains for a number of seconds and returns images per second.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from esper.configs import TolariaConfig
from esper.data import DataSplits, Preprocess, TrainLoader
from esper.models import build_host

__all__ = ["PEERS", "Measure", "Stopwatch", "Task", "ceiling"]

LOG_INTERVAL = 50
"""Steps between readings of loss and accuracy."""
_WARMUP_STEPS, _WARMUP_S = 10, 0.5
"""Minimum warm-up of each measurement; uses up the batches that workers have prefetched."""

Measure = Callable[[float], float]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels to loss and logits, both detached."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The network, data and settings of all loops.

    Attributes:
        config: network, batch size and augmentation.
        splits: the images, in host memory.
        device: of the network.
        num_workers: processes that load and augment.
        is_compiled: compile the network.
    """

    config: TolariaConfig
    splits: DataSplits
    device: torch.device
    num_workers: int
    is_compiled: bool

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.config.dataset.batch_size

    @property
    def on_cuda(self) -> bool:
        """Whether the network is on a GPU."""
        return self.device.type == "cuda"

    def network(self) -> nn.Module:
        """The uncompiled network, on the device."""
        host = build_host(self.config.model, self.splits.spec)
        return host.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def maybe_compiled(self, network: nn.Module) -> nn.Module:
        """The network, by `torch.compile` with default settings if `is_compiled`."""
        return torch.compile(network) if self.is_compiled else network  # type: ignore[return-value]

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with Nesterov's momentum."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=self.on_cuda)

    def autocast(self) -> torch.autocast:
        """bf16 on CUDA."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_cuda)

    def crops(self) -> list[v2.Transform]:
        """Pad, crop and flip."""
        height, padding = self.splits.train.images.shape[2], self.config.dataset.crop_padding
        return [v2.RandomCrop(height, padding=padding), v2.RandomHorizontalFlip()]

    def loader(self) -> DataLoader[Any]:
        """Batches from worker processes; torchvision's transforms in their fastest order, on tensors."""
        normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.splits.mean, self.splits.std)]
        images = Images(self.splits, v2.Compose([v2.PILToTensor(), *self.crops(), *normalise]))
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            pin_memory=self.on_cuda,
            persistent_workers=self.num_workers > 0,
        )


class Images(Dataset[Any]):
    """Training images as in torchvision's CIFAR10: PIL images from an array in memory, then the transform."""

    def __init__(self, splits: DataSplits, transform: Callable[[Any], Any]) -> None:
        self.transform = transform
        self._images = splits.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = splits.train.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self._images[index])), self._labels[index]


class Stopwatch:
    """Images per second, for `seconds` after the warm-up; synchronises with the device at both ends."""

    def __init__(self, device: torch.device, *, batch_size: int, seconds: float) -> None:
        self.images_per_s = 0.0
        self._device, self._batch_size, self._seconds = device, batch_size, seconds
        self._num_steps = self._num_warm = 0
        self._made = time.perf_counter()
        self._started: float | None = None

    def tick(self) -> bool:
        """Call after each step; returns whether the measurement is over."""
        self._num_steps += 1
        now = time.perf_counter()
        if self._started is None:
            if self._num_steps >= _WARMUP_STEPS and now - self._made >= _WARMUP_S:
                self._wait()
                self._started, self._num_warm = time.perf_counter(), self._num_steps
            return False
        if now - self._started < self._seconds:
            return False
        self._wait()
        num_images = (self._num_steps - self._num_warm) * self._batch_size
        self.images_per_s = num_images / (time.perf_counter() - self._started)
        return True

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def plain(task: Task) -> Measure:
    """PyTorch's tuning guide: workers, pinned memory, autocast, channels-last, fused optimizer.

    Source: https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
    """
    network = task.network()
    optimizer = task.optimizer(network.parameters())
    loader = task.loader()
    step = _step(task, task.maybe_compiled(network), optimizer)
    return lambda seconds: _rate(task, step, _on_device(task, loader), seconds)


def lightning(task: Task) -> Measure:
    """Lightning's Trainer, without logger, progress bar and checkpoints; metrics by `self.log` at intervals.

    Source: https://lightning.ai/docs/pytorch/stable/advanced/speed.html
    """
    import lightning as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = task.maybe_compiled(task.network())

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            logits = self.network(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels)
            if batch_idx % LOG_INTERVAL == 0:
                self.log_dict({"loss": loss, "accuracy": _accuracy(logits, labels)})
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer(self.network.parameters())

    class Timer(pl.Callback):  # type: ignore[misc]
        def __init__(self, seconds: float) -> None:
            self.watch = Stopwatch(task.device, batch_size=task.batch_size, seconds=seconds)

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            trainer.should_stop = self.watch.tick()

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module, loader = Module(), task.loader()

    def measure(seconds: float) -> float:
        timer = Timer(seconds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice, such as on the number of workers
            trainer = pl.Trainer(
                accelerator="gpu" if task.on_cuda else "cpu",
                devices=1,
                precision="bf16-mixed" if task.on_cuda else "32-true",
                benchmark=True,
                logger=False,
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                log_every_n_steps=LOG_INTERVAL,
                max_epochs=-1,
                callbacks=[timer],
            )
            trainer.fit(module, loader)
        return timer.watch.images_per_s

    return measure


def timm_style(task: Task) -> Measure:
    """The loop of timm's `train.py` with timm's loader: uint8 batches, collated, moved ahead and normalised on CUDA.

    timm's transforms begin with a resized crop; they are replaced by the crops of the other loops.

    Source: https://github.com/huggingface/pytorch-image-models/blob/main/train.py
    """
    from timm.data import create_loader
    from timm.data.transforms import ToNumpy

    network = task.network()
    optimizer = task.optimizer(network.parameters())
    step = _step(task, task.maybe_compiled(network), optimizer)
    crops = v2.Compose([*task.crops(), ToNumpy()])
    images = Images(task.splits, crops)
    loader = create_loader(
        images,
        input_size=tuple(task.splits.train.images.shape[1:]),
        batch_size=task.batch_size,
        is_training=True,
        mean=task.splits.mean,
        std=task.splits.std,
        num_workers=task.num_workers,
        pin_memory=task.on_cuda,
        device=task.device,
    )
    images.transform = crops  # replaces create_loader's
    return lambda seconds: _rate(task, step, _endless(loader), seconds)


def accelerate(task: Task) -> Measure:
    """Hugging Face Accelerate prepares network, optimizer and loader, compiles, casts and steps.

    Source: https://huggingface.co/docs/accelerate/basic_tutorials/migration
    """
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # global state of an earlier loop
    accelerator = Accelerator(
        mixed_precision="bf16" if task.on_cuda else "no",
        cpu=not task.on_cuda,
        dynamo_backend="inductor" if task.is_compiled else "no",
        dataloader_config=DataLoaderConfiguration(non_blocking=task.on_cuda),
    )
    network = task.network()
    network, optimizer, loader = accelerator.prepare(network, task.optimizer(network.parameters()), task.loader())

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        logits = network(images.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels)
        accelerator.backward(loss)
        optimizer.step()
        return loss.detach(), logits.detach()

    return lambda seconds: _rate(task, step, _endless(loader), seconds)


def ceiling(task: Task) -> Measure:
    """Plain PyTorch, compiled to CUDA graphs, with the images and their augmentation on the device."""
    network = task.network()
    optimizer = task.optimizer(network.parameters())
    step = _step(task, torch.compile(network, mode="reduce-overhead"), optimizer)
    prepare = Preprocess(
        mean=task.splits.mean, std=task.splits.std, normalize=True, channels_last=True, device=task.device
    )
    loader = TrainLoader(task.splits.train.to(task.device), task.config.dataset, rng_seed=0, prepare=prepare)
    batches = (loader.batch(epoch, index) for epoch in range(10**9) for index in range(loader.num_batches))
    return lambda seconds: _rate(task, step, batches, seconds)


PEERS: Mapping[str, Callable[[Task], Measure]] = {
    "plain PyTorch": plain,
    "Lightning": lightning,
    "timm-style loop": timm_style,
    "Accelerate": accelerate,
}
"""The loops that Esper is compared with, by name."""


def _step(task: Task, network: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with task.autocast():
            logits = network(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach(), logits.detach()

    return step


def _rate(task: Task, step: Step, batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> float:
    watch = Stopwatch(task.device, batch_size=task.batch_size, seconds=seconds)
    for index, (images, labels) in enumerate(batches):
        loss, logits = step(images, labels)
        if index % LOG_INTERVAL == 0:
            torch.stack([loss, _accuracy(logits, labels)]).tolist()
        if watch.tick():
            break
    return watch.images_per_s


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).float().mean()


def _on_device(task: Task, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in _endless(loader):
        yield images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)


def _endless(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader
