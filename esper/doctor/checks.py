"""What `esper doctor` checks of this machine: versions, torch, GPU, cores, memory, the user's environment."""

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

from esper.doctor.finding import Finding, Subject, failed, not_used, ok, warning

__all__ = [
    "compiler",
    "cores",
    "environment",
    "gpu",
    "memory",
    "open_files",
    "packages",
    "python",
    "shared_memory",
    "torch",
    "torchvision",
]

_VARIABLES = ("ESPER_REDIS_PASSWORD", "ESPER_REDIS_URL", "ESPER_REDIS_USERNAME")
_FOR_TESTS = ("ESPER_REQUIRE_", "ESPER_TEST_")
_EXTRAS = ("wandb", "timm", "postgres", "embedded-redis")
_GIB = 2**30
_LITTLE_GPU_BYTES, _LITTLE_BYTES, _LITTLE_SHARED_BYTES = 2 * _GIB, 2 * _GIB, _GIB
_FEW_FILES = 1024
_SMI_TIMEOUT_S = 10
_INSTALL = "pip install --upgrade esper-train, in an environment of its own"


# --- versions -----------------------------------------------------------------------------------------------------


def python() -> Finding:
    """The interpreter against what Esper needs."""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} in {sys.prefix}"
    try:
        wanted = metadata("esper-train")["Requires-Python"]
    except PackageNotFoundError:
        return warning(f"{found}; Esper itself is not installed", "pip install -e . in the checkout")
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return failed(f"{found}; Esper needs {wanted}", "make an environment with a Python of that version")
    return ok(found)


def packages() -> Finding:
    """Installed versions against the ranges that Esper works with."""
    from packaging.requirements import Requirement

    wrong, num_right = [], 0
    try:
        needed = [Requirement(one) for one in requires("esper-train") or ()]
    except PackageNotFoundError:
        return warning("Esper itself is not installed, nor its ranges known", "pip install -e . in the checkout")
    for one in needed:
        is_extra = one.marker is not None and not one.marker.evaluate({"extra": ""})
        if is_extra and not any(one.marker.evaluate({"extra": extra}) for extra in _EXTRAS if one.marker):
            continue
        try:
            installed = version(one.name)
        except PackageNotFoundError:
            wrong += [] if is_extra else [f"{one.name} is missing"]
            continue
        if one.specifier.contains(installed, prereleases=True):
            num_right += 1
        else:
            wrong.append(f"{one.name} is {installed}, needed is {one.specifier}")
    if wrong:
        names = " ".join(
            f"'{one.name}{one.specifier}'" for one in needed if any(w.split()[0] == one.name for w in wrong)
        )
        return failed("; ".join(wrong), f"pip install {names}")
    return ok(f"{num_right} in the ranges that Esper works with")


def torch(subject: Subject) -> Finding:
    """Whether torch can be imported."""
    probe = subject.probe()
    if "torch" not in probe:
        return failed(f"cannot be imported: {probe['torch_error']}", "pip install --force-reinstall torch torchvision")
    return ok(f"{probe['torch']}, {'built for CUDA ' + probe['cuda'] if probe['cuda'] else 'a build for CPUs'}")


def torchvision(subject: Subject) -> Finding:
    """Whether torchvision is the one of this torch."""
    from packaging.requirements import Requirement

    probe, remedy = subject.probe(), "pip install --force-reinstall torch torchvision, in one command"
    if "torch" not in probe:
        return not_used("torch does not work")
    needed = [Requirement(one) for one in requires("torchvision") or ()]
    wanted = next((one.specifier for one in needed if one.name == "torch"), None)
    if wanted is not None and not wanted.contains(probe["torch"], prereleases=True):
        return failed(f"{version('torchvision')} belongs to torch{wanted}, not to {probe['torch']}", remedy)
    if "torchvision" not in probe:
        return failed(f"cannot be imported: {probe['torchvision_error']}", remedy)
    return ok(probe["torchvision"])


