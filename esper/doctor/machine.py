"""Checks of this machine: package versions, torch, GPU, cores, memory, compiler, environment variables."""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from esper.cores import num_cores
from esper.doctor.finding import Finding, PlannedRun, failed, failed_with, not_used, ok, warning

__all__ = [
    "compiler", "cores", "environment", "gpu", "memory", "open_files", "packages", "python", "torch",
    "torchvision",
]  # fmt: skip

_VARIABLES = ("ESPER_REDIS_PASSWORD", "ESPER_REDIS_URL", "ESPER_REDIS_USERNAME")
_TEST_PREFIXES = ("ESPER_REQUIRE_", "ESPER_TEST_")
_EXTRAS = ("wandb", "timm", "postgres", "embedded-redis")
_GIB = 2**30
_LOW_GPU_BYTES, _LOW_MEMORY_BYTES = 2 * _GIB, 2 * _GIB
_LOW_OPEN_FILES = 1024
_SMI_TIMEOUT_S = 10


# --- versions -----------------------------------------------------------------------------------------------------


def python() -> Finding:
    """Python is of a supported version."""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} in {sys.prefix}"
    try:
        required = metadata("esper-train")["Requires-Python"]
    except PackageNotFoundError:
        return warning(f"{found}; Esper is not installed", "pip install -e . in the checkout")
    if not SpecifierSet(required).contains(platform.python_version(), prereleases=True):
        return failed(f"{found}; Esper requires {required}", "create an environment with such a Python")
    return ok(found)


