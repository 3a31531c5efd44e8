"""A service around a training: start, stop, signals and health checks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esper import hanging, stopping
from esper.configs import TolariaConfig
from esper.contracts.events import Event
from esper.errors import EsperError
from esper.tolaria.progress import OnProgress
from esper.tolaria.trainer import TolariaTrainer

__all__ = ["TolariaService"]


class TolariaService:
    """Run one training from start to stop.

    Attributes:
        trainer: created by `start`.
        running: from `start` to the end of `stop`.
        signal_number: the signal that requested the stop, if any.
    """

    def __init__(
        self,
        config: TolariaConfig,
        *,
        run_dir: Path | None = None,
        listeners: Sequence[Callable[[Event], None]] = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        self.config = config
        self.trainer: TolariaTrainer | None = None
        self.running = False
        self.signal_number: int | None = None
        self._run_dir = run_dir
        self._listeners = listeners
        self._on_progress = on_progress
        self._task: asyncio.Task[None] | None = None
        self._signals = contextlib.ExitStack()

    async def start(self) -> None:
        """Initialise, start the training as a task, and return.

        Raises:
            EsperError: initialising failed; nothing is left running.
        """
        self.trainer = TolariaTrainer(
            self.config, run_dir=self._run_dir, listeners=self._listeners, on_progress=self._on_progress
        )
        self.running = True
        if self.signal_number is not None:
            self.trainer.request_stop(stopping.name_of(self.signal_number))
        try:
            await self.trainer.initialize()
        except BaseException:
            await self.stop()
            raise
        self._task = asyncio.create_task(self._train(self.trainer), name="esper-training")

    async def run_training(self) -> None:
        """Wait for the end of the training.

        Raises:
            EsperError: the training failed; `status.json` says so too.
        """
        if self._task is None:
            await self.start()
        assert self._task is not None
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Stop the training at the next step boundary, wait until it has saved, and release everything.

        Safe to call twice, and after the training has ended by itself.
        """
        if self.trainer is not None and self.running:
            if self._task is not None:
                if not self._task.done() and self.trainer.stop_reason is None:
                    self.trainer.request_stop("stopped by the program")
                # Not awaited: the error of a failed training is raised by `run_training`.
                await asyncio.wait([self._task])
            await self.trainer.shutdown()
        self._signals.close()
        self.running = False

    def setup_signal_handlers(self) -> None:
        """Stop gracefully on SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2, until `stop`.

        SLURM sends the last two before a job's time limit. A second SIGINT interrupts at once, as Python does by
        default. Call it in the main thread, or within `stopping.handled`.
        """
        self._signals.enter_context(stopping.handled())
        self._signals.enter_context(stopping.on_stop(self._on_signal))

    async def health_check(self) -> dict[str, Any]:
        """The service's health, within two seconds.

        Besides counters, `status` is starting, healthy, stopping, stopped or failed. With `bus=redis`, `services` lists
        the bus and the services alive on it, as `esper services status --json` does; training continues without them.
        """
        health = {"status": self._status(), **self._progress()}
        if self.config.bus == "redis":
            from esper.oona.service import service_health  # imports the Redis client

            services = await asyncio.to_thread(service_health, self.config.redis, timeout_s=0.4)  # five calls at most
            health["services"] = [dataclasses.asdict(service) for service in services]
        return health

    def _status(self) -> str:
        if not self.running:
            return "stopped"
        if self._task is None:
            return "starting"
        if self._task.done():
            return "failed" if self._task.exception() is not None else "stopped"
        return "stopping" if self.trainer is not None and self.trainer.stop_reason else "healthy"

    def _progress(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        state = self.trainer.training_state
        return {
            "epoch": state.epoch,
            "global_step": state.global_step,
            "total_epochs": self.trainer.total_epochs,
            "total_adaptations": state.total_adaptations,
            "best_loss": state.best_loss,
            "best_metrics": state.best_metrics,
        }

    async def _train(self, trainer: TolariaTrainer) -> None:
        try:
            await trainer.train()
            hanging.beat(expected_s=hanging.CLOSE_S)
        except stopping.Stopped as stopped:
            trainer.end("interrupted", stopping.name_of(stopped.number))
        except Exception as error:
            reason = str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(EsperError):  # a full disk, or a folder that is gone, must not hide the cause
                trainer.end("failed", reason)
            raise

    def _on_signal(self, number: int) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = self.signal_number or number
        if self.trainer is not None:
            self.trainer.request_stop(stopping.name_of(self.signal_number))
