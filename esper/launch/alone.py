"""A run in a process that does other things too: one run at a time, and torch's global state is left as it was."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import torch

__all__ = ["alone"]

_lock = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Context manager: wait for other runs of this process, and put back torch's random states and flags at the end.

    Two runs at once would draw from the same random states, so that neither could be repeated.
    """
    if not _lock.acquire(blocking=False):
        sys.stderr.write("another run trains in this process; this one waits for its end\n")
        _lock.acquire()
    try:
        dtype, cudnn = torch.get_default_dtype(), torch.backends.cudnn
        flags = cudnn.benchmark, cudnn.deterministic
        on_cpu = torch.get_rng_state()
        has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        on_gpus = torch.cuda.get_rng_state_all() if has_cuda else None
        on_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        torch.set_default_dtype(torch.float32)  # what Esper trains in, whatever the program uses
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            cudnn.benchmark, cudnn.deterministic = flags
            torch.set_rng_state(on_cpu)
            if on_gpus is not None:
                torch.cuda.set_rng_state_all(on_gpus)
            if on_mps is not None:
                torch.mps.set_rng_state(on_mps)
    finally:
        _lock.release()
