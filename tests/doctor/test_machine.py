"""Findings of `esper doctor` about the machine; system programs are stub scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from esper.doctor import machine
from esper.doctor.finding import FAILED, NOT_USED, OK, WARNING
from tests.doctor.conftest import CANARY, GPU, ROOT, planned_run, program

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_cpu_build_of_torch_with_a_gpu_is_a_failure(programs: Path):
    program(programs, "nvidia-smi", "echo 'NVIDIA H100, 550.54'")
    found = machine.gpu(planned_run(probe={**GPU, "cuda": None}))
    assert found.status == FAILED
    assert "NVIDIA H100 (driver 550.54)" in found.found
    assert "CPU" in found.found


def test_an_old_driver_is_a_failure(programs: Path):
    program(programs, "nvidia-smi", "echo 'NVIDIA H100, 470.1'")
    found = machine.gpu(
        planned_run(probe={**GPU, "gpu_error": "RuntimeError: The NVIDIA driver on your system is too old"})
    )
    assert found.status == FAILED
    assert "too old" in found.found
    assert "driver" in found.remedy


def test_hidden_gpus_are_a_warning_or_with_device_cuda_a_failure(programs: Path, monkeypatch: pytest.MonkeyPatch):
    program(programs, "nvidia-smi", "echo 'NVIDIA H100, 550.54'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu(planned_run()).status == WARNING
    assert machine.gpu(planned_run("device=cuda")).status == FAILED
    assert machine.gpu(planned_run("device=cpu")).status == NOT_USED


def test_a_gpu_without_free_memory_is_a_warning():
    card = {**GPU, "gpu": "NVIDIA H100", "num_gpus": 1, "total_bytes": 80 * 2**30}
    assert machine.gpu(planned_run(probe={**card, "free_bytes": 2**20})).status == WARNING
    assert machine.gpu(planned_run(probe={**card, "free_bytes": 70 * 2**30})).status == OK


def test_the_gpu_of_a_number_is_looked_for_and_named(monkeypatch: pytest.MonkeyPatch):
    card = {**GPU, "gpu": "NVIDIA H100", "num_gpus": 2, "total_bytes": 80 * 2**30, "free_bytes": 70 * 2**30}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    found = machine.gpu(planned_run("device=cuda:1", probe=card))
    assert found.status == OK
    assert "2 × NVIDIA H100 (CUDA_VISIBLE_DEVICES=4,5); cuda:1" in found.found
    missing = machine.gpu(planned_run("device=cuda:4", probe=card))
    assert missing.status == FAILED
    assert "CUDA_VISIBLE_DEVICES=4,5), but device=cuda:4" in missing.found


def test_mps_is_checked_where_it_is_asked_for():
    assert machine.gpu(planned_run("device=mps", probe={**GPU, "mps": False})).status == FAILED
    assert machine.gpu(planned_run("device=mps", probe={**GPU, "cuda": None, "mps": True})).status == OK


def test_a_torchvision_that_cannot_be_imported_is_a_failure():
    found = machine.torchvision(
        planned_run(probe={**GPU, "torchvision_error": "operator torchvision::nms does not exist"})
    )
    assert found.status == FAILED
    assert "nms" in found.found


def test_a_torchvision_for_another_torch_is_a_failure():
    assert machine.torchvision(planned_run(probe={**GPU, "torch": "1.0", "torchvision": "0.29.1"})).status == FAILED


def test_the_installed_versions_are_supported():
    assert machine.packages().status == OK
    assert machine.python().status == OK


def test_more_threads_or_workers_than_cores_are_a_warning(tmp_path: Path):
    assert machine.cores(planned_run(probe={**GPU, "num_threads": 4096})).status == WARNING
    for name in ("train", "val"):
        (tmp_path / "data" / name).mkdir(parents=True)
    streams = ("dataset=imagefolder", "dataset.data_dir=data", "dataset.image_size=32", "dataset.storage=stream")
    found = machine.cores(planned_run(*streams, "dataset.num_workers=4096"))
    assert found.status == WARNING
    assert "dataset.num_workers=4096" in found.found
    assert machine.cores(planned_run(*streams, "dataset.num_workers=1")).status == OK


def test_a_misspelt_variable_is_reported_with_its_correct_name(monkeypatch: pytest.MonkeyPatch):
    assert machine.environment(planned_run()).status == OK
    monkeypatch.setenv("ESPER_REDIS_PASSWRD", CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAM", CANARY)
    found = machine.environment(planned_run())
    assert found.status == WARNING
    assert found.remedy == "rename it to ESPER_REDIS_PASSWORD; rename it to MLFLOW_TRACKING_USERNAME"
    assert CANARY not in found.found


def test_an_incomplete_torchrun_environment_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = machine.environment(planned_run())
    assert found.status == FAILED
    assert found.remedy


def test_all_variables_that_esper_reads_are_known():
    text = "".join(file.read_text() for file in (ROOT / "esper").rglob("*.py") if file.parent.name != "doctor")
    found = {name for name in re.findall(r"\"(ESPER_[A-Z_]+)\"", text) if not name.startswith(machine._TEST_PREFIXES)}
    assert found <= set(machine._VARIABLES)
