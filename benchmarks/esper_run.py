"""A training by Esper's trainer in separate pieces, so that other loops can be measured in between."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from benchmarks.peer_tasks import Stopwatch
from esper.configs import (
    DatasetConfig,
    ModelConfig,
    MorphogeneticConfig,
    OptimizationConfig,
    TaskConfig,
    TolariaConfig,
    TrackingConfig,
)
from esper.contracts.events import Event, StepLogged
from esper.terminal.display import Terminal
from esper.tolaria import TolariaTrainer

__all__ = ["EXPERIMENT", "EsperRun", "Rates", "configuration", "tracker"]

EXPERIMENT = "throughput"
_NEVER = 1e-9
"""A health threshold that no site reaches: the policy is consulted and never grows."""


class Rates(NamedTuple):
    """Images or tokens trained on per second: end to end, and of the steps alone as the journal records it."""

    rate: float
    steps_rate: float | None = None


def tracker(options: argparse.Namespace) -> str:
    """The requested tracker; by default MLflow if it is installed."""
    return options.tracking or ("mlflow" if importlib.util.find_spec("mlflow") else "none")


def configuration(options: argparse.Namespace, *, batch_size: int, is_compiled: bool, grows: bool) -> TolariaConfig:
    """Settings of `esper-train`, with endless epochs and a health threshold that no site reaches."""
    optimization = OptimizationConfig(max_epochs=10_000)
    if options.model in ("gpt", "vit"):
        optimization = OptimizationConfig(
            max_epochs=10_000, optimizer="adamw", learning_rate=1e-3, weight_decay=0.1, gradient_clip_norm=1.0
        )
    return TolariaConfig(
        model=_model(options),
        dataset=_dataset(options, batch_size=batch_size),
        task=TaskConfig(name="language_model" if options.model == "gpt" else "classification"),
        optimization=optimization,
        morphogenetic=MorphogeneticConfig(enable_tamiyo=grows, health_threshold=_NEVER),
        tracking=TrackingConfig(name=tracker(options)),
        experiment_name=EXPERIMENT,
        device=options.device,
        compile_model=is_compiled,
    )


def _model(options: argparse.Namespace) -> ModelConfig:
    if options.model == "gpt":
        return ModelConfig(
            name="gpt", width=options.width, depth=options.depth, heads=max(1, options.width // 64),
            target_layers=["blocks"], seeds_per_layer=64,
        )  # fmt: skip
    if options.model == "vit":
        return ModelConfig(name="vit", target_layers=["encoder.layers"], seeds_per_layer=64)
    num_layers = 3 if options.model == "resnet_small" else 4
    return ModelConfig(name=options.model, target_layers=[f"layer{1 + index}" for index in range(num_layers)])


def _dataset(options: argparse.Namespace, *, batch_size: int) -> DatasetConfig:
    if options.model == "gpt":
        return DatasetConfig(
            name="python_source", batch_size=batch_size, context=options.context, epoch_windows=options.epoch_windows,
            val_split=0.02, test_split=0.02,
        )  # fmt: skip
    return DatasetConfig(
        name="imagefolder" if options.data else "synthetic",
        data_dir=options.data or "",
        image_size=None if options.data else options.image_size,
        num_examples=None if options.data else options.images,
        batch_size=batch_size,
    )


class EsperRun:
    """Owner of a trainer.

    Args:
        config: of the run.
        run_dir: run folder.
    """

    def __init__(self, config: TolariaConfig, *, run_dir: Path) -> None:
        self._config = config
        self._run_dir = run_dir
        self._closing = contextlib.ExitStack()
        self._trainer: TolariaTrainer | None = None
        self._windows: list[float] = []

    def open(self) -> None:
        """Build the trainer and train one epoch, unless it is open; on an error everything is closed."""
        if self._trainer is not None:
            return
        try:
            self._trainer = self._build()
            self.epochs(0.0)
        except BaseException:
            self.close()
            raise

    def epochs(self, seconds: float) -> Rates:
        """Train whole epochs, ends of epochs included, for at least so many seconds.

        Raises:
            RuntimeError: a module has grown: the seeds are not dormant.
        """
        trainer = self._opened()
        self._windows.clear()
        started, num_epochs, elapsed = time.perf_counter(), 0, 0.0
        while not num_epochs or elapsed < seconds:
            self._loop.run(self._epoch(trainer))
            num_epochs += 1
            if trainer.run.parts.device.type == "cuda":
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - started
        if trainer.run.model.recipe:
            raise RuntimeError(f"grown at {trainer.run.model.recipe[0].site}: the seeds are not dormant")
        num_units = num_epochs * trainer.run.steps_per_epoch * self._units_per_step
        return Rates(num_units / elapsed, statistics.median(self._windows) if self._windows else None)

    def steps(self, seconds: float) -> Rates:
        """Run only the trainer's captured step for so many seconds.

        This thread and stream are not the trainer's; `open`, `epochs` and `steps` synchronise with the device.
        """
        run = self._opened().run
        watch = Stopwatch(run.parts.device, units_per_step=self._units_per_step, seconds=seconds)
        for number in itertools.count():
            ahead, index = divmod(number, run.steps_per_epoch)
            run.step.forward_backward_update(
                epoch=run.state.epoch + ahead, index=index, step=run.state.global_step + number
            )
            if watch.tick():
                break
        return Rates(watch.rate)

    def close(self) -> None:
        """Shut down the trainer; safe to call twice, or before `open`."""
        self._trainer = None
        self._closing.close()

    def _build(self) -> TolariaTrainer:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        file = self._closing.enter_context((self._run_dir / "train.log").open("w", encoding="utf-8"))
        log = self._closing.enter_context(Terminal(level="INFO", console=Console(file=file, width=120)))
        self._loop = self._closing.enter_context(asyncio.Runner())
        trainer = TolariaTrainer(self._config, run_dir=self._run_dir, listeners=[log.show, self._listen])
        self._closing.callback(lambda: self._loop.run(trainer.shutdown()))
        self._loop.run(trainer.initialize())
        return trainer

    @property
    def images_per_epoch(self) -> int:
        """Images, or tokens, that an epoch trains on; `open` first."""
        return self._opened().run.steps_per_epoch * self._units_per_step

    @property
    def _units_per_step(self) -> int:
        config = self._config.dataset
        return config.batch_size * (config.context if config.name == "python_source" else 1)

    def _opened(self) -> TolariaTrainer:
        assert self._trainer is not None, "open first"
        return self._trainer

    @staticmethod
    async def _epoch(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()

    def _listen(self, event: Event) -> None:
        if isinstance(event, StepLogged):
            self._windows.append(event.tokens_per_s or event.images_per_s)
