"""Verdicts on a worker process, also on a busy machine."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from esper.tezzeret.process import ProcessFault, WorkerProcess

_LARGE = "memory = bytearray(b'x' * 2**27); print('{}', flush=True); import time; time.sleep(60)"
_BUSY = "print(flush=True)\nwhile True: pass"
_WORKS = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while time.process_time() < 0.8: pass
print('{"status": "ready"}', flush=True)
"""


@contextlib.contextmanager
def worker(code: str, *arguments: str) -> Iterator[WorkerProcess]:
    with contextlib.closing(WorkerProcess([sys.executable, "-c", code, *arguments], stop=threading.Event())) as process:
        yield process


@contextlib.contextmanager
def load(cpu: int, *, num: int) -> Iterator[None]:
    """So many processes that want all of one CPU."""
    with contextlib.ExitStack() as stack:
        for _ in range(num):
            process = subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {cpu})
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
        yield


def test_a_worker_that_is_late_and_too_large_is_too_large():
    with worker(_LARGE) as process:
        process.read(deadline=process.clock() + 60)
        with pytest.raises(ProcessFault, match="used more than 64 MiB") as raised:
            process.read(deadline=process.clock() - 1, memory_bytes=2**26)
    assert raised.value.status == "too_large"


def test_a_reply_that_waits_in_the_pipe_is_read_however_late():
    with worker("""import os, time; os.write(1, b'{"a": 1}\\n'); time.sleep(60)""") as process:
        assert select.select([process._process.stdout], [], [], 60)[0]
        assert process.read(deadline=process.clock() - 1) == {"a": 1}


def test_output_without_an_end_is_no_reply():
    with (
        worker("import sys\nwhile True: sys.stdout.write('x' * 4096)") as process,
        pytest.raises(ProcessFault, match="no reply") as raised,
    ):
        process.read(deadline=process.clock() + 0.2)
    assert raised.value.status == "hung"


@pytest.mark.skipif(sys.platform != "linux", reason="the time waited for a CPU is known on Linux")
def test_a_worker_that_waits_for_a_cpu_does_not_hang():
    cpu = min(os.sched_getaffinity(0))
    with load(cpu, num=2), worker(_WORKS, str(cpu)) as process:
        began_s, clock_s = time.monotonic(), process.clock()
        assert process.read(deadline=clock_s + 60) == {"status": "ready"}
        ended_s, took_s = time.monotonic(), process.clock() - clock_s
        assert ended_s - began_s - took_s > 0.4  # so long it waited at least, for the 0.8 s that it computes
