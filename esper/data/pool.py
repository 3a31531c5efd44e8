"""Worker processes that decode batches of image files ahead of their use."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper import hanging, turns
from esper.data.images import FileSet
from esper.errors import DecoderError
from esper.images.decode import Chunk, Resize, decode_chunk
from esper.images.workers import initialize_worker

__all__ = ["DecodePool", "PendingBatch"]

_CHUNK = 32
"""Images that one worker decodes at a time: several workers share a batch, so that the first batch is ready soon."""

_START_S = 60.0
"""How long workers may take to start, on a busy machine: they import the training script, too."""
_END_S = 5.0
"""How long workers may take to end; they have nothing to save."""


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """A batch that is being decoded.

    Attributes:
        index: each image's index in its split, int64 (B,).
        labels: int64 (B,).
        chunks: the decoded images, a few at a time, and the first of their files.
        timeout_s: how long to wait for each.
        damaged: the pool's.
    """

    index: Tensor
    labels: Tensor
    chunks: Sequence[tuple[str, Future[Chunk]]]
    timeout_s: float
    damaged: dict[str, str]

    def __len__(self) -> int:
        return len(self.index)

    def copy_to(self, images: Tensor, metadata: Tensor) -> None:
        """Wait for the images, and copy them.

        Args:
            images: destination of the pixels, uint8 (B, S, S, 3).
            metadata: destination of index, label, height and width of the files, int64 (B, 4).

        Raises:
            DataError: an image is not readable.
            DecoderError: a worker has died.
        """
        metadata[:, 0], metadata[:, 1] = self.index, self.labels
        start = 0
        for chunk in self.wait():
            end = start + len(chunk.sizes)
            images[start:end], metadata[start:end, 2:] = torch.from_numpy(chunk.images), torch.from_numpy(chunk.sizes)
            start = end

    def wait(self) -> Iterator[Chunk]:
        """Wait for the decoded images, a few at a time.

        Raises:
            DataError, DecoderError: as in `copy_to`.
        """
        for path, future in self.chunks:
            with _worker_errors(), _decoding(path, timeout_s=self.timeout_s), turns.paused():
                chunk = future.result()
            self.damaged.update(chunk.damaged)
            yield chunk


class DecodePool:
    """Owner of the worker processes, which start with the first batch and serve every split.

    Workers are spawned, not forked: the parent has threads, and perhaps a CUDA context. They have their own process
    group, so that Ctrl-C reaches only the parent, which then stops them; and they exit when the parent dies.

    Args:
        num_workers: processes; 0: images are decoded in this process, when they are needed.
        timeout_s: how long to wait for some images before the process is ended.

    Attributes:
        checks: whether to look for damage inside JPEGs in batches that are read from now on.
        damaged: path and damage of each that was found.
    """

    def __init__(self, num_workers: int, *, timeout_s: float = 60.0) -> None:
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._executor: ProcessPoolExecutor | None = None
        self.checks = False
        self.damaged: dict[str, str] = {}
        self._first: Future[Chunk] | None = None  # that it decodes

    def read(self, split: FileSet, batches: Iterable[Tensor], resize: Resize) -> Generator[PendingBatch, None, None]:
        """Decode batches, given by the indices of their images, in order; some are decoded ahead.

        Closing the generator cancels those.
        """
        waiting: deque[PendingBatch] = deque()
        try:
            for index in batches:
                waiting.append(self._submit_batch(split, index, resize))
                if len(waiting) > self._num_ahead(len(index)):
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for batch in waiting:
                for _, chunk in batch.chunks:
                    chunk.cancel()

    def check(self, splits: Iterable[FileSet]) -> Generator[None, None, None]:
        """Decode all files of splits, a few at every step of the generator.

        Raises:
            DataError: an image is not readable.
        """
        for split in filter(len, splits):  # one may be empty
            smallest = Resize(side=1, crop=None)
            with closing(self.read(split, torch.split(torch.arange(len(split)), _CHUNK), smallest)) as reading:
                for batch in reading:
                    for _ in batch.wait():
                        pass
                    yield

    def close(self) -> None:
        """Stop the workers, and kill those that hang; safe to call twice, and from any thread."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        workers = list((executor._processes or {}).values())  # Python 3.14 has `kill_workers`
        manager: Any = executor._executor_manager_thread  # typeshed has another type
        executor.shutdown(wait=False, cancel_futures=True)
        if manager is None:  # no worker has started
            return
        manager.join(_END_S)  # which waits for the workers
        if manager.is_alive():
            for worker in workers:
                worker.kill()
            manager.join()

    def _num_ahead(self, batch_size: int) -> int:
        if self._num_workers == 0:
            return 0
        return max(2, math.ceil(2 * _CHUNK * self._num_workers / batch_size))

    def _submit_batch(self, split: FileSet, index: Tensor, resize: Resize) -> PendingBatch:
        parts = [split.paths(part) for part in torch.split(index, _CHUNK)]
        chunks = [(paths[0], self._submit(paths, resize)) for paths in parts]
        has_started = self._num_workers == 0 or (self._first is not None and self._first.done())
        timeout_s = self._timeout_s if has_started else self._timeout_s + _START_S
        return PendingBatch(index, split.labels[index], chunks, timeout_s, self.damaged)

    def _submit(self, paths: list[str], resize: Resize) -> Future[Chunk]:
        if self._num_workers == 0:
            done: Future[Chunk] = Future()
            with _decoding(paths[0], timeout_s=self._timeout_s):
                done.set_result(decode_chunk(paths, resize, check=self.checks))
            return done
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._num_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=initialize_worker,
                initargs=(os.getpid(),),
            )
        with _worker_errors(), _ctrl_c_blocked():  # a worker that starts now must not die of Ctrl-C while it imports
            future = self._executor.submit(decode_chunk, paths, resize, check=self.checks)
        self._first = self._first or future
        return future


def _decoding(path: str, *, timeout_s: float) -> AbstractContextManager[None]:
    """Context manager: end the process, which cannot interrupt this, if it takes longer."""
    hanging.beat()
    what = f"decoding {path} and up to {_CHUNK - 1} other files"
    return hanging.waiting(what, timeout_s=timeout_s, setting="dataset.timeout_s")


@contextmanager
def _worker_errors() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise DecoderError(
            "a worker that decodes images has died, often because memory ran out; set "
            "dataset.num_workers to fewer, or 0. A training script needs: if __name__ == '__main__'"
        ) from None


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
