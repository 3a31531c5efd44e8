"""A thread that writes checkpoints while training continues."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esper.errors import EsperError
from esper.tolaria.checkpoints import files
from esper.tolaria.checkpoints.files import Snapshot

__all__ = ["CheckpointWriter", "Saved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is complete on disk."""

    epoch: int
    path: Path
    prefix: str


class CheckpointWriter:
    """Writes checkpoints one after the other in its own thread; training waits only for the copy to host memory.

    Args:
        folder: where the checkpoints go.
        keep: number of newest checkpoints that are not deleted, besides best, trunk and those before growth.
        sync: syncs the journal, which checkpoints refer to; called before each checkpoint is written.
        guard: called before each gets its name; raises a `RunError` if the run folder is not this process's any more.
    """

    def __init__(
        self, folder: Path, *, keep: int, sync: Callable[[], object], guard: Callable[[], object] = lambda: None
    ) -> None:
        self.folder = folder
        self._guard = guard
        self._keep = keep
        self._sync = sync
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-checkpoints")
        # Keeps the copies alive: freeing pinned memory in the writer's thread records an event on a stream that the
        # training thread may be capturing.
        self._pending: list[tuple[Future[Saved], Snapshot]] = []
        self._complete: list[Saved] = []

    def start(self, snapshot: Snapshot, *, epoch: int, prefix: str = "step", is_on_trial: bool = False) -> None:
        """Copy the snapshot, then write it in the background; the caller may change it after this returns.

        Args:
            snapshot: what to write.
            epoch: epochs finished.
            prefix: step, best, trunk or before.
            is_on_trial: whether to keep the checkpoints before growth.
        """
        model, model_ready = _copy_to_host(snapshot.model)
        optimizer, optimizer_ready = _copy_to_host(snapshot.optimizer)
        state = copy.deepcopy(dict(snapshot.state))
        copied = dataclasses.replace(snapshot, model=model, optimizer=optimizer, state=state)

        def write() -> Saved:
            model_ready()
            optimizer_ready()
            self._sync()
            path = files.save(self.folder, copied, prefix=prefix, guard=self._guard)
            files.remove_old(self.folder, keep=self._keep, is_on_trial=is_on_trial)
            return Saved(epoch=epoch, path=path, prefix=prefix)

        self._pending.append((self._thread.submit(write), copied))

    def wait(self) -> None:
        """Wait for all writes; `collect` raises their errors."""
        futures.wait([future for future, _ in self._pending])

    def collect(self) -> list[Saved]:
        """Wait for all writes; returns the checkpoints completed since the last call.

        Raises:
            CheckpointError: one could not be written; the next call returns those that could.
            WriteError: the journal could not be synced, or the run folder is gone.
        """
        pending, self._pending = self._pending, []
        failures = []
        for future, _ in pending:
            if (failure := future.exception()) is not None:
                failures.append(failure)
            else:
                self._complete.append(future.result())
        if failures:
            raise failures[0]
        complete, self._complete = self._complete, []
        return complete

    def close(self) -> str | None:
        """Finish all writes and end the thread; returns the message of a failure."""
        self._thread.shutdown()
        try:
            self.collect()
        except EsperError as error:
            return str(error)
        return None


def _copy_to_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], object]]:
    """Contiguous copies in host memory (as safetensors needs), and a function that waits until they are complete."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
    device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
    if device is None:
        return copies, lambda: None
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(device))
    return copies, copied.synchronize
