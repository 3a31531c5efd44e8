"""Devices: which one a setting selects among those of this machine, and what differs between CPU, CUDA and MPS.

Nobody has tested Esper on MPS, Apple's GPUs: what is written for it here follows PyTorch's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from esper.errors import ConfigError

__all__ = [
    "Machine",
    "choose",
    "fork_rng",
    "hints",
    "in_double",
    "machine",
    "memory_bytes",
    "select_device",
    "sum_dtype",
]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_WITHOUT_DOUBLE = ("mps",)
"""Types of devices that have no float64."""
_RANKS_COMMAND = "torchrun --nproc-per-node {} --no-python esper-train …"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The devices that torch finds on this machine.

    Attributes:
        num_gpus: usable CUDA devices.
        has_mps: whether Apple's GPU is usable.
        visible: the variable CUDA_VISIBLE_DEVICES; None: not set.
        is_cuda_build: whether this torch was built for CUDA (or ROCm).
    """

    num_gpus: int = 0
    has_mps: bool = False
    visible: str | None = None
    is_cuda_build: bool = True

    @property
    def devices(self) -> list[str]:
        """What `device` may be here, beside auto."""
        gpus = ["cuda", *(f"cuda:{index}" for index in range(self.num_gpus))] if self.num_gpus else []
        return ["cpu", *gpus, *(["mps"] if self.has_mps else [])]


def machine() -> Machine:
    """This machine."""
    return Machine(
        num_gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        has_mps=torch.backends.mps.is_available(),
        visible=os.environ.get(_VISIBLE),
        is_cuda_build=torch.version.cuda is not None or torch.version.hip is not None,
    )


def select_device(name: str, *, num_ranks: int = 1) -> torch.device:
    """`choose` on this machine."""
    return choose(name, machine(), num_ranks=num_ranks)


def choose(name: str, here: Machine, *, num_ranks: int = 1) -> torch.device:
    """The device that a setting selects; auto is CUDA if there is any, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        here: the machine.
        num_ranks: of the run; each has a GPU of its own.

    Raises:
        ConfigError: it is not there, or not for several ranks.
    """
    if num_ranks > 1 and name.startswith("cuda:"):
        raise ConfigError(
            f"device={name}: {num_ranks} ranks train, each on a GPU of its own; use device=cuda, and choose the GPUs "
            f"with {_VISIBLE}"
        )
    if num_ranks > 1 and name == "mps":
        raise ConfigError(f"device=mps: a single process trains there, not {num_ranks} ranks; use device=cpu")
    if name == "auto":
        name = "cuda" if here.num_gpus else "cpu"
    if name not in here.devices:
        raise ConfigError(f"device={name}: {_missing(name, here)}; there are auto, {_listed(here)}")
    return torch.device(name)


def _missing(name: str, here: Machine) -> str:
    """Why a device is not there."""
    if name == "mps":
        return "this machine has no usable MPS device, which takes a Mac with Apple silicon"
    if not name.startswith("cuda"):
        return "no such device"
    if here.num_gpus:
        shown = f", as {_VISIBLE}={here.visible!r} shows only these, numbered from 0" if here.visible else ""
        return f"this machine has no such CUDA device{shown}"
    if not here.is_cuda_build:
        return "this machine has no usable CUDA device, as torch is a CPU build"
    hidden = "" if here.visible is None else f", as {_VISIBLE}={here.visible!r} shows none: unset it"
    return f"this machine has no usable CUDA device{hidden}"


def _listed(here: Machine) -> str:
    last = f"cuda:{here.num_gpus - 1}"
    ends = [name for name in here.devices if not name.startswith("cuda:") or name in ("cuda:0", last)]
    return ", ".join(ends).replace(f", {last}", f" to {last}" if here.num_gpus > 1 else f", {last}")


def hints(name: str, device: torch.device, here: Machine, *, num_ranks: int = 1) -> Iterator[str]:
    """What to tell at the start of a run about devices that it does not use, or about what its device lacks.

    Args:
        name: the setting.
        device: what `choose` made of it.
        here, num_ranks: as there.
    """
    if device.type == "mps":
        yield (
            "device=mps is untested: it trains in float32, metrics are summed in float32, and the step is neither "
            "compiled nor captured; set PYTORCH_ENABLE_MPS_FALLBACK=1 if an operation is missing there"
        )
    elif device.type == "cuda" and num_ranks == 1 and here.num_gpus > 1:
        yield (
            f"trains on one of {here.num_gpus} GPUs, cuda:{device.index or 0}; on another: device=cuda:N; on all: "
            f"{_RANKS_COMMAND.format(here.num_gpus)}; a sweep on all, a run on each: hydra/launcher=local"
        )
    elif name == "auto" and device.type == "cpu" and here.has_mps:
        yield "trains on the CPU; device=mps would use this machine's GPU"
    elif name == "auto" and device.type == "cpu" and here.is_cuda_build and here.visible is not None:
        yield f"trains on the CPU: {_VISIBLE}={here.visible!r} shows no GPU"


# --- what differs -----------------------------------------------------------------------------------------------------


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type for sums over many steps or examples: float64, where the device has it."""
    return torch.float32 if device.type in _WITHOUT_DOUBLE else torch.float64


def in_double(tensor: Tensor) -> Tensor:
    """As float64; on the CPU if its device lacks that."""
    return (tensor.cpu() if tensor.device.type in _WITHOUT_DOUBLE else tensor).double()


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Context manager: put back the random states of the CPU and a device at the end."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def memory_bytes(device: torch.device) -> int:
    """Memory that this process has used most on a GPU, or uses now on a CPU or with MPS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)
