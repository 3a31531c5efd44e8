"""A thread that writes checkpoints while training continues."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from esper.errors import EsperError
from esper.tolaria.checkpoints import files
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.checkpoints.host_copy import HostCopy

__all__ = ["CheckpointWriter", "Saved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is complete on disk."""

    epoch: int
    path: Path
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A checkpoint that is being written, and its tensors in pinned memory.

    They stay until training collects it: freeing pinned memory in the writer's thread would record an event on a stream
    that the training thread may be capturing.
    """

    saved: Future[Saved]
    model: HostCopy
    optimizer: HostCopy


class CheckpointWriter:
    """Writes checkpoints one after the other in its own thread; training does not wait for it.

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
        self._pending: list[_Pending] = []
        self._complete: list[Saved] = []

    def start(
        self,
        snapshot: Snapshot,
        *,
        epoch: int,
        prefix: str = "step",
        is_on_trial: bool = False,
        is_same_network: bool = False,
    ) -> None:
        """Copy the snapshot, then write it in the background; the caller may change it after this returns.

        Args:
            snapshot: what to write.
            epoch: epochs finished.
            prefix: step, best, trunk or before.
            is_on_trial: whether to keep the checkpoints before growth.
            is_same_network: whether all tensors but the random states are those of the last call, and not copied again.
        """
        random = {name: state.clone() for name, state in snapshot.optimizer.items() if name.startswith("rng|")}
        if is_same_network and self._pending:
            model, optimizer = self._pending[-1].model, self._pending[-1].optimizer
        else:
            others = {name: tensor for name, tensor in snapshot.optimizer.items() if name not in random}
            model, optimizer = HostCopy(snapshot.model), HostCopy(others)
        copied = dataclasses.replace(snapshot, model={}, optimizer={}, state=copy.deepcopy(dict(snapshot.state)))

        def write() -> Saved:
            whole = dataclasses.replace(copied, model=model.wait(), optimizer=optimizer.wait() | random)
            self._sync()
            path = files.save(self.folder, whole, prefix=prefix, guard=self._guard)
            files.remove_old(self.folder, keep=self._keep, is_on_trial=is_on_trial)
            return Saved(epoch=epoch, path=path, prefix=prefix)

        self._pending.append(_Pending(saved=self._thread.submit(write), model=model, optimizer=optimizer))

    def wait(self) -> None:
        """Wait for all writes; `collect` raises their errors."""
        futures.wait([pending.saved for pending in self._pending])

    def collect(self) -> list[Saved]:
        """Wait for all writes; returns the checkpoints completed since the last call.

        Raises:
            CheckpointError: one could not be written; the next call returns those that could.
            WriteError: the journal could not be synced, or the run folder is gone.
        """
        pending, self._pending = self._pending, []
        failures = []
        for one in pending:
            if (failure := one.saved.exception()) is not None:
                failures.append(failure)
            else:
                self._complete.append(one.saved.result())
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
