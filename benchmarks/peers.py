"""Common training loops, each as its documentation recommends for speed; `throughput.py` times them.

All train the same network on the same data, in bf16 on CUDA, with a fused optimizer, and read the loss (and of images
the accuracy) every 50 steps. A loop is a function from a task to a `Measure`, which warms up, trains for a number of
seconds and returns images, or tokens, per second.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from benchmarks.peer_tasks import Images, ImageTask, Stopwatch, Task, TextTask
from esper.data import Preprocess, TrainLoader

__all__ = ["PEERS", "Measure", "ceiling", "peers_of"]

LOG_INTERVAL = 50
"""Steps between readings of loss and accuracy."""

Measure = Callable[[float], float]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From inputs and targets to loss and logits, both detached."""


def plain(task: Task) -> Measure:
    """A loop of one's own: images as in PyTorch's tuning guide, text as in nanoGPT's `train.py`.

    Source: https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html,
    https://github.com/karpathy/nanoGPT/blob/master/train.py
    """
    network = task.network()
    optimizer = task.optimizer(network.parameters())
    step = _step(task, task.maybe_compiled(network), optimizer)
    batches = task.batches()
    return lambda seconds: _rate(task, step, batches, seconds)


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
            inputs, targets = batch
            logits = self.network(task.inputs(inputs))
            loss = task.loss(logits, targets)
            if batch_idx % LOG_INTERVAL == 0:
                self.log_dict({"loss": loss, "accuracy": _accuracy(logits, targets)})
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer(self.network.parameters())

        def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
            if task.clip_norm is not None:  # Lightning itself refuses to clip the gradients of a fused optimizer
                nn.utils.clip_grad_norm_(self.network.parameters(), task.clip_norm)

    class Timer(pl.Callback):  # type: ignore[misc]
        def __init__(self, seconds: float) -> None:
            self.watch = Stopwatch(task.device, units_per_step=task.units_per_step, seconds=seconds)

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
        return timer.watch.rate

    return measure


def hugging_face(task: Task) -> Measure:
    """Hugging Face's Trainer, without evaluation, reports and checkpoints; it reads the loss at intervals.

    Source: https://huggingface.co/docs/transformers/perf_train_gpu_one
    """
    import transformers
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # global state of an earlier loop

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = task.maybe_compiled(task.network())  # once, not in each measurement

        def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return {"loss": task.loss(self.network(task.inputs(inputs)), targets)}

    class Timer(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self, seconds: float) -> None:
            self.watch = Stopwatch(task.device, units_per_step=task.units_per_step, seconds=seconds)

        def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = self.watch.tick()

    transformers.logging.set_verbosity_error()
    network, examples = Losses(), Named(task.examples())
    optimizer = task.optimizer(network.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    def measure(seconds: float) -> float:
        timer = Timer(seconds)
        with tempfile.TemporaryDirectory(prefix="throughput-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                use_cpu=not task.on_cuda,
                bf16=task.on_cuda,
                per_device_train_batch_size=task.batch_size,
                max_steps=10**9,
                max_grad_norm=task.clip_norm or 0.0,
                dataloader_num_workers=task.num_workers,
                dataloader_pin_memory=task.on_cuda,
                dataloader_persistent_workers=task.num_workers > 0,
                dataloader_drop_last=True,
                remove_unused_columns=False,
                logging_steps=LOG_INTERVAL,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = transformers.Trainer(
                model=network,
                args=arguments,
                train_dataset=examples,
                optimizers=(optimizer, constant),
                callbacks=[timer],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return timer.watch.rate

    return measure


class Named(Dataset[Any]):
    """Examples as Hugging Face's Trainer wants them, by the names of the network's arguments."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, targets = self._examples[index]
        return {"inputs": inputs, "targets": targets}


def timm_style(task: Task) -> Measure:
    """The loop of timm's `train.py` with timm's loader: uint8 batches, collated, moved ahead and normalised on CUDA.

    timm's transforms begin with a resized crop; they are replaced by the crops of the other loops.

    Source: https://github.com/huggingface/pytorch-image-models/blob/main/train.py
    """
    from timm.data import create_loader
    from timm.data.transforms import ToNumpy

    assert isinstance(task, ImageTask)
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

    def step(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        logits = network(task.inputs(inputs))
        loss = task.loss(logits, targets)
        accelerator.backward(loss)
        if task.clip_norm is not None:
            accelerator.clip_grad_norm_(network.parameters(), task.clip_norm)
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
    "Hugging Face Trainer": hugging_face,
    "timm-style loop": timm_style,
    "Accelerate": accelerate,
}
"""The loops that Esper is compared with, by name."""


def peers_of(task: Task) -> list[str]:
    """The loops that can train it: timm's loader is for images."""
    return [name for name, loop in PEERS.items() if loop is not timm_style or not isinstance(task, TextTask)]


def _step(task: Task, network: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with task.autocast():
            logits = network(task.inputs(inputs))
            loss = task.loss(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if task.clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), task.clip_norm)
        optimizer.step()
        return loss.detach(), logits.detach()

    return step


def _rate(task: Task, step: Step, batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> float:
    watch = Stopwatch(task.device, units_per_step=task.units_per_step, seconds=seconds)
    for index, (inputs, targets) in enumerate(batches):
        loss, logits = step(inputs, targets)
        if index % LOG_INTERVAL == 0:
            torch.stack([loss, _accuracy(logits, targets)]).tolist()
        if watch.tick():
            break
    return watch.rate


def _accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=-1) == targets).float().mean()


def _endless(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader
