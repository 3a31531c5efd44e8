"""The training loop: read `initialize`, `train`, `train_epoch`, `train_step` and `end_epoch` to follow a run.

All of it is plain synchronous code for one thread; `trainer.py` gives it an asynchronous face.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from esper import hanging, stopping
from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.contracts.events import EpochEnded, Event, Notice, RunEnded, Validated
from esper.data.interface import write_interface
from esper.errors import DataError, RankError, WriteError
from esper.files import write_atomically
from esper.tolaria.announce import announce
from esper.tolaria.checkpoints.initial import start_from_network
from esper.tolaria.checkpoints.resume import resume
from esper.tolaria.checkpoints.saving import finish_saving, start_saving
from esper.tolaria.evaluate import Evaluation
from esper.tolaria.file_check import begin_file_check, end_file_check, tell_damage
from esper.tolaria.library import record_outcomes, write_declared
from esper.tolaria.metrics import StepLog, require_finite, start_reading
from esper.tolaria.optim import set_learning_rates
from esper.tolaria.plugin_record import write_plugins
from esper.tolaria.profiler import profiler
from esper.tolaria.progress import OnProgress, ProgressReporter
from esper.tolaria.ranks import init_ranks
from esper.tolaria.recovery import WayBack, do_step, find_way_back
from esper.tolaria.result import result_of
from esper.tolaria.run import Run, open_run
from esper.tolaria.samples import samples
from esper.tolaria.schedule import decay_start
from esper.tolaria.state import TrainingState
from esper.tolaria.sums import Window
from esper.tracking import git_diff
from esper.tracking.files import write_recipe
from esper.tracking.samples import write_samples

__all__ = ["TrainingLoop", "train_step"]

_STOP_INTERVAL = 10
"""Steps between the all-reduces by which several ranks agree to stop."""


def train_step(run: Run) -> None:
    """Do the run's next optimizer step."""
    state = run.state
    set_learning_rates(run.optimizer, run.schedule(0), step=state.global_step)
    run.growth.before_step()  # incubate and blend in new modules
    do_step(run)
    state.step += 1
    state.global_step += 1
    state.ledger.train_macs += run.config.dataset.batch_size * run.life.image_macs
    state.ledger.skipped_macs += run.config.dataset.batch_size * run.model.skipped_macs()


