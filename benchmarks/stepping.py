"""A run of Esper whose steps the benchmark calls, exactly as the trainer does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from esper.configs import DatasetConfig, ModelConfig, MorphogeneticConfig, OptimizationConfig, TolariaConfig
from esper.configs.tracking import TrackingConfig
from esper.contracts.events import Event
from esper.tolaria.buckets import GradientBuckets
from esper.tolaria.loop import train_step
from esper.tolaria.ranks import Ranks
from esper.tolaria.run import Run, open_run
from esper.tolaria.state import TrainingState

__all__ = ["LateBuckets", "configuration", "opened", "own_stream", "timed_steps", "train_steps", "wait"]

_EPOCHS = 10_000  # more than any benchmark reaches


def configuration(
    *,
    model: str,
    batch_size: int,
    num_examples: int,
    image_size: int,
    device: str,
    morphogenetic: MorphogeneticConfig,
    compile_model: bool = False,
) -> TolariaConfig:
    """The default recipe on synthetic images without a tracker; a small learning rate, so that nothing diverges."""
    layers = ["layer1", "layer2", "layer3"] + ([] if model == "resnet_small" else ["layer4"])
    return TolariaConfig(
        model=ModelConfig(name=model, target_layers=layers),
        dataset=DatasetConfig(
            name="synthetic", image_size=image_size, num_examples=num_examples, batch_size=batch_size
        ),
        optimization=OptimizationConfig(max_epochs=_EPOCHS, learning_rate=0.01),
        morphogenetic=morphogenetic,
        tracking=TrackingConfig(name="none"),
        experiment_name="benchmark",
        device=device,
        compile_model=compile_model,
    )


def own_stream() -> None:
    """Give this thread a stream that can be captured, as the trainer does; no effect without CUDA."""
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def opened(
    config: TolariaConfig,
    run_dir: Path,
    *,
    listeners: Sequence[Callable[[Event], None]] = (),
    ranks: Ranks | None = None,
) -> Iterator[Run]:
    """An open run, closed at the end; call `own_stream` first."""
    run = open_run(config, run_dir=run_dir, state=TrainingState(), listeners=listeners, ranks=ranks)
    try:
        yield run
    finally:
        run.close()


class LateBuckets(GradientBuckets):
    """Sums that begin when the backward pass has ended."""

    def last_backward(self, *, overlapped: bool) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """As `GradientBuckets.last_backward`, but never overlapped."""
        return super().last_backward(overlapped=False)


def train_steps(run: Run, num_steps: int) -> None:
    """The steps of the trainer's epochs, without evaluation, growth and checkpoints at their ends."""
    state = run.state
    for _ in range(num_steps):
        train_step(run)
        if state.step == run.steps_per_epoch:
            state.epoch += 1
            state.step = 0


def timed_steps(run: Run, num_steps: int) -> float:
    """Seconds of steps, synchronised with the device."""
    wait(run)
    started = time.perf_counter()
    train_steps(run, num_steps)
    wait(run)
    return time.perf_counter() - started


def wait(run: Run) -> None:
    """Synchronise with the device."""
    if run.parts.device.type == "cuda":
        torch.cuda.synchronize(run.parts.device)
