from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from esper import tezzeret, urza
from esper.configs import DatabaseConfig, StorageConfig
from esper.errors import ConfigError, EsperError
from esper.tezzeret.characterise import Forge, Limits, characterise, jobs
from esper.tezzeret.measure import Job
from esper.tezzeret.process import WorkerStopped
from esper.urza.records import KernelRecord
from esper.urza.store import Store
from tests.urza.definitions import text

BAD = (str(Path(__file__).with_name("bad_worker.py")),)
SHAPE = (8, 4, 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(DatabaseConfig(), outputs_dir=tmp_path, create=True)) as opened:
        yield opened


@pytest.fixture(scope="module")
def bad() -> Iterator[Forge]:
    """A forge whose worker knows blueprints that misbehave."""
    limits = Limits(timeout_s=120.0, memory_bytes=3 * 2**29)
    with contextlib.closing(Forge(device="cpu", limits=limits, worker=BAD)) as forge:
        yield forge


def job(blueprint_id: str, **changes: Any) -> Job:
    fields = {"in_shape": SHAPE, "out_shape": SHAPE, "batch_size": 4, "compile": False, **changes}
    return Job(blueprint_id=blueprint_id, **fields)


def newest_worker() -> psutil.Process:
    workers = [child for child in psutil.Process().children() if "bad_worker" in " ".join(child.cmdline())]
    return max(workers, key=psutil.Process.create_time)


def test_a_kernel_is_measured_and_in_the_library_before_it_is_announced(bad: Forge, store: Store):
    blueprint = urza.declare(text())
    announced = []

    def announce(kernel: KernelRecord) -> None:
        announced.append((kernel, store.kernels()))

    wanted = jobs(blueprint, [(SHAPE, SHAPE)], batch_size=4, compile=False)
    (kernel,) = characterise(wanted, forge=bad, store=store, announce=announce)
    assert kernel.status == "ready"
    assert (kernel.device, kernel.torch_version) == bad.hardware
    cost = tezzeret.kernel_cost(blueprint.blueprint_id, SHAPE, SHAPE)
    assert (kernel.num_parameters, kernel.num_macs) == (cost.num_parameters, cost.num_macs)
    assert kernel.forward_s is not None
    assert kernel.backward_s is not None
    assert min(kernel.forward_s, kernel.backward_s) > 0
    assert announced == [(kernel, [kernel])]


def test_the_memory_is_that_of_parameters_gradients_and_what_backward_keeps(bad: Forge):
    small, large = (bad.characterise(job("layer_scale", batch_size=size)).memory_bytes for size in (1, 9))
    assert small is not None
    assert large is not None
    assert small >= 2 * 4 * 8
    layers = bad.characterise(job("basic_block", batch_size=9)).memory_bytes
    assert layers is not None
    assert layers > 3 * 9 * 8 * 4 * 4 * 4  # outputs of two convolutions and a norm, at least


@pytest.mark.parametrize(
    ("blueprint_id", "status", "reason"),
    [
        ("crash", "crashed", "exited with code 3: about to end while building"),
        pytest.param("kill", "crashed", "killed by SIGABRT", marks=pytest.mark.long),
        pytest.param("hoard", "too_large", "used more than 1,536 MiB while building", marks=pytest.mark.long),
    ],
)
def test_a_failed_worker_is_recorded_with_the_reason_and_replaced(
    bad: Forge, store: Store, blueprint_id: str, status: str, reason: str
):
    require_recorded_and_replaced(bad, store, blueprint_id, status, reason)


@pytest.mark.long
def test_a_hung_worker_is_recorded_and_replaced(store: Store):
    with contextlib.closing(Forge(device="cpu", limits=Limits(timeout_s=8.0), worker=BAD)) as forge:
        require_recorded_and_replaced(forge, store, "hang", "hung", "no reply within 8 s while building")


def require_recorded_and_replaced(forge: Forge, store: Store, blueprint_id: str, status: str, reason: str) -> None:
    forge.start()
    first = newest_worker()
    broken, sound = characterise([job(blueprint_id), job("conv1x1")], forge=forge, store=store)
    assert (broken.status, broken.reason[: len(reason)]) == (status, reason)
    assert sound.status == "ready"
    assert not first.is_running()
    assert newest_worker() != first
    assert (store.quarantined(blueprint_id) is not None) == (status != "too_large")