class TrainingLoop:
    """A training from start to end.

    Args:
        config, run_dir, listeners, on_progress: see `TolariaTrainer`.

    Attributes:
        run: what the training works with; set by `initialize`.
        state: counters; all of them are saved in checkpoints.
        stop_reason: why to stop at the next step, if it is not None; may be set from any thread.
        result: metrics and costs of a finished training, else None.
        total_epochs: epochs to train, as far as growth is known beforehand.
        close: finishes the trackers and unlocks the run folder; safe to call twice.
    """

    run: Run

    def __init__(
        self,
        config: TolariaConfig,
        *,
        run_dir: Path | None,
        listeners: Sequence[Callable[[Event], None]],
        on_progress: OnProgress | None = None,
    ) -> None:
        self.config = config
        self.state = TrainingState()
        self.stop_reason: str | None = None
        self.result: dict[str, Any] | None = None
        self.total_epochs = config.optimization.max_epochs
        self.close: Callable[[], None] = lambda: None
        self._run_dir = run_dir
        self._listeners = listeners
        self._progress = ProgressReporter(on_progress)
        self._train_means: Window | None = None  # of the epoch that just ended
        self._validation: tuple[float, dict[str, float]] | None = None  # loss and metrics of the current weights
        self._evaluation: Evaluation | None = None  # the same, not read from the device yet
        self._awaits_trunk = False  # it is saved at the step at which the learning rate begins to decay
        self._file_check: Generator[None, None, None] | None = None  # in the first epoch of a run that streams
        self._untested: dict[str, Any] | None = None  # the result of a training whose test failed

    def initialize(self, *, back_to: Path | None = None) -> None:
        """Open the run: build everything, resume if there is a checkpoint, and start journal and trackers.

        Args:
            back_to: the checkpoint to resume from, of before a growth that is undone.
        """
        config = self.config
        check(config)
        ranks = init_ranks()
        device = ranks.device(config.device)  # makes it current, before a stream is created there
        if device.type == "cuda" and back_to is None:
            # All work of this thread uses one stream, which can be captured: a second one would cost memory of its own.
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        self._progress.doing("reading the data")
        run = open_run(
            config,
            run_dir=self._run_dir,
            state=self.state,
            listeners=self._listeners,
            ranks=ranks,
            is_reopened=back_to is not None,
        )
        self._progress.doing("starting")
        try:
            resumed_from, notices = resume(run, back_to=back_to), list[tuple[str, str]]()
            if resumed_from is None:
                run.growth.begin()
                notices = start_from_network(run)
            run.synchronize_ranks()
            if back_to is None:
                stopping.check()
            beside = run.checkpoint_dir if run.ranks.is_rank0 else None
            run.folder.write_config(config, run.parts.splits.fingerprint, checkpoint_dir=beside)
            write_interface(run.run_dir, run.parts.interface)
            if resumed_from is None:
                write_plugins(run.run_dir, config.plugins)
            write_atomically(run.run_dir / "git.diff", git_diff(), is_private=True)
            write_declared(run.run_dir, run.config.morphogenetic.library)
            run.folder.set_status("running")
            announce(run, notices, config=config, resumed_from=resumed_from)
            run.start_trackers()
        except BaseException:
            run.close()
            raise
        self.run, self.close, self.total_epochs = run, run.close, run.total_epochs

    def train(self) -> list[EpochEnded]:
        """Train to the end, or until `stop_reason` is set; returns the metrics of the epochs trained here."""
        history: list[EpochEnded] = []
        with self.run.ranks.watchdog(self.config.ranks), torch.autograd.set_detect_anomaly(self.config.debug_mode):
            while way_back := self._train(history):
                self._go_back(way_back)
                history = [metrics for metrics in history if metrics.epoch <= self.state.epoch]
        return history

    def _train(self, history: list[EpochEnded]) -> WayBack | None:
        """Train to the end, until `stop_reason` is set, or until growth brings a fault; returns the way back then."""
        self.run.growth.save_before = lambda: start_saving(self.run, "before")
        self._awaits_trunk = self.config.checkpoint.save_trunk and not _decays(self.run, steps_ahead=-1)
        try:
            while not self._is_over():
                self.train_epoch()
                if self._train_means is None:  # stopped before the end of the epoch
                    break
                history.append(self.end_epoch())
        except Exception as error:
            if way_back := find_way_back(self.run, error):
                return way_back
            raise
        if self._is_over():
            self._finish()
        else:
            self._interrupt()
        return None

    def _go_back(self, way_back: WayBack) -> None:
        """Open the run again at the checkpoint before a growth, refuse that growth, and save this."""
        folder = self.run.folder
        self.run.close()
        del self.run
        gc.collect()  # the network and its hooks refer to each other
        self.state = TrainingState()
        try:
            self.initialize(back_to=way_back.checkpoint)
        except Exception as error:
            with contextlib.suppress(WriteError):  # a full disk must not hide the cause; other ranks have no folder
                folder.set_status("failed", reason=str(error))
            raise
        way_back.arrive(self.run)
        start_saving(self.run)

    def train_epoch(self) -> Window:
        """Train the rest of the current epoch; returns means over the steps of the epoch."""
        run, state, config = self.run, self.state, self.config
        self._train_means = self._validation = self._evaluation = None
        if state.step == 0:
            run.step.sums.epoch.zero_()
            run.last_read.zero_()
        started = time.monotonic()
        log = StepLog(run)
        self._file_check = begin_file_check(run)
        self._progress.begin_epoch(run)
        with profiler(run) as profile_step:
            while state.step < run.steps_per_epoch and not run.is_over and not self._should_stop():
                if self._awaits_trunk and _decays(run):
                    start_saving(self.run, "trunk")
                    self._awaits_trunk = False
                train_step(run)
                profile_step()
                self._progress.after_step(run)
                if self._file_check is not None:
                    next(self._file_check, None)
                if config.debug_mode:
                    require_finite(run)
                if state.global_step % config.logging.log_interval == 0:
                    log.begin()
                if self._is_validation_due():
                    log.flush()
                    self.validate()
            log.flush()
        reading, is_complete = start_reading(run), state.step == run.steps_per_epoch or (state.step and run.is_over)
        if is_complete and run.parts.device.type == "cuda":
            self._evaluation = self._begin_validation()  # the device has work while the figures are read
        means = require_finite(run, reading)
        state.epoch_seconds += time.monotonic() - started
        if is_complete:
            self._train_means, self._validation = means, None
            state.epoch += 1
            state.step = 0
        return means

    def validate(self) -> tuple[float, dict[str, float]]:
        """Loss and metrics of the controller split, in the number format of training."""
        run = self.run
        begun, self._evaluation = self._evaluation, None
        evaluation = self._begin_validation() if begun is None or run.step.is_changed else begun
        self._validation = loss, metrics = evaluation.figures()
        run.emit(Validated, epoch=self.state.epoch, val_loss=loss, val_metrics=metrics)
        return loss, metrics

    def _begin_validation(self) -> Evaluation:
        self._progress.doing("validating")
        return self.run.begin_validation()

    def end_epoch(self) -> EpochEnded:
        """Validate unless that was done, judge what has grown, consult Tamiyo, grow, and start to save."""
        run, state, saving = self.run, self.state, self.config.checkpoint
        started = time.monotonic()
        finish_saving(self.run)  # of the last epoch
        train = self._train_means or require_finite(run)
        val_loss, val_metrics = self._validation or self.validate()
        if self._file_check is not None:
            end_file_check(run, self._file_check)
            self._file_check = None
        if is_saved := (self._update_best(val_loss, val_metrics) and saving.save_best):
            start_saving(self.run, "best", is_finite=True)  # before growth: the network that was validated
        metrics = EpochEnded(
            step=state.global_step,
            epoch=state.epoch,
            train_loss=train.loss,
            train_metrics=dict(train.metrics),
            val_loss=val_loss,
            val_metrics=val_metrics,
            learning_rate=run.schedule(-1),
            adaptations_applied=state.adaptations_this_epoch,
            epoch_time=state.epoch_seconds + time.monotonic() - started,
        )
        run.journal.write(metrics)
        if run.step.regions is not None and (notice := run.step.regions.notice()):
            run.emit(Notice, level=notice[0], message=notice[1])
        self._progress.doing("growing" if self.config.morphogenetic.enable_tamiyo else "saving")
        is_last = self._is_over()
        run.growth.end_of_epoch(is_last=is_last)
        if not is_last and (is_last := self._is_over()):  # judging and scoring have spent the rest of the budget
            run.growth.advance_seeds(is_last=True)
        if state.adaptations_this_epoch:
            state.epochs_since_best = 0  # patience restarts after growth
        state.total_seconds += state.epoch_seconds + time.monotonic() - started
        state.epoch_seconds = 0.0
        self._train_means = self._validation = None
        if state.epoch % saving.save_interval == 0 or (is_last and saving.save_last):
            is_unchanged = not run.step.is_changed
            start_saving(self.run, is_finite=is_unchanged, is_same_network=is_unchanged and is_saved)
        return metrics

    def _finish(self) -> None:
        """Test, and write the result."""
        run, step = self.run, self.state.global_step
        self._progress.doing("testing")
        if run.step.ema is not None and run.step.ema.is_empty(step=step):
            run.warn("a module was removed after the last step: the result is of the weights, not of their average")
        with run.step.ema_weights(step=step):
            validation = run.evaluate_split(run.parts.splits.controller)
            pictures = samples(run) if run.ranks.is_rank0 and self.config.logging.report_images else []
        try:
            with run.step.ema_weights(step=step):
                test_loss, test_metrics, detail = run.test()
        except (DataError, RankError) as error:
            self._untested = result_of(run, validation=validation, test=(None, dict.fromkeys(validation[1])))
            start_saving(self.run)
            finish_saving(self.run)
            raise type(error)(f"{error}; the training is complete and saved: then only the test is repeated") from None
        self.result = result_of(run, validation=validation, test=(test_loss, test_metrics)) | detail
        finish_saving(self.run)
        run.folder.require_held()
        write_recipe(run.run_dir / "recipe.json", run.model.recipe, host=self.config.model.name)
        if pictures:
            write_samples(run.run_dir, pictures)
        if run.ranks.is_rank0 and (
            problem := record_outcomes(self.config.database, run_dir=run.run_dir, outputs_dir=run.outputs_dir)
        ):
            run.warn(problem)
        run.emit(RunEnded, status="finished", reason="", result=self.result)
        run.folder.set_status("finished", result=self.result)

    def _interrupt(self) -> None:
        hanging.beat(expected_s=hanging.SAVE_S)
        self._progress.doing("saving")
        if self._file_check is not None:
            tell_damage(self.run)
        if self.config.checkpoint.save_last:
            start_saving(self.run)
        finish_saving(self.run)
        self.end("interrupted", self.stop_reason or "")

    def end(self, status: str, reason: str) -> None:
        """Record that the run ended without a test: `failed` or `interrupted`, and why."""
        if hasattr(self, "run"):  # else it could not be opened again, see `_go_back`
            try:
                self.run.emit(RunEnded, status=status, reason=reason, result=self._untested)
            finally:
                self.run.folder.set_status(status, reason=reason, result=self._untested)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, *, is_best: bool) -> str:
        """Save and wait until the checkpoint is on disk; returns its path."""
        start_saving(self.run, "best" if is_best else "step")
        return self.run.ranks.on_rank0(lambda: str(finish_saving(self.run)[-1]))

    # --- conditions -----------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        patience, state = self.config.optimization.patience, self.state
        return self.run.is_over or (patience is not None and state.epochs_since_best >= patience)

    def _should_stop(self) -> bool:
        """Whether to stop before the next step; several ranks agree on it every few steps."""
        ranks = self.run.ranks
        if ranks.size > 1:
            if self.state.global_step % _STOP_INTERVAL:
                return False
            if (reason := ranks.any_value(self.stop_reason)) is None:
                return False  # a signal that comes meanwhile is agreed on next time
            self.stop_reason = reason
        return self.stop_reason is not None

    def _is_validation_due(self) -> bool:
        interval, state = self.config.logging.eval_interval, self.state
        if interval is None or state.global_step % interval:
            return False
        return state.step < self.run.steps_per_epoch and not self.run.is_over  # the end of an epoch validates anyway

    def _update_best(self, val_loss: float, val_metrics: dict[str, float]) -> bool:
        """Update the state's best values and its patience; returns whether the loss is the lowest so far."""
        state = self.state
        improved = val_loss < state.best_loss - self.config.optimization.min_delta
        state.epochs_since_best = 0 if improved else state.epochs_since_best + 1
        if val_loss >= state.best_loss:
            return False
        state.best_loss, state.best_metrics = val_loss, val_metrics
        return True


def _decays(run: Run, *, steps_ahead: int = 0) -> bool:
    """Whether the learning rate of the next step, or of one so many steps ahead, is decaying."""
    start = decay_start(run.config.optimization)
    return start is not None and run.life.spent(steps_ahead) / run.life.budget.total >= start - 1e-9