def packages() -> Finding:
    """Installed packages are in the version ranges that Esper supports."""
    from packaging.requirements import Requirement

    problems, to_install, num_ok = [], [], 0
    try:
        requirements = [Requirement(line) for line in requires("esper-train") or ()]
    except PackageNotFoundError:
        return warning("Esper is not installed, so its requirements are unknown", "pip install -e . in the checkout")
    for requirement in requirements:
        marker, name = requirement.marker, requirement.name
        is_extra = marker is not None and not marker.evaluate({"extra": ""})
        if is_extra and marker and not any(marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = ""
        if installed and requirement.specifier.contains(installed, prereleases=True):
            num_ok += 1
        elif installed or not is_extra:
            problems.append(f"{name} is {installed or 'missing'}, required is {requirement.specifier}")
            to_install.append(f"'{name}{requirement.specifier}'")
    if problems:
        return failed("; ".join(problems), f"pip install {' '.join(to_install)}")
    return ok(f"{num_ok} packages in supported versions")


def torch(run: PlannedRun) -> Finding:
    """Torch can be imported."""
    probe = run.probe()
    if "torch" not in probe:
        return failed(f"cannot be imported: {probe['torch_error']}", "pip install --force-reinstall torch torchvision")
    return ok(f"{probe['torch']}, {'built for CUDA ' + probe['cuda'] if probe['cuda'] else 'a CPU build'}")


def torchvision(run: PlannedRun) -> Finding:
    """Torchvision matches the installed torch."""
    from packaging.requirements import Requirement

    probe, remedy = run.probe(), "pip install --force-reinstall torch torchvision, in one command"
    if "torch" not in probe:
        return not_used("torch does not work")
    requirements = [Requirement(line) for line in requires("torchvision") or ()]
    required = next((one.specifier for one in requirements if one.name == "torch"), None)
    if required is not None and not required.contains(probe["torch"], prereleases=True):
        return failed(f"{version('torchvision')} requires torch{required}, installed is {probe['torch']}", remedy)
    if "torchvision" not in probe:
        return failed(f"cannot be imported: {probe['torchvision_error']}", remedy)
    return ok(probe["torchvision"])


# --- hardware ------------------------------------------------------------------------------------------------------


def gpu(run: PlannedRun) -> Finding:
    """Torch can use a GPU; otherwise why not."""
    if run.config.device == "cpu":
        return not_used("device=cpu")
    probe = run.probe()
    if "torch" not in probe:
        return not_used("torch does not work")
    device = run.config.device
    if device == "mps":
        return _mps(probe)
    if "gpu" in probe:
        return _usable_gpu(probe, device)
    report = failed if device.startswith("cuda") else warning
    gpus, driver_error = _gpus_of_driver()
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hidden = f"{gpus}, hidden by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
        return report(hidden, "unset CUDA_VISIBLE_DEVICES, or set device=cpu")
    if gpus and not probe["cuda"]:
        remedy = "pip uninstall torch torchvision; pip install torch torchvision (as pytorch.org/get-started says)"
        return failed(f"{gpus}; torch is a CPU build and cannot use it", remedy)
    if gpus:
        reason = probe.get("gpu_error", "unknown reason")
        remedy = "update the NVIDIA driver, or install a torch for an older CUDA (pytorch.org/get-started)"
        return failed(f"{gpus}; torch, built for CUDA {probe['cuda']}, cannot use it: {reason}", remedy)
    if driver_error:
        return report(f"nvidia-smi: {driver_error}", "reload the NVIDIA driver, restart the machine, or set device=cpu")
    if device.startswith("cuda"):
        return failed(f"no GPU, but device={device}", "device=auto trains on the CPU; on a cluster, request a GPU")
    return ok(
        f"no GPU{' of NVIDIA (device=mps uses that of Apple)' if probe.get('mps') else ''}: runs train on the CPU"
    )


def _mps(probe: dict[str, Any]) -> Finding:
    if not probe.get("mps"):
        return failed("no MPS device, but device=mps", "use a Mac with Apple silicon, or set device=auto")
    return ok("MPS, on which Esper is untested: float32, nothing compiled or captured")


def _usable_gpu(probe: dict[str, Any], device: str) -> Finding:
    free, total, num_gpus = probe.get("free_bytes", 0), probe.get("total_bytes", 0), probe["num_gpus"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    index = int(device.partition(":")[2] or 0)
    if index >= num_gpus:
        remedy = "CUDA_VISIBLE_DEVICES says which GPUs a process sees; it numbers them from 0"
        return failed(f"{num_gpus} × {probe['gpu']}{shown}, but device={device}", remedy)
    used = f"{num_gpus} × {probe['gpu']}{shown}; cuda:{index}" if num_gpus > 1 else f"{probe['gpu']}{shown}"
    found = f"{used}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if "gpu_error" in probe:
        return failed(f"{found}; computing on it fails: {probe['gpu_error']}", "install a torch that supports this GPU")
    if free < _LOW_GPU_BYTES:
        return warning(found, "see nvidia-smi for its processes, or select another GPU with device=cuda:N")
    return ok(found)


def _gpus_of_driver() -> tuple[str, str]:
    """The GPUs as the NVIDIA driver lists them, and its error message; empty if none."""
    if shutil.which("nvidia-smi") is None:
        return "", ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, check=False, timeout=_SMI_TIMEOUT_S, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        return "", type(error).__name__
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        return "", " ".join((process.stdout + process.stderr).split())[:200] or "no GPU"
    name, _, driver = lines[0].partition(", ")
    return f"{f'{len(lines)} × ' if len(lines) > 1 else ''}{name} (driver {driver})", ""


def cores(run: PlannedRun) -> Finding:
    """Torch's threads and the loader's workers match the cores of this process."""
    allowed, num_workers = num_cores(), run.config.dataset.num_workers
    probe, omp = run.probe(), os.environ.get("OMP_NUM_THREADS")
    num_threads = probe.get("num_threads", allowed)
    found = f"{allowed} for this process, {num_threads} torch threads{f' (OMP_NUM_THREADS={omp})' if omp else ''}"
    if num_threads > allowed:
        return warning(f"{found}: oversubscribed", f"export OMP_NUM_THREADS={allowed}")
    if omp and 2 * num_threads < allowed and "gpu" not in probe:
        return warning(f"{found}: the other cores stay idle", "unset OMP_NUM_THREADS")
    if _streams(run) and num_workers > allowed:
        return warning(f"{found}; dataset.num_workers={num_workers}", f"set dataset.num_workers={allowed}")
    return ok(found)


def memory() -> Finding:
    """Main memory is available, also within the container's limit."""
    import psutil

    machine = psutil.virtual_memory()
    available, total = machine.available, machine.total
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}") or "" for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        available, total = min(available, int(limit) - int(used)), min(total, int(limit))
    found = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if available < _LOW_MEMORY_BYTES:
        return warning(found, "stop other processes, or request more memory; loading a dataset takes 1 to 2 GiB")
    return ok(found)


def _streams(run: PlannedRun) -> bool:
    from esper.configs.dataset import DATASETS

    data = run.config.dataset
    return DATASETS[data.name].has_files and data.storage != "memory"


def open_files() -> Finding:
    """The limit of open files is high enough."""
    try:
        import resource
    except ImportError:
        return not_used("no limit on this system")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok("unlimited")
    if soft < _LOW_OPEN_FILES:
        return warning(f"at most {soft} per process", f"ulimit -n {4 * _LOW_OPEN_FILES}, before esper-train")
    return ok(f"at most {soft} per process")


def compiler(run: PlannedRun) -> Finding:
    """torch.compile has a C++ compiler and Python's headers."""
    if not run.config.compile_model:
        return not_used("compile_model=false")
    names = (os.environ.get("CXX"), "g++", "clang++")
    found = next((path for name in names if name and (path := shutil.which(name))), "")
    if not found:
        return failed("no C++ compiler, which torch.compile requires", "install g++ (module load gcc), or set CXX")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return failed(f"{found}, but no Python.h", "install Python's headers (python3-dev), or compile_model=false")
    return ok(found)


# --- environment variables ----------------------------------------------------------------------------------------


def environment(run: PlannedRun) -> Finding:
    """Environment variables are spelt correctly and read by Esper."""
    from esper.configs.rank_env import rank_env
    from esper.errors import ConfigError
    from esper.tracking import unused_variables  # not its module: threads that import both ways deadlock

    try:
        rank = rank_env()
    except ConfigError as error:
        return failed_with(str(error))
    problems = list(_misspelt())
    if unused := unused_variables(run.config.tracking, experiment_name=run.config.experiment_name):
        problems.append((f"set but not used: {unused}", "use the setting in brackets, or unset it"))
    if problems:
        return warning("; ".join(found for found, _ in problems), "; ".join(remedy for _, remedy in problems))
    known = [name for name in _VARIABLES if name in os.environ]
    found = ", ".join(known) + " set" if known else "no misspelt variables"
    return ok(f"rank {rank.rank} of {rank.size}; {found}" if rank.size > 1 else found)


def _misspelt() -> Iterator[tuple[str, str]]:
    mlflow = _mlflow_variables()
    for name in sorted(os.environ):
        if name.startswith("ESPER_") and name not in _VARIABLES and not name.startswith(_TEST_PREFIXES):
            near = difflib.get_close_matches(name, _VARIABLES, n=1)
            yield f"{name} is set but ignored", f"rename it to {near[0]}" if near else f"unset {name}"
        # Plug-ins of MLflow have variables of their own: report only close matches of MLflow's.
        if (
            name.startswith("MLFLOW_")
            and name not in mlflow
            and (near := difflib.get_close_matches(name, mlflow, n=1, cutoff=0.9))
        ):
            yield f"{name} is not a variable of MLflow", f"rename it to {near[0]}"


def _mlflow_variables() -> list[str]:
    """Names of the variables that MLflow reads, from its source, since importing it takes a second."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return []
    source = _read(str(Path(spec.origin).with_name("environment_variables.py"))) or ""
    return sorted(set(re.findall(r'"(_?MLFLOW_[A-Z0-9_]+)"', source)))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
