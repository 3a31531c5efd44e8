"""Distributed training: several ranks train one network, all running the same program.

Rank 0 makes control decisions and broadcasts them (`on_rank0`); gradients are all-reduced inside the training step
(see `buckets.py`). With a single rank nothing is communicated.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from esper import hanging
from esper.configs import RanksConfig
from esper.configs.rank_env import RankEnv, rank_env
from esper.devices import select_device
from esper.errors import ConfigError, EsperError, RankError, one_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Ranks", "init_ranks"]

T = TypeVar("T")

_RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=10)
_TIMEOUT = datetime.timedelta(minutes=30)  # rank 0 may score, judge and save while the others wait
_WATCHDOG_INTERVAL_S = 2.0
_WATCHDOG_GRACE_S = 20.0
_REPORT_S = 1.0
_ANSWER_S = 10.0
_AGAIN = "start the same command again, with any number of ranks: the run resumes from its last checkpoint"


@functools.cache
def init_ranks() -> Ranks:
    """Initialise torch.distributed from torchrun's or SLURM's variables, once a process.

    Raises:
        ConfigError: the environment is incomplete.
        RankError: the other ranks cannot be reached.
    """
    here = rank_env()
    if here.size == 1:
        return Ranks(here)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(
            rendezvous(f"tcp://{here.address}:{here.port}", here.rank, here.size, timeout=_RENDEZVOUS_TIMEOUT)
        )
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=_TIMEOUT)
        watch = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch.distributed's errors are RuntimeErrors
        raise RankError(
            f"rank {here.rank} of {here.size} cannot reach the others at {here.address}:{here.port} "
            f"({_line(error)}); check that all are started and that MASTER_ADDR can be reached from every machine"
        ) from None
    assert isinstance(watch, dist.ProcessGroup)
    ranks = Ranks(here, store=store, watch=watch)
    atexit.register(ranks.close)
    return ranks


class Ranks:
    """This rank, and communication with the others.

    Every method that communicates must be called by all ranks in the same order. Without `here` there is one rank.

    Attributes:
        rank: number of this rank.
        size: number of ranks.

    Raises:
        RankError: from any method that communicates: another rank has died or cannot be reached.
    """

    def __init__(
        self, here: RankEnv | None = None, *, store: Store | None = None, watch: dist.ProcessGroup | None = None
    ) -> None:
        here = here or RankEnv()
        self.rank, self.size, self._local_rank = here.rank, here.size, here.local_rank
        self._store = store
        self._watch_group = watch
        self._is_broken = False

    @property
    def is_rank0(self) -> bool:
        """Whether this is the rank that makes decisions and writes files."""
        return self.rank == 0

    def shard(self, num: int) -> slice:
        """This rank's rows of `num`: shards are contiguous and differ by one row at most."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def device(self, name: str) -> torch.device:
        """The device that a setting names, made current in this thread; each rank on a machine gets its own GPU.

        Raises:
            ConfigError: the device is not there, or the machine has more ranks than GPUs.
        """
        device = select_device(name, num_ranks=self.size)
        if device.type != "cuda":
            return device
        if self.size == 1:
            if device.index is not None:
                torch.cuda.set_device(device)
            return device
        num_gpus = torch.cuda.device_count()
        if num_gpus > 1 and self._local_rank >= num_gpus:
            raise ConfigError(
                f"device={name}: rank {self._local_rank} of this machine has no GPU of its own, it sees {num_gpus}; "
                "start as many ranks as there are GPUs"
            )
        device = torch.device("cuda", self._local_rank if num_gpus > 1 else 0)  # SLURM may show each rank only its own
        torch.cuda.set_device(device)
        return device

    # --- agreement ------------------------------------------------------------------------------------------------

    def on_rank0(self, decide: Callable[[], T]) -> T:
        """Call `decide` on rank 0 only; returns its result on all ranks.

        Raises:
            EsperError: `decide` raised it; raised on all ranks.
        """
        if self.size == 1:
            return decide()
        message: list[tuple[Any, EsperError | None] | None] = [None]
        if self.is_rank0:
            try:
                message[0] = (decide(), None)
            except EsperError as refusal:
                message[0] = (None, refusal)
        with self._communicating():
            dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        assert message[0] is not None
        value, error = message[0]
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def any_value(self, value: T | None) -> T | None:
        """The value of the lowest rank where it is not None."""
        if self.size == 1:
            return value
        counts = torch.tensor([value is not None], dtype=torch.int32)
        with self._communicating():
            dist.all_reduce(counts)
            if not counts.item():
                return None
            values: list[T | None] = [None] * self.size
            dist.all_gather_object(values, value)
        return next(v for v in values if v is not None)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with self._communicating():
            dist.all_gather_object(values, value)
        return values

    def require_equal(self, what: str, values: Mapping[str, object]) -> None:
        """Check that all ranks have the same values.

        Raises:
            RankError: something differs; it names one such key.
        """
        if self.size == 1:
            return
        gathered = self.gather(values)
        for rank, theirs in enumerate(gathered):
            for key in gathered[0].keys() | theirs.keys():
                if gathered[0].get(key) != theirs.get(key):
                    raise RankError(
                        f"{what} differs: {key} is {gathered[0].get(key)} on rank 0, {theirs.get(key)} on rank {rank}; "
                        "give all ranks the same command and data, and start again: the run resumes from its last "
                        "checkpoint"
                    )

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            with self._communicating():
                dist.all_reduce(torch.zeros(1))

    # --- tensors --------------------------------------------------------------------------------------------------

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, all of one type, by its sum over all ranks; may be captured in a CUDA graph."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._communicating():
            dist.all_reduce(flat)
        sums = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(sums, tensors, strict=True)])

    def start_all_reduce_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Start to replace a tensor by its sum over all ranks; returns what waits for it.

        On CUDA the sum is in a stream of its own, and the current stream waits, not the host: both may be captured.
        """
        with self._communicating():
            work = dist.all_reduce(tensor, async_op=True)
        assert work is not None

        def wait() -> None:
            with self._communicating():
                work.wait()

        return wait

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into the tensors of all ranks."""
        if self.size == 1:
            return
        with self._communicating():
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, src=0)
                tensor.copy_(values)

    # --- failure and end ------------------------------------------------------------------------------------------

    def report_failure(self, line: str) -> bool:
        """Whether no other rank has failed before this one: only the first failure is reported."""
        if self._store is None:
            return True
        self._is_broken = True
        mine, first = f"{self.rank}: {line}", list[str]()
        # In a thread: rank 0 holds the store, and may hang.
        report = threading.Thread(target=self._claim_failure, args=(mine, first), daemon=True)
        report.start()
        report.join(_REPORT_S if self.rank <= 1 else _ANSWER_S)  # without an answer the others say nothing
        return first[0] == mine if first else self.rank <= 1

    def _claim_failure(self, mine: str, first: list[str]) -> None:
        assert self._store is not None
        with contextlib.suppress(RuntimeError):  # rank 0 has died
            first.append(self._store.compare_set("esper/failed", "", mine).decode())

    def close(self) -> None:
        """Destroy the process group, unless this rank failed: it might wait for the others for ever.

        CUDA graphs that contain communication must be gone: NCCL waits for them.
        """
        if self.size > 1 and not self._is_broken and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def watchdog(self, config: RanksConfig) -> Iterator[None]:
        """Context manager: notice that another rank has died, and end this process if that rank or all of them hang.

        A device that waits for another one waits for ever: a replayed CUDA graph has no timeout.

        Args:
            config: how long a rank may not answer, and all may be without progress, see `hanging.silence_s`.
        """
        if self.size == 1:
            yield
            return
        stopping, failed = threading.Event(), threading.Event()
        arguments = (stopping, failed, config.timeout_s)
        watch = threading.Thread(target=self._watch, args=arguments, name="esper-ranks", daemon=True)
        watch.start()
        try:
            yield
        except RankError:
            raise  # still watched: the shutdown may hang too
        except BaseException:
            failed.set()
            stopping.set()
            watch.join(2 * _WATCHDOG_INTERVAL_S)  # Python should not end while a thread is in torch's C++
            raise
        stopping.set()
        watch.join()

    def _watch(self, stopping: threading.Event, failed: threading.Event, timeout_s: float) -> None:
        """Exchange, every two seconds, whether all ranks stop, and for how long none has made progress."""
        lowest = torch.zeros(2)
        started = time.monotonic()
        try:
            while not lowest[0] and not failed.is_set():
                if stopping.wait(_WATCHDOG_INTERVAL_S) and failed.is_set():
                    return  # the others find that this process has ended
                started = time.monotonic()
                lowest.copy_(torch.tensor([float(stopping.is_set()), hanging.silence_s()]))
                work = dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self._watch_group, async_op=True)
                work.wait(datetime.timedelta(seconds=timeout_s))
                hanging.limit_silence(float(lowest[1]))
                if lowest[1] > timeout_s:
                    hanging.end_process(f"ranks.timeout_s={timeout_s:g}: no rank made progress for {timeout_s:g} s")
        except RuntimeError as error:
            if time.monotonic() - started >= timeout_s:
                hanging.end_process(
                    f"ranks.timeout_s={timeout_s:g}: another rank of this run has not answered for {timeout_s:g} s; "
                    f"{_AGAIN}"
                )
            if stopping.is_set():
                return
            time.sleep(_WATCHDOG_GRACE_S)  # the training gets the error too, and ends in order unless it hangs
            if stopping.is_set():
                return
            hanging.end_process(str(_lost(error)))

    @contextlib.contextmanager
    def _communicating(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise _lost(error) from None


def _lost(error: Exception) -> RankError:
    return RankError(f"another rank of this run has ended or cannot be reached ({_line(error)}); {_AGAIN}")


def _line(error: Exception) -> str:
    """A backend's message on one line, without its source file and its advice."""
    return re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", one_line(error)).partition(". ")[0][:200]
