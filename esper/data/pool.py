"""Processes that decode image files ahead of their use."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.multiprocessing  # teaches `multiprocessing` to pass tensors through shared memory
from torch import Tensor

from esper.data.decode import Chunk, Form, decode_chunk
from esper.data.files import FileSet
from esper.errors import DataError

__all__ = ["DecodePool", "Decoding"]

_CHUNK = 32
"""Images that one process decodes at a time: several share a batch, so that the first comes soon."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """A batch that is being decoded.

    Attributes:
        index: each image's index in its split, int64 (B,).
        labels: int64 (B,).
        chunks: its images, a few at a time.
    """

    index: Tensor
    labels: Tensor
    chunks: Sequence[Future[Chunk]]

    def __len__(self) -> int:
        return len(self.index)

    def fill(self, images: Tensor, facts: Tensor) -> None:
        """Wait for the images, and copy them to where they are wanted.

        Args:
            images: uint8 (B, S, S, 3).
            facts: index, label, height and width of the files, int64 (B, 4).

        Raises:
            DataError: one is not readable, or a process has died.
        """
        facts[:, 0], facts[:, 1] = self.index, self.labels
        start = 0
        for chunk in self.chunks:
            with _explained():
                pixels, sizes = chunk.result()
            end = start + len(sizes)
            images[start:end], facts[start:end, 2:] = pixels, sizes
            start = end


class DecodePool:
    """Owner of the processes that decode; they start when the first batch is wanted, and serve every split.

    They are spawned, not forked: this process has threads, and perhaps a CUDA context. They leave its group, so that
    Ctrl-C reaches it alone, which then ends them; and they end by themselves when it is gone.

    Args:
        num_workers: processes; 0: images are decoded here, none ahead.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._executor: ProcessPoolExecutor | None = None

    def read(self, split: FileSet, batches: Iterable[Tensor], form: Form) -> Generator[Decoding, None, None]:
        """Decode batches, given by the indices of their images, in order and some of them ahead.

        Closing the generator abandons those ahead.
        """
        waiting: deque[Decoding] = deque()
        try:
            for index in batches:
                waiting.append(self._begin(split, index, form))
                if len(waiting) > self._num_ahead(len(index)):
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for batch in waiting:
                for chunk in batch.chunks:
                    chunk.cancel()

    def close(self) -> None:
        """End the processes; safe to call twice, and from any thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def _num_ahead(self, batch_size: int) -> int:
        if self._num_workers == 0:
            return 0
        return max(2, math.ceil(2 * _CHUNK * self._num_workers / batch_size))

    def _begin(self, split: FileSet, index: Tensor, form: Form) -> Decoding:
        chunks = [self._submit(split.paths(part), form) for part in torch.split(index, _CHUNK)]
        return Decoding(index, split.labels[index], chunks)

    def _submit(self, paths: list[str], form: Form) -> Future[Chunk]:
        if self._num_workers == 0:
            done: Future[Chunk] = Future()
            done.set_result(decode_chunk(paths, form))
            return done
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        with _explained(), _ctrl_c_blocked():  # a process that is started here must not die of it while it imports
            return self._executor.submit(decode_chunk, paths, form)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise DataError(
            "dataset.num_workers: a process that decodes images has died, often for want of memory or of shared memory "
            "(/dev/shm); set fewer, or 0. A script that trains needs: if __name__ == '__main__'"
        ) from None


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also forgets one that came while it was blocked
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
