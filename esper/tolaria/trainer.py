"""The asynchronous face of the training loop.

Each method runs the loop's synchronous code in one worker thread of the trainer's own, so that the event loop stays
free to answer during steps, evaluations and saves.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from esper.configs import TolariaConfig
from esper.configs.paths import absolute_paths
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import EpochEnded, Event
from esper.errors import CheckpointError
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.contents import restore
from esper.tolaria.dry_run import DryRun, dry_run
from esper.tolaria.loop import TrainingLoop
from esper.tolaria.memory import explained, is_out_of_memory
from esper.tolaria.progress import OnProgress
from esper.tolaria.run import Run
from esper.tolaria.state import TrainingState

__all__ = ["TolariaTrainer"]

P = ParamSpec("P")
T = TypeVar("T")


class TolariaTrainer:
    """Train one network while it grows, and record everything about it in a run folder.

    Call `initialize`, then `train` (or `train_epoch` and `handle_end_of_epoch` in turn), and finally `shutdown`.

    Args:
        config: the whole configuration; nothing happens before `initialize`.
        run_dir: the run folder; by default `outputs/<experiment_name>/run-<digest of the configuration>`.
        listeners: called with every event of the run as it is journalled.
        on_progress: called a few times a second, in the training thread, with what the training does.
    """

    def __init__(
        self,
        config: TolariaConfig,
        *,
        run_dir: Path | None = None,
        listeners: Sequence[Callable[[Event], None]] = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        self.config = config = absolute_paths(config)
        self._loop = TrainingLoop(config, run_dir=run_dir, listeners=listeners, on_progress=on_progress)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-trainer")
        # One that is dropped, as when the cell of a notebook runs again, must not lock its run folder.
        weakref.finalize(self, _close, self._loop).atexit = False

    @property
    def run(self) -> Run:
        """What the training works with; there after `initialize`."""
        return self._loop.run

    @property
    def training_state(self) -> TrainingState:
        """Counters; all of them are saved in checkpoints."""
        return self._loop.state

    @property
    def total_epochs(self) -> int:
        """Epochs to train, as far as growth is known beforehand."""
        return self._loop.total_epochs

    @property
    def result(self) -> dict[str, Any] | None:
        """Metrics and costs of a finished training, else None."""
        return self._loop.result

    @property
    def stop_reason(self) -> str | None:
        """Why training was asked to stop, else None."""
        return self._loop.stop_reason

    async def initialize(self) -> None:
        """Check the configuration, lock the run folder, build everything, and resume from the newest checkpoint.

        Raises:
            ConfigError, DataError, RunError, CheckpointError: see there; nothing is left open.
        """
        await self._in_worker(self._loop.initialize)

    async def train(self) -> list[EpochEnded]:
        """Train to the end, or until `request_stop`; returns the metrics of the epochs trained here."""
        return await self._in_worker(self._loop.train)

    async def train_epoch(self) -> dict[str, float]:
        """Train the rest of the current epoch; returns the epoch's mean `loss`, and the task's metrics by name."""
        means = await self._in_worker(self._loop.train_epoch)
        return {"loss": means.loss, **means.metrics}

    async def validate_epoch(self) -> dict[str, float]:
        """Measure `loss` and the task's metrics on the controller split, in the number format of training.

        It changes no training state.
        """
        loss, metrics = await self._in_worker(self._loop.validate)
        return {"loss": loss, **metrics}

    async def handle_end_of_epoch(self) -> None:
        """Validate unless that was done, judge, consult Tamiyo, grow, save."""
        await self._in_worker(self._loop.end_epoch)

    async def handle_adaptation_signal(self, signal: AdaptationDecision) -> bool:
        """Carry out a decision; returns whether it was. A refused one is journalled and changes nothing."""
        return await self._in_worker(self.run.growth.apply, signal)

    def save_checkpoint(self, epoch: int, is_best: bool = False) -> str:
        """Save a checkpoint, the best one under a name of its own; returns its path.

        Raises:
            CheckpointError: it cannot be written, or `epoch` is not the training's.
            DivergenceError: a loss, gradient or weight is not finite; nothing is written.
        """
        if epoch != self.training_state.epoch:
            raise CheckpointError(f"epoch={epoch}: the training is at epoch {self.training_state.epoch}")
        return self._worker.submit(self._loop.save_checkpoint, is_best=is_best).result()

    def load_checkpoint(self, checkpoint_path: str) -> bool:
        """Resume the training that a checkpoint holds; the trainer must not have trained since `initialize`.

        Raises:
            CheckpointError: it is damaged, or its network is not this one.
        """
        self._worker.submit(lambda: restore(self.run, checkpoint.load(Path(checkpoint_path)))).result()
        return True

    async def dry_run(self) -> DryRun:
        """Do a few steps, and force a module to grow after the first; the training is unusable afterwards."""
        return await self._in_worker(dry_run, self.run)

    def request_stop(self, reason: str) -> None:
        """Ask the training to save and stop at the next step boundary; safe from any thread."""
        self._loop.stop_reason = reason

    def end(self, status: str, reason: str) -> None:
        """Record that the run ended without a result: `failed` or `interrupted`, and why."""
        self._loop.end(status, reason)

    async def shutdown(self) -> None:
        """Finish the tracker and unlock the run folder; safe to call twice."""
        await asyncio.to_thread(_close, self._loop)
        self._worker.shutdown()

    async def _in_worker(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        context = contextvars.copy_context()
        future = self._worker.submit(lambda: context.run(function, *args, **kwargs))
        try:
            return await asyncio.wrap_future(future)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise explained(error, self.config) from None


def _close(loop: TrainingLoop) -> None:
    close, loop.close = loop.close, lambda: None
    close()