@pytest.mark.long
def test_a_quarantined_blueprint_gets_no_second_job_without_again(bad: Forge, store: Store):
    wanted = [job("crash"), job("crash", batch_size=2)]
    assert [kernel.batch_size for kernel in characterise(wanted, forge=bad, store=store)] == [4]
    assert [kernel.batch_size for kernel in characterise(wanted[1:], forge=bad, store=store)] == []
    again = list(characterise(wanted[1:], forge=bad, store=store, again=True))
    assert [kernel.batch_size for kernel in again] == [2]
    assert store.kernels() == again


def test_what_the_library_knows_is_not_measured_twice(bad: Forge, store: Store, monkeypatch: pytest.MonkeyPatch):
    measured = []
    monkeypatch.setattr(bad, "characterise", lambda one: measured.append(one) or Forge.characterise(bad, one))
    (first,) = characterise([job("conv1x1")], forge=bad, store=store)
    (second,) = characterise([job("conv1x1")], forge=bad, store=store)
    assert second == first
    assert len(measured) == 1
    (third,) = characterise([job("conv1x1")], forge=bad, store=store, again=True)
    assert store.kernels() == [third]
    assert len(measured) == 2


@pytest.mark.long
def test_a_worker_killed_between_jobs_fails_one_job_and_is_replaced(bad: Forge):
    bad.start()
    os.kill(newest_worker().pid, signal.SIGKILL)
    assert bad.characterise(job("conv1x1")).reason == "killed by SIGKILL while starting"
    assert bad.characterise(job("conv1x1")).status == "ready"


def test_a_kernel_that_fails_its_check_is_unsound_and_not_quarantined(bad: Forge, store: Store):
    (kernel,) = characterise([job("idle")], forge=bad, store=store)
    assert (kernel.status, kernel.reason) == ("unsound", "fails its check: gradient_in_every_parameter")
    assert store.quarantined("idle") is None


@pytest.mark.long
def test_a_stop_ends_a_job_that_hangs(store: Store):
    stop = threading.Event()
    with contextlib.closing(Forge(device="cpu", stop=stop, worker=BAD)) as forge:
        forge.start()
        hanging = newest_worker()
        threading.Timer(0.3, stop.set).start()
        started = time.monotonic()
        with pytest.raises(WorkerStopped):
            list(characterise([job("hang")], forge=forge, store=store))
        assert time.monotonic() - started < 60  # the job may take 300 s
        assert not hanging.is_running()
    assert store.kernels() == []


def test_a_worker_that_does_not_start_is_an_error_of_one_line():
    with (
        contextlib.closing(Forge(worker=("-c", "raise SystemExit('no luck')"))) as forge,
        pytest.raises(EsperError, match=r"^the forge's worker does not start: exited with code 1: no luck$"),
    ):
        forge.start()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with contextlib.closing(Forge(device="cuda")) as forge, pytest.raises(ConfigError, match="no usable CUDA device"):
        forge.start()


def test_a_blueprint_that_fits_none_of_the_sites_is_refused():
    with pytest.raises(ConfigError, match=r"group_norm fits none of \(8, 4, 4\) to \(8, 2, 2\); give other shapes"):
        jobs(urza.get("group_norm"), [(SHAPE, (8, 2, 2))])


@pytest.mark.long
def test_a_kernel_is_compiled_into_the_configured_cache_folder(tmp_path: Path, monkeypatch: Any):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    storage = StorageConfig(compile_cache_dir=str(tmp_path / "compiled"))
    with contextlib.closing(Forge(device="cpu", storage=storage)) as forge:
        kernel = forge.characterise(job("conv1x1", compile=True))
    assert kernel.status == "ready"
    assert kernel.reason == ""
    assert kernel.compile_s is not None
    assert kernel.compiled_forward_s is not None
    assert any((tmp_path / "compiled").rglob("*"))


@pytest.mark.long
def test_a_worker_that_hangs_does_not_outlive_its_forge():
    code = f"""
from esper.tezzeret.characterise import Forge
from esper.tezzeret.measure import Job
forge = Forge(device="cpu", worker={BAD!r})
forge.start()
print("up", flush=True)
forge.characterise(Job(blueprint_id="hang", in_shape={SHAPE}, out_shape={SHAPE}))
"""
    forge = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert forge.stdout is not None
        assert forge.stdout.readline() == b"up\n"
        (worker,) = psutil.Process(forge.pid).children()
    finally:
        forge.kill()
        forge.communicate()
    assert _eventually(lambda: _has_ended(worker))


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two
        return True


def _eventually(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
