"""The trainer: read `_train`, `_train_epoch` and `_end_epoch` to follow a run from top to bottom.

The public methods are coroutines. The work itself is plain synchronous code in one worker thread of the trainer's own,
so the event loop stays free to answer, however long a step, an evaluation or a save takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.configs.load import to_yaml
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import (
    CheckpointSaved,
    EpochEnded,
    Event,
    Notice,
    RunEnded,
    RunStarted,
    Validated,
)
from esper.costs import training_macs
from esper.errors import CheckpointError
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.contents import restore, snapshot
from esper.tolaria.checkpoints.resume import resume
from esper.tolaria.dry_run import Rehearsal, rehearse
from esper.tolaria.finite import require_finite
from esper.tolaria.library import record_outcomes, write_declared
from esper.tolaria.optim import set_learning_rates
from esper.tolaria.ranks import joined
from esper.tolaria.result import result
from esper.tolaria.run import Run, capture_obstacle, open_run
from esper.tolaria.state import TrainingMetrics, TrainingState
from esper.tolaria.step_log import StepLog
from esper.tolaria.sums import Window
from esper.tracking import environment, git_diff, write_atomically
from esper.tracking.files import write_recipe

__all__ = ["TolariaTrainer"]

T = TypeVar("T")

_AGREE_STEPS = 10
"""Several processes ask each other that often whether one was told to stop."""


class TolariaTrainer:
    """Train one network while it grows, and leave everything about it in a run folder.

    Call `initialize`, then `train` (or `train_epoch` and `handle_end_of_epoch` one by one), and `shutdown` at last.

    Args:
        config: the whole configuration; nothing happens before `initialize`.
        run_dir: the run folder; by default `outputs/<experiment_name>/run-<digest of the configuration>`.
        listeners: called with every event of the run as it is journalled.

    Attributes:
        training_state: counters; all of them are saved in checkpoints.
        run: what the training works with; there after `initialize`.
        result: figures of a finished training, else None.
        stop_reason: why training was asked to stop, else None.
    """

    run: Run

    def __init__(
        self,
        config: TolariaConfig,
        *,
        run_dir: Path | None = None,
        listeners: Sequence[Callable[[Event], None]] = (),
    ) -> None:
        self.config = config
        self.training_state = TrainingState()
        self.result: dict[str, Any] | None = None
        self.stop_reason: str | None = None
        self._run_dir = run_dir
        self._listeners = listeners
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-trainer")
        self._close: Callable[[], None] = lambda: None
        self._trained: Window | None = None  # means of the epoch that just ended
        self._validated: tuple[float, float] | None = None  # loss and accuracy of the current weights

    # --- the interface --------------------------------------------------------------------------------------------

    async def initialize(self) -> None:
        """Check the configuration, take the run folder, build everything, and resume where the run stood.

        Raises:
            ConfigError, DataError, RunError, CheckpointError: see there; nothing is left open.
        """
        await self._work(self._initialize)

    async def train(self) -> list[TrainingMetrics]:
        """Train to the end, or until `request_stop`; returns the metrics of the epochs done here."""
        return await self._work(self._train)

    async def train_epoch(self) -> dict[str, float]:
        """Train what is left of the current epoch; returns the epoch's mean `loss` and `accuracy`."""
        window = await self._work(self._train_epoch)
        return {"loss": window.loss, "accuracy": window.accuracy}

    async def validate_epoch(self) -> dict[str, float]:
        """Measure the controller split, in the training's number format; returns `loss` and `accuracy`.

        It changes no training state.
        """
        loss, accuracy = await self._work(self._validate)
        return {"loss": loss, "accuracy": accuracy}

    async def handle_end_of_epoch(self) -> None:
        """Validate if that was not done, judge, consult Tamiyo, grow, save."""
        await self._work(self._end_epoch)

    async def handle_adaptation_signal(self, signal: AdaptationDecision) -> bool:
        """Carry out a decision; returns whether it was. A refused one is journalled and changes nothing."""
        return await self._work(functools.partial(self.run.growth.apply, signal))

    def save_checkpoint(self, epoch: int, is_best: bool = False) -> str:
        """Save a checkpoint, the best one under a name of its own; returns its path.

        Raises:
            CheckpointError: it cannot be written, or `epoch` is not where the training stands.
            DivergenceError: a loss, gradient or weight is not finite; nothing is written.
        """
        if epoch != self.run.state.epoch:
            raise CheckpointError(f"epoch={epoch}: the training stands at epoch {self.run.state.epoch}")

        def save() -> str:
            self._start_saving(is_best=is_best)
            return self.run.ranks.first(lambda: str(self._finish_saving()[-1]))

        return self._worker.submit(save).result()

    def load_checkpoint(self, checkpoint_path: str) -> bool:
        """Take up the training that a checkpoint holds; the trainer must be fresh from `initialize`.

        Raises:
            CheckpointError: it is damaged, or its network is not this one.
        """
        self._worker.submit(lambda: restore(self.run, checkpoint.load(Path(checkpoint_path)))).result()
        return True

    async def rehearse(self) -> Rehearsal:
        """Do a few steps, grow a module by force after the first; the training is of no use afterwards."""
        return await self._work(functools.partial(rehearse, self.run))

    def request_stop(self, reason: str) -> None:
        """Ask the training to save and stop at the next step boundary; safe from any thread."""
        self.stop_reason = reason

    def end(self, status: str, reason: str) -> None:
        """Write down that the run ended without a result: `failed` or `interrupted`, and why."""
        self.run.emit(RunEnded, status=status, reason=reason, result=None)
        self.run.folder.set_status(status, reason=reason)

    async def shutdown(self) -> None:
        """Finish the tracker and release the run folder; safe to call twice."""
        close, self._close = self._close, lambda: None
        await asyncio.get_running_loop().run_in_executor(None, close)
        self._worker.shutdown()

    # --- the training ---------------------------------------------------------------------------------------------

    def _initialize(self) -> None:
        check(self.config)
        ranks = joined()
        ranks.device(self.config.device)  # before a stream is made there
        if self.config.device != "cpu" and torch.cuda.is_available():
            # One stream for everything this thread does, that can be captured: a second one costs memory of its own.
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        run = open_run(
            self.config, run_dir=self._run_dir, state=self.training_state, listeners=self._listeners, ranks=ranks
        )
        try:
            resumed_from = resume(run)
            if resumed_from is None:
                run.growth.begin()
            run.begin_together()
            write_atomically(run.run_dir / "config.yaml", to_yaml(self.config))
            write_atomically(run.run_dir / "git.diff", git_diff())
            write_declared(run.run_dir, run.config.morphogenetic.library)
            run.folder.set_status("running")
            run.emit(
                RunStarted,
                run_name=run.run_dir.name,
                experiment_name=self.config.experiment_name,
                total_steps=run.total_steps,
                total_epochs=self.config.optimization.max_epochs,
                num_parameters=run.host_cost.num_parameters,
                num_macs=run.host_cost.num_macs,
                num_sites=len(run.model.slots),
                device=str(run.parts.device),
                config=dataclasses.asdict(self.config),
                environment=environment(),
                resumed_from=resumed_from,
            )
            if resumed_from is None and run.model.recipe:
                num_kernels = len(run.model.recipe)
                run.emit(Notice, level="INFO", message=f"recorded modules in the network: {num_kernels}")
            if run.parts.device.type == "cuda" and (obstacle := capture_obstacle(self.config)):
                run.emit(Notice, level="INFO", message=f"the step is not captured as a CUDA graph: {obstacle}")
            if ranks.size > 1:
                message = f"{ranks.size} processes share each batch of {self.config.dataset.batch_size} images"
                run.emit(Notice, level="INFO", message=message)
            if late := run.growth.times_too_late:
                run.warn(f"schedule_at={late} falls to the end of an epoch past growth_until: nothing will grow then")
            run.follow()
        except BaseException:
            run.close()
            raise
        self.run, self._close = run, run.close

    def _train(self) -> list[TrainingMetrics]:
        history: list[TrainingMetrics] = []
        with self.run.ranks.watched(), torch.autograd.set_detect_anomaly(self.config.debug_mode):
            while not self._is_over():
                self._train_epoch()
                if self._trained is None:  # asked to stop on the way
                    break
                history.append(self._end_epoch())
            if self._is_over():
                self._finish()
            else:
                if self.config.checkpoint.save_last:
                    self._start_saving()
                self._finish_saving()
                self.end("interrupted", self.stop_reason or "")
        return history

    def _train_epoch(self) -> Window:
        run, state = self.run, self.run.state
        self._trained = self._validated = None
        if state.step == 0:
            run.step.sums.epoch.zero_()
            run.last_read.zero_()
        started = time.monotonic()
        log = StepLog(run)
        with self._profiler() as profiled:
            while state.step < run.steps_per_epoch and not self._is_to_stop():
                set_learning_rates(run.optimizer, run.schedule(state.global_step), step=state.global_step)
                run.growth.before_step()
                run.step.forward_backward_update(epoch=state.epoch, index=state.step, step=state.global_step)
                state.step += 1
                state.global_step += 1
                state.ledger.train_macs += training_macs(self.config.dataset.batch_size, run.life.running_macs)
                profiled()
                if self.config.debug_mode:
                    require_finite(run)
                if state.global_step % self.config.logging.log_interval == 0:
                    log.begin()
                if self._is_validation_due():
                    log.flush()
                    self._validate()
            log.flush()
        state.epoch_seconds += time.monotonic() - started
        window = require_finite(run)
        if state.step == run.steps_per_epoch:
            self._trained, self._validated = window, None
            state.epoch += 1
            state.step = 0
        return window

    def _end_epoch(self) -> TrainingMetrics:
        run, state, saving = self.run, self.run.state, self.config.checkpoint
        started = time.monotonic()
        self._finish_saving()  # of the last epoch
        train = self._trained or require_finite(run)
        val_loss, val_accuracy = self._validated or self._validate()
        rate = run.schedule(state.global_step - 1)
        if self._note_best(val_loss, val_accuracy) and saving.save_best:
            self._start_saving(is_best=True)  # before growth: the network that was validated
        metrics = TrainingMetrics(
            epoch=state.epoch,
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=rate,
            adaptations_applied=state.adaptations_this_epoch,
            epoch_time=state.epoch_seconds + time.monotonic() - started,
        )
        run.emit(EpochEnded, **dataclasses.asdict(metrics))
        if run.step.regions is not None and (news := run.step.regions.news()):
            run.emit(Notice, level=news[0], message=news[1])
        is_last = self._is_over()
        run.growth.end_of_epoch(is_last=is_last)
        if state.adaptations_this_epoch:
            state.epochs_since_best = 0  # patience restarts after growth
        state.total_seconds += state.epoch_seconds + time.monotonic() - started
        state.epoch_seconds = 0.0
        self._trained = self._validated = None
        if state.epoch % saving.save_interval == 0 or (is_last and saving.save_last):
            self._start_saving()
        return metrics

    def _finish(self) -> None:
        run, splits = self.run, self.run.parts.splits
        if run.step.ema is not None and run.step.ema.is_empty(step=run.state.global_step):
            run.warn("a module was removed after the last step: the result is of the weights, not of their average")
        with run.step.ema_weights(step=run.state.global_step):
            validation = run.measure(splits.controller)
            # The only reading of the test split in a run.
            test = run.measure(splits.test)
        self.result = result(run, validation=validation, test=test)
        self._finish_saving()
        write_recipe(run.run_dir / "recipe.json", run.model.recipe, host=self.config.model.name)
        if problem := record_outcomes(run):
            run.warn(problem)
        run.emit(RunEnded, status="finished", reason="", result=self.result)
        run.folder.set_status("finished", result=self.result)

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        patience, state = self.config.optimization.patience, self.training_state
        impatient = patience is not None and state.epochs_since_best >= patience
        return impatient or state.epoch >= self.config.optimization.max_epochs

    def _is_to_stop(self) -> bool:
        """Whether to stop before the coming step; several processes agree every few steps."""
        ranks, asked = self.run.ranks, self.stop_reason
        if ranks.size == 1:
            return asked is not None
        if self.training_state.global_step % _AGREE_STEPS:
            return False
        self.stop_reason = ranks.any_of(asked)
        return self.stop_reason is not None

    def _is_validation_due(self) -> bool:
        interval, state = self.config.logging.eval_interval, self.training_state
        return interval is not None and state.global_step % interval == 0 and state.step < self.run.steps_per_epoch

    def _validate(self) -> tuple[float, float]:
        run = self.run
        with run.step.ema_weights(step=run.state.global_step), run.step.autocast():
            loss, accuracy = run.measure(run.parts.splits.controller)
        run.emit(Validated, epoch=run.state.epoch, val_loss=loss, val_accuracy=accuracy)
        self._validated = (loss, accuracy)
        return self._validated

    def _note_best(self, val_loss: float, val_accuracy: float) -> bool:
        state = self.training_state
        improved = val_loss < state.best_loss - self.config.optimization.min_delta
        state.epochs_since_best = 0 if improved else state.epochs_since_best + 1
        if val_loss >= state.best_loss:
            return False
        state.best_loss, state.best_accuracy = val_loss, val_accuracy
        return True

    def _start_saving(self, *, is_best: bool = False) -> None:
        """Save where the training stands while it goes on."""
        require_finite(self.run)
        if self.run.ranks.is_first:
            self.run.checkpoint_writer.start(snapshot(self.run), epoch=self.run.state.epoch, is_best=is_best)

    def _finish_saving(self) -> list[Path]:
        """Wait for the checkpoints that are being written; returns their paths."""
        run = self.run
        saved = run.checkpoint_writer.collect()
        for one in saved:
            shown = one.path.relative_to(run.run_dir) if one.path.is_relative_to(run.run_dir) else one.path
            run.emit(CheckpointSaved, epoch=one.epoch, path=str(shown), is_best=one.is_best)
        return [one.path for one in saved]

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Profile a few steps of the run's first epoch, if asked to; yields what to call after every step."""
        target = self.run.log_dir / "profile.json"
        if not self.config.profile_training or target.exists():
            yield lambda: None
            return
        with torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=4, repeat=1),
            on_trace_ready=lambda profile: profile.export_chrome_trace(str(target)),
        ) as profile:
            yield profile.step

    async def _work(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)
