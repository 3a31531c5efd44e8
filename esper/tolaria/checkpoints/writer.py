"""Writing checkpoints while training goes on."""

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
from esper.tolaria.checkpoints import files as checkpoint

__all__ = ["Saved", "Saver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is complete on disk."""

    epoch: int
    path: Path
    is_best: bool


class Saver:
    """Save checkpoints in a thread of its own, one after the other; only the copying to the host delays training.

    Args:
        folder: where they go.
        keep: most of them that stay, besides the best.
        sync: forces to disk what a checkpoint refers to; called before one is complete.
    """

    def __init__(self, folder: Path, *, keep: int, sync: Callable[[], object]) -> None:
        self.folder = folder
        self._keep = keep
        self._sync = sync
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-saver")
        # With the copies: pinned memory must not be given back by another thread while this one captures a graph, since
        # that puts an event on the captured stream.
        self._pending: list[tuple[Future[Saved], checkpoint.Snapshot]] = []
        self._complete: list[Saved] = []

    def start(self, snapshot: checkpoint.Snapshot, *, epoch: int, is_best: bool) -> None:
        """Begin to save; the snapshot may be changed when this returns."""
        model, model_ready = _on_host(snapshot.model)
        optimizer, optimizer_ready = _on_host(snapshot.optimizer)
        state = copy.deepcopy(dict(snapshot.state))
        copied = dataclasses.replace(snapshot, model=model, optimizer=optimizer, state=state)

        def write() -> Saved:
            model_ready()
            optimizer_ready()
            self._sync()
            path = checkpoint.save(self.folder, copied, prefix="best" if is_best else "step")
            checkpoint.prune(self.folder, keep=self._keep)
            return Saved(epoch=epoch, path=path, is_best=is_best)

        self._pending.append((self._thread.submit(write), copied))

    def settle(self) -> None:
        """Wait for what was begun, whatever became of it; the next `wait` tells."""
        futures.wait([future for future, _ in self._pending])

    def wait(self) -> list[Saved]:
        """Wait for what was begun; returns what became complete and was not returned before.

        Raises:
            CheckpointError: one cannot be written; the next call returns those that could.
            RunError: the journal cannot be.
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
        """Finish what was begun, and the thread; returns what went wrong."""
        self._thread.shutdown()
        try:
            self.wait()
        except EsperError as error:
            return str(error)
        return None


def _on_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], object]]:
    """Copies on the host, contiguous as safetensors wants them, and what waits until they are filled."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor.detach(), non_blocking=True)
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return copies, lambda: None
    filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
    filled.record()
    return copies, filled.synchronize
