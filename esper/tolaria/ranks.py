"""Several processes that train one network.

All of them run the same program. What steers it is made by process 0 alone and told to the others (`first`), so that
they stay in step; gradients are added up inside the training step (`add_up`). A process that is alone pays for none
of this.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from esper.build import select_device
from esper.configs.place import Place, place
from esper.errors import ConfigError, EsperError, RankError, one_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Ranks", "joined"]

T = TypeVar("T")

_MEETING_TIMEOUT = datetime.timedelta(minutes=10)
_TIMEOUT = datetime.timedelta(minutes=30)  # process 0 may score, judge and save meanwhile
_WATCH_S = 2.0
_GRACE_S = 20.0


@functools.cache
def joined() -> Ranks:
    """Meet the other processes, if the environment tells of any; afterwards it is known who this is.

    Raises:
        ConfigError: the environment is incomplete.
        RankError: they cannot be reached.
    """
    here = place()
    if here.size == 1:
        return Ranks(here)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(
            rendezvous(f"tcp://{here.address}:{here.port}", here.rank, here.size, timeout=_MEETING_TIMEOUT)
        )
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=_TIMEOUT)
        watch = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch's own errors of distribution are RuntimeErrors
        raise RankError(
            f"process {here.rank} of {here.size} cannot meet the others at {here.address}:{here.port} "
            f"({_line(error)}); see that all are started and that MASTER_ADDR can be reached from every machine"
        ) from None
    assert isinstance(watch, dist.ProcessGroup)
    ranks = Ranks(here, store=store, watch=watch)
    atexit.register(ranks.leave)
    return ranks


class Ranks:
    """This process among those that train one network.

    Every method that talks must be called by all of them in the same order. Without a `here`, a process is alone.

    Attributes:
        rank: number of this process.
        size: how many there are.

    Raises:
        RankError: from any method that talks: another process has died or cannot be reached.
    """

    def __init__(
        self, here: Place | None = None, *, store: Store | None = None, watch: dist.ProcessGroup | None = None
    ) -> None:
        here = here or Place()
        self.rank, self.size, self._local_rank = here.rank, here.size, here.local_rank
        self._store = store
        self._watch_group = watch
        self._is_broken = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def part(self, num: int) -> slice:
        """Which of `num` rows are this process's: parts follow each other and differ by one row at most."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def device(self, name: str) -> torch.device:
        """The device that a setting names; each process of a machine has a GPU of its own, current in this thread.

        Raises:
            ConfigError: CUDA was asked for and is not there, or there are more processes than GPUs.
        """
        device = select_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        num_gpus = torch.cuda.device_count()
        if num_gpus > 1 and self._local_rank >= num_gpus:
            raise ConfigError(
                f"device={name}: process {self._local_rank} of this machine has no GPU of its own, it sees {num_gpus}; "
                "start as many processes as there are GPUs"
            )
        device = torch.device("cuda", self._local_rank if num_gpus > 1 else 0)  # SLURM may show each process its own
        torch.cuda.set_device(device)
        return device

    # --- agreeing -------------------------------------------------------------------------------------------------

    def first(self, decide: Callable[[], T]) -> T:
        """What process 0 decides, in all of them; the others do not call `decide`.

        Raises:
            EsperError: what `decide` raised, in all of them.
        """
        if self.size == 1:
            return decide()
        message: list[tuple[Any, EsperError | None] | None] = [None]
        if self.is_first:
            try:
                message[0] = (decide(), None)
            except EsperError as refusal:
                message[0] = (None, refusal)
        with self._talking():
            dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        assert message[0] is not None
        value, error = message[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def any_of(self, value: T | None) -> T | None:
        """The first process's value that is not None."""
        if self.size == 1:
            return value
        counts = torch.tensor([value is not None], dtype=torch.int32)
        with self._talking():
            dist.all_reduce(counts)
            if not counts.item():
                return None
            values: list[T | None] = [None] * self.size
            dist.all_gather_object(values, value)
        return next(found for found in values if found is not None)

    def require_same(self, what: str, found: Mapping[str, object]) -> None:
        """Make sure that all have the same.

        Raises:
            RankError: something differs; it names the first such key.
        """
        if self.size == 1:
            return
        everyone: list[Mapping[str, object]] = [{}] * self.size
        with self._talking():
            dist.all_gather_object(everyone, found)
        for rank, theirs in enumerate(everyone):
            for key in everyone[0].keys() | theirs.keys():
                if everyone[0].get(key) != theirs.get(key):
                    raise RankError(
                        f"{what} differs: {key} is {everyone[0].get(key)} in process 0, {theirs.get(key)} in process "
                        f"{rank}; give all the same command and data, and start it again: it goes on from the last "
                        "checkpoint"
                    )

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.size > 1:
            with self._talking():
                dist.all_reduce(torch.zeros(1))

    # --- tensors --------------------------------------------------------------------------------------------------

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes; may be captured in a CUDA graph."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._talking():
            dist.all_reduce(flat)
        sums = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(sums, tensors, strict=True)])

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all of them process 0's values."""
        if self.size == 1:
            return
        with self._talking():
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, src=0)
                tensor.copy_(values)

    # --- the end --------------------------------------------------------------------------------------------------

    def is_first_to_fail(self, line: str) -> bool:
        """Whether no other process has failed before this one; a failure is told once."""
        if self._store is None:
            return True
        self._is_broken = True
        try:
            told: bytes = self._store.compare_set("esper/failed", "", f"{self.rank}: {line}")
        except RuntimeError:  # process 0 kept the store, and has died
            return self.rank == 1
        return told.decode() == f"{self.rank}: {line}"

    def leave(self) -> None:
        """Part from the others at the end; a failed process ends without a word to them, since it might wait for ever.

        Graphs that hold communication have to be gone: NCCL waits for them.
        """
        if self.size > 1 and not self._is_broken and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, notice within seconds that another process has died, and end this one if it hangs.

        A device that waits for another one waits for ever: the graph that is replayed knows no timeout.
        """
        if self.size == 1:
            yield
            return
        leaving = threading.Event()
        watch = threading.Thread(target=self._watch, args=(leaving,), name="esper-ranks", daemon=True)
        watch.start()
        try:
            yield
        except RankError:
            raise  # still watched: what is on the way to the end may hang too
        except BaseException:
            leaving.set()
            raise
        leaving.set()
        watch.join()

    def _watch(self, leaving: threading.Event) -> None:
        all_leave = torch.zeros(1)
        try:
            while not all_leave.item():
                leaving.wait(_WATCH_S)
                all_leave.fill_(leaving.is_set())
                dist.all_reduce(all_leave, op=dist.ReduceOp.MIN, group=self._watch_group)
        except RuntimeError as error:
            if leaving.is_set():
                return
            time.sleep(_GRACE_S)  # the error reaches the training too, which ends in order unless it hangs
            if leaving.is_set():
                return
            line = str(_lost(error))
            if self.is_first_to_fail(line):
                sys.stderr.write(f"error: {line}\n")
                sys.stderr.flush()
            os._exit(1)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise _lost(error) from None


def _lost(error: Exception) -> RankError:
    return RankError(
        f"another process of this run has ended or cannot be reached ({_line(error)}); start the same command again, "
        "with any number of processes: it goes on from the last checkpoint"
    )


def _line(error: Exception) -> str:
    """What a backend says, without its source file and its advice."""
    return re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", one_line(error)).partition(". ")[0][:200]
