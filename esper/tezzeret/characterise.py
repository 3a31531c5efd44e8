"""Characterise blueprints in a worker process and store the results in the library."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esper.configs import StorageConfig
from esper.errors import ConfigError, EsperError
from esper.tezzeret.measure import Job, set_compile_cache
from esper.tezzeret.process import ProcessFault, WorkerProcess, WorkerStopped
from esper.urza import Blueprint, Shape
from esper.urza.records import KernelRecord
from esper.urza.store import Store

__all__ = ["SITES", "Forge", "Limits", "characterise", "jobs"]

SITES: tuple[tuple[Shape, Shape], ...] = (
    ((64, 32, 32), (64, 32, 32)),
    ((64, 32, 32), (128, 16, 16)),
    ((128, 16, 16), (128, 16, 16)),
    ((256, 8, 8), (256, 8, 8)),
    ((512, 4, 4), (512, 4, 4)),
    ((65, 192), (65, 192)),
    ((256,), (256,)),
)
"""Input and output shapes: of ResNet-18's stages and of `model=vit` on 32×32 images, and of rows of 256 features."""
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a job.

    `timeout_s` leaves out what the worker waited for a CPU. `memory_bytes` applies to the worker with its children, and
    separately to its GPU.
    """

    timeout_s: float = 300.0
    memory_bytes: int = 8 * 2**30


class Forge:
    """Owner of the worker process; `close` it.

    Args:
        device: as the setting of that name.
        limits: of each job.
        storage: compile cache.
        stop: cancels the current job when set.
        worker: Python's arguments that run the worker.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        limits: Limits | None = None,
        storage: StorageConfig | None = None,
        stop: threading.Event | None = None,
        worker: Sequence[str] = ("-m", "esper.tezzeret.worker"),
    ) -> None:
        self._limits = limits or Limits()
        self._storage = storage or StorageConfig()
        self._stop = stop or threading.Event()
        self._command = [sys.executable, *worker, device, str(self._limits.memory_bytes)]
        self._worker: WorkerProcess | None = None
        self.hardware = ("", "")
        """Name of the device and version of torch, set by `start`."""

    def start(self) -> None:
        """Start the worker, unless it runs.

        Raises:
            ConfigError: the device does not exist.
            EsperError: the worker does not start.
            WorkerStopped: `stop` was set.
        """
        if self._worker is not None:
            return
        set_compile_cache(self._storage)
        self._worker = WorkerProcess(self._command, stop=self._stop)
        try:
            hello = self._worker.read(deadline=self._worker.clock() + _START_TIMEOUT_S)
        except ProcessFault as fault:
            self.close()
            raise EsperError(f"the forge's worker does not start: {fault}") from None
        except WorkerStopped:
            self.close()
            raise
        if "refused" in hello:
            self.close()
            raise ConfigError(hello["refused"])
        self.hardware = hello["device"], hello["torch_version"]

    def characterise(self, job: Job) -> KernelRecord:
        """Build, check, measure and compile a kernel.

        A worker that dies, hangs or uses too much memory is killed; the next job starts a new one.

        Raises:
            EsperError: the worker does not start.
            WorkerStopped: `stop` was set; the job was cancelled.
        """
        self.start()
        device, torch_version = self.hardware
        return KernelRecord(
            blueprint_id=job.blueprint_id,
            in_shape=job.in_shape,
            out_shape=job.out_shape,
            batch_size=job.batch_size,
            device=device,
            torch_version=torch_version,
            **self._run(job),
        )

    def close(self) -> None:
        """Kill the worker; safe to call twice."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _run(self, job: Job) -> dict[str, Any]:
        assert self._worker is not None
        limits, phase = self._limits, "starting"
        deadline = self._worker.clock() + limits.timeout_s
        self._worker.write(dataclasses.asdict(job))
        try:
            while "phase" in (reply := self._worker.read(deadline=deadline, memory_bytes=limits.memory_bytes)):
                phase = reply["phase"]
        except ProcessFault as fault:
            self.close()
            within = f" within {limits.timeout_s:g} s" if fault.status == "hung" else ""
            return {"status": fault.status, "reason": f"{fault}{within} while {phase}"}
        except WorkerStopped:
            self.close()
            raise
        return reply


def jobs(
    blueprint: Blueprint, sites: Sequence[tuple[Shape, Shape]] = SITES, *, batch_size: int = 128, compile: bool = True
) -> list[Job]:
    """A job for each pair of shapes that a blueprint fits.

    Raises:
        ConfigError: it fits none of them.
    """
    fitting = [site for site in sites if any(blueprint.fits(kind, *site) for kind in blueprint.kinds)]
    if not fitting:
        raise ConfigError(
            f"{blueprint.blueprint_id} fits none of {', '.join(f'{a} to {b}' for a, b in sites)}; give other shapes"
        )
    return [
        Job(
            blueprint_id=blueprint.blueprint_id,
            definition=blueprint.definition,
            in_shape=in_shape,
            out_shape=out_shape,
            batch_size=batch_size,
            compile=compile,
        )
        for in_shape, out_shape in fitting
    ]


def characterise(
    pending: Sequence[Job],
    *,
    forge: Forge,
    store: Store,
    announce: Callable[[KernelRecord], object] = lambda _: None,
    again: bool = False,
) -> Iterator[KernelRecord]:
    """Characterise kernels one by one; each is stored in the library before it is announced and yielded.

    A kernel that the library has for this device and version of torch is yielded from there. Jobs of a quarantined
    blueprint are skipped.

    Args:
        pending: the jobs.
        forge: owner of the worker.
        store: the library.
        announce: called with each kernel, whatever its status.
        again: first delete what the library has of these blueprints, which also ends their quarantine.

    Raises:
        EsperError: the worker does not start, or the library cannot be used.
        WorkerStopped: the forge's `stop` was set.
    """
    forge.start()
    for blueprint_id in {job.blueprint_id for job in pending} if again else ():
        store.delete_kernels(blueprint_id)
    for job in pending:
        site = (job.in_shape, job.out_shape, job.batch_size, *forge.hardware)
        known = {_site(kernel): kernel for kernel in store.kernels(job.blueprint_id)}
        kernel = known.get(site)
        if kernel is None and store.quarantined(job.blueprint_id):
            continue
        if kernel is None:
            kernel = forge.characterise(job)
            store.put_kernel(kernel)
        announce(kernel)
        yield kernel


def _site(kernel: KernelRecord) -> tuple[Any, ...]:
    return kernel.in_shape, kernel.out_shape, kernel.batch_size, kernel.device, kernel.torch_version