# --- what a run computes with -------------------------------------------------------------------------------------


def gpu(subject: Subject) -> Finding:
    """The GPU that a run would use; or why torch does not see the one that is there."""
    if subject.config.device == "cpu":
        return not_used("device=cpu")
    probe = subject.probe()
    if "torch" not in probe:
        return not_used("torch does not work")
    if "gpu" in probe:
        return _usable_gpu(probe)
    report = failed if subject.config.device == "cuda" else warning
    cards, complaint = _cards()
    if cards and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hidden = f"{cards}, hidden by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
        return report(hidden, "unset CUDA_VISIBLE_DEVICES, or say device=cpu")
    if cards and not probe["cuda"]:
        remedy = "pip uninstall torch torchvision; pip install torch torchvision (as pytorch.org/get-started says)"
        return failed(f"{cards}; torch is a build for CPUs and cannot use it", remedy)
    if cards:
        why = probe.get("gpu_error", "it does not say why")
        remedy = "update the NVIDIA driver, or install a torch for an older CUDA (pytorch.org/get-started)"
        return failed(f"{cards}; torch, built for CUDA {probe['cuda']}, cannot use it: {why}", remedy)
    if complaint:
        return report(f"nvidia-smi: {complaint}", "load the NVIDIA driver anew, or restart the machine; or device=cpu")
    if subject.config.device == "cuda":
        return failed("none, and device=cuda", "device=auto trains on the CPU; on a cluster, ask for a GPU")
    return ok("none: runs train on the CPU")


def _usable_gpu(probe: dict[str, object]) -> Finding:
    free, total = float(str(probe.get("free_bytes", 0))), float(str(probe.get("total_bytes", 0)))
    number = f"{probe['num_gpus']} × " if probe["num_gpus"] != 1 else ""
    found = f"{number}{probe['gpu']}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if "gpu_error" in probe:
        return failed(f"{found}; does not compute: {probe['gpu_error']}", "install a torch that supports this GPU")
    if free < _LITTLE_GPU_BYTES:
        return warning(found, "nvidia-smi shows who holds the memory; or choose a GPU by CUDA_VISIBLE_DEVICES")
    return ok(found)


def _cards() -> tuple[str, str]:
    """The driver's names of the GPUs, and what it complains of."""
    if shutil.which("nvidia-smi") is None:
        return "", ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=False, timeout=_SMI_TIMEOUT_S, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"{type(error).__name__}"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return "", " ".join((done.stdout + done.stderr).split())[:200] or "no GPU"
    name, _, driver = lines[0].partition(", ")
    return f"{f'{len(lines)} × ' if len(lines) > 1 else ''}{name} (driver {driver})", ""


def cores(subject: Subject) -> Finding:
    """The cores that this process may use, against the threads and processes that a run would start."""
    number, data = _num_cores(), subject.config.dataset
    probe, asked = subject.probe(), os.environ.get("OMP_NUM_THREADS")
    num_threads = probe.get("num_threads", number)
    found = f"{number} for this process, {num_threads} threads of torch{f' (OMP_NUM_THREADS={asked})' if asked else ''}"
    if num_threads > number:
        return warning(f"{found}: they wait for each other", f"export OMP_NUM_THREADS={number}")
    if asked and 2 * num_threads < number and "gpu" not in probe:
        return warning(f"{found}: the other cores stay idle", "unset OMP_NUM_THREADS")
    if _streams(subject) and data.num_workers > number:
        return warning(
            f"{found}; dataset.num_workers={data.num_workers} decode images", f"set dataset.num_workers={number}"
        )
    return ok(found)


def _num_cores() -> int:
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's share of the time; torch does not know of it.
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return number if quota == "max" else max(1, min(number, round(int(quota) / int(period or 100_000))))


