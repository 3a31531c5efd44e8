"""Workers of the studies: processes that are there before it is known what they train."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import pytest

from benchmarks.workers import FAILED, Workers, append, locked, read_rows

pytestmark = pytest.mark.long


def run_next(out: Path) -> bool:
    """Write a row; the second worker fails, and after three rows there is no more."""
    with locked(out):
        rows = read_rows(out, ("pid",))
        append(out, {"pid": os.getpid(), "cwd": os.getcwd(), "fails": len(rows) == 1})  # noqa: PTH109
    if len(rows) == 1:
        raise SystemExit(FAILED)
    deadline = time.monotonic() + 60
    while len(read_rows(out, ("pid",))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(rows) < 2


def test_workers_wait_for_what_is_planned_and_one_that_fails_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "rows.jsonl"
    out.touch()
    with Workers(device="cpu", per_gpu=2, folder=tmp_path) as workers:
        started = list(workers._workers)
        workers.work(functools.partial(run_next, out), deadline=time.time() + 120)
        assert not workers._workers
    rows = read_rows(out, ("pid",))
    assert {row["cwd"] for row in rows} == {str(tmp_path)}
    first = {worker.pid for worker in started}
    assert {row["pid"] for row in rows if row["fails"]} < first
    assert {row["pid"] for row in rows} > first  # and one more


def die() -> bool:
    os._exit(9)


def test_a_worker_that_dies_is_counted_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Workers(device="cpu", per_gpu=1) as workers:
        workers.work(die, deadline=time.time() + 120)
    assert workers.num_dead == 1
    assert "a worker has died, exit code 9" in capsys.readouterr().err


def test_workers_end_with_a_plan_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    workers = Workers(device="cpu", per_gpu=1)
    with pytest.raises(ValueError, match="no such study"), workers:
        raise ValueError("no such study")
    assert [worker.exitcode for worker in workers._workers] == [-15]
