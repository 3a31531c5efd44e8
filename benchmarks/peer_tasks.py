"""What the loops of `peers.py` train: the network, data and settings that Esper trains too."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from esper.configs import TolariaConfig
from esper.data import DataSplits, TokenSet
from esper.models import build_host

__all__ = ["ImageTask", "Images", "Stopwatch", "Task", "TextTask", "task_of"]

_WARMUP_STEPS, _WARMUP_S = 10, 0.5
"""Minimum warm-up of each measurement; uses up the batches that workers have prefetched."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The network, data and settings of all loops.

    Attributes:
        config: network, batch size, optimizer and augmentation.
        splits: the data, in host memory.
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
        """Examples in a batch."""
        return self.config.dataset.batch_size

    @property
    def units_per_step(self) -> int:
        """What a step is counted as: images, or tokens."""
        return self.batch_size

    @property
    def on_cuda(self) -> bool:
        """Whether the network is on a GPU."""
        return self.device.type == "cuda"

    @property
    def clip_norm(self) -> float | None:
        """Largest norm of the gradient; None: no clipping."""
        return self.config.optimization.gradient_clip_norm

    def network(self) -> nn.Module:
        """The uncompiled network, on the device."""
        host = build_host(self.config.model, self.splits.spec)
        return host.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def maybe_compiled(self, network: nn.Module) -> nn.Module:
        """The network, by `torch.compile` with default settings if `is_compiled`."""
        return torch.compile(network) if self.is_compiled else network  # type: ignore[return-value]

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Fused AdamW, or SGD with Nesterov's momentum."""
        config = self.config.optimization
        common = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": self.on_cuda}
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, betas=(0.9, 0.95), **common)  # type: ignore[arg-type]
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **common)  # type: ignore[arg-type]

    def autocast(self) -> torch.autocast:
        """bf16 on CUDA."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_cuda)

    def inputs(self, inputs: Tensor) -> Tensor:
        """A batch in the memory format of the network."""
        return inputs

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def examples(self) -> Dataset[Any]:
        """Training examples: pairs of input and target."""
        raise NotImplementedError

    def loader(self) -> DataLoader[Any]:
        """Batches from worker processes."""
        return DataLoader(
            self.examples(),
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            pin_memory=self.on_cuda,
            persistent_workers=self.num_workers > 0,
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device without end, as a loop of one's own gets them."""
        loader = self.loader()
        while True:
            for inputs, targets in loader:
                yield inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)


class ImageTask(Task):
    """Images: padded, cropped and flipped by worker processes, channels-last."""

    def inputs(self, inputs: Tensor) -> Tensor:
        """Channels-last images."""
        return inputs.to(memory_format=torch.channels_last)

    def crops(self) -> list[v2.Transform]:
        """Pad, crop and flip."""
        height, padding = self.splits.train.shape[1], self.config.dataset.crop_padding
        return [v2.RandomCrop(height, padding=padding), v2.RandomHorizontalFlip()]

    def examples(self) -> Dataset[Any]:
        """Torchvision's transforms in their fastest order, on tensors."""
        normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.splits.mean, self.splits.std)]
        return Images(self.splits, v2.Compose([v2.PILToTensor(), *self.crops(), *normalise]))


class TextTask(Task):
    """Windows of text."""

    @property
    def units_per_step(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.config.dataset.context

    @functools.cached_property
    def tokens(self) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
        """The training documents, one after the other, as nanoGPT keeps them."""
        train = self.splits.train
        assert isinstance(train, TokenSet)
        return train.read(torch.zeros(1, dtype=torch.int64), train.num_tokens)[0].numpy().astype(np.uint16)

    def examples(self) -> Dataset[Any]:
        """All windows, one behind the other."""
        return Windows(self.tokens, self.config.dataset.context)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Random windows, pinned and sent ahead, as nanoGPT's `get_batch` does.

        Source: https://github.com/karpathy/nanoGPT/blob/master/train.py
        """
        context, tokens = self.config.dataset.context, self.tokens
        while True:
            starts = torch.randint(len(tokens) - context, (self.batch_size,)).tolist()
            x = torch.stack([torch.from_numpy(tokens[i : i + context].astype(np.int64)) for i in starts])
            y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + context].astype(np.int64)) for i in starts])
            if self.on_cuda:
                x, y = x.pin_memory(), y.pin_memory()
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def task_of(splits: DataSplits, **settings: Any) -> Task:
    """The task of these data; `settings` as in `Task`."""
    kind = TextTask if isinstance(splits.train, TokenSet) else ImageTask
    return kind(splits=splits, **settings)


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


class Windows(Dataset[Any]):
    """Windows of tokens, and the same one token later: int64 (T,) each."""

    def __init__(self, tokens: np.ndarray[tuple[int], np.dtype[np.uint16]], context: int) -> None:
        self._tokens, self._context = tokens, context

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self._context
        window = torch.from_numpy(self._tokens[start : start + self._context + 1].astype(np.int64))
        return window[:-1], window[1:]


class Stopwatch:
    """Images or tokens per second, for `seconds` after the warm-up; synchronises with the device at both ends."""

    def __init__(self, device: torch.device, *, units_per_step: int, seconds: float) -> None:
        self.rate = 0.0
        self._device, self._units_per_step, self._seconds = device, units_per_step, seconds
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
        num_units = (self._num_steps - self._num_warm) * self._units_per_step
        self.rate = num_units / (time.perf_counter() - self._started)
        return True

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