def memory() -> Finding:
    """Main memory that is left, here and in the container."""
    import psutil

    machine = psutil.virtual_memory()
    left, total = machine.available, machine.total
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}") or "" for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        left, total = min(left, int(limit) - int(used)), min(total, int(limit))
    found = f"{left / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if left < _LITTLE_BYTES:
        return warning(found, "end what holds it, or ask for more; loading a dataset takes 1 to 2 GiB")
    return ok(found)


def shared_memory(subject: Subject) -> Finding:
    """What the processes that decode images hand them over in."""
    if not Path("/dev/shm").is_dir():
        return not_used("this system has no /dev/shm")
    usage = shutil.disk_usage("/dev/shm")
    found = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free in /dev/shm"
    if not _streams(subject) or not subject.config.dataset.num_workers:
        return not_used(f"{found}; no images are streamed")
    if usage.free < _LITTLE_SHARED_BYTES:
        return warning(found, "docker run --shm-size=8g, or dataset.num_workers=0")
    return ok(found)


def _streams(subject: Subject) -> bool:
    data = subject.config.dataset
    return data.name in ("imagefolder", "imagenet") and data.storage != "memory"


def open_files() -> Finding:
    """How many files a process may open."""
    try:
        import resource
    except ImportError:
        return not_used("this system has no such limit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok("any number a process")
    if soft < _FEW_FILES:
        return warning(f"at most {soft} a process", f"ulimit -n {4 * _FEW_FILES}, before esper-train")
    return ok(f"at most {soft} a process")


def compiler(subject: Subject) -> Finding:
    """What torch.compile needs besides torch."""
    if not subject.config.compile_model:
        return not_used("compile_model=false")
    found = next((path for one in (os.environ.get("CXX"), "g++", "clang++") if one and (path := shutil.which(one))), "")
    if not found:
        return failed("no C++ compiler, which torch.compile calls", "install g++ (module load gcc), or set CXX")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return failed(f"{found}, but no Python.h", "install Python's headers (python3-dev), or compile_model=false")
    return ok(found)


# --- the user's environment ---------------------------------------------------------------------------------------


def environment(subject: Subject) -> Finding:
    """Variables that are misspelt, or that Esper does not read."""
    from esper.configs.place import place
    from esper.errors import ConfigError

    try:
        here = place()
    except ConfigError as error:
        found, _, remedy = str(error).rpartition("; ")
        return failed(found, remedy)
    problems = [*_misspelt()]
    tracking = subject.config.tracking
    if "MLFLOW_TRACKING_URI" in os.environ and tracking.uri is None and tracking.name in ("mlflow", "both"):
        problems.append(("MLFLOW_TRACKING_URI is set, and not read", "set tracking.uri as well"))
    if problems:
        return warning("; ".join(found for found, _ in problems), "; ".join(remedy for _, remedy in problems))
    known = [name for name in _VARIABLES if name in os.environ]
    found = ", ".join(known) + " set" if known else "nothing misspelt"
    return ok(f"process {here.rank} of {here.size}; {found}" if here.size > 1 else found)


def _misspelt() -> Iterator[tuple[str, str]]:
    mlflow = _mlflow_variables()
    for name in sorted(os.environ):
        if name.startswith("ESPER_") and name not in _VARIABLES and not name.startswith(_FOR_TESTS):
            near = difflib.get_close_matches(name, _VARIABLES, n=1)
            yield f"{name} is set, and not read", f"call it {near[0]}" if near else f"unset {name}"
        # Plug-ins of MLflow read their own: only what looks like one of its own is worth a word.
        if (
            name.startswith("MLFLOW_")
            and name not in mlflow
            and (near := difflib.get_close_matches(name, mlflow, n=1, cutoff=0.9))
        ):
            yield f"{name} is not one of MLflow's", f"call it {near[0]}"


def _mlflow_variables() -> list[str]:
    """Names of the variables that MLflow reads, from its text: importing it takes a second."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return []
    text = _read(str(Path(spec.origin).with_name("environment_variables.py"))) or ""
    return sorted(set(re.findall(r'"(_?MLFLOW_[A-Z0-9_]+)"', text)))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
