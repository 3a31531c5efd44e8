"""Build, check and measure a kernel on a device. For people and presets; decisions of a run never read it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from esper import urza
from esper.configs import StorageConfig
from esper.costs import count
from esper.errors import one_line
from esper.models import disable_inductor_layout_optimization, memory_format
from esper.tezzeret.build import build_kernel, check_kernel
from esper.urza import Shape

__all__ = ["Job", "measure", "set_compile_cache"]

_WARM_UP = 3
_PASSES = 20
_SECONDS = 2.0
"""Timing stops after so many seconds, but not before three passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A blueprint to characterise at a site's shape.

    Attributes:
        definition: JSON of a declared blueprint.
        in_shape, out_shape: of its input and output.
        batch_size: examples of a pass.
        compile: also measure it compiled.
    """

    blueprint_id: str
    definition: str | None = None
    in_shape: Shape
    out_shape: Shape
    batch_size: int = 128
    compile: bool = True


def measure(job: Job, *, device: torch.device, begin: Callable[[str], None]) -> dict[str, Any]:
    """Measure a kernel in float32, in the memory format of runs; returns the measured fields of a `KernelRecord`.

    Args:
        job: the kernel.
        device: where it runs.
        begin: called with the name of each phase when it begins.
    """
    begin("building")
    if job.definition is not None:
        urza.declare(job.definition)
    kernel = build_kernel(
        job.blueprint_id, in_shape=job.in_shape, out_shape=job.out_shape, init_seed=0, output_scale=1.0
    )
    kernel = kernel.to(device)
    order = memory_format(kernel, channels_last=len(job.in_shape) == 3, device=device)
    kernel = kernel.to(memory_format=order)
    x = torch.randn(job.batch_size, *job.in_shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.to(memory_format=order).requires_grad_()
    begin("checking")
    result = check_kernel(kernel, x, job.out_shape)
    if not result.is_open:
        return {"status": "unsound", "reason": f"fails its check: {', '.join(result.failed)}"}
    begin("measuring")
    cost = count(kernel, job.in_shape)
    forward_s, backward_s = _time_passes(kernel, x)
    measured = {
        "status": "ready",
        "reason": "",
        "num_parameters": cost.num_parameters,
        "num_macs": cost.num_macs,
        "memory_bytes": _memory_bytes(kernel, x),
        "forward_s": forward_s,
        "backward_s": backward_s,
    }
    if job.compile:
        begin("compiling")
        disable_inductor_layout_optimization(device)
        measured |= _compiled(kernel, x)
    return measured


def _compiled(kernel: nn.Module, x: Tensor) -> dict[str, Any]:
    """Measurements of the compiled kernel, or the reason why torch cannot compile it."""
    started = time.perf_counter()
    try:
        compiled = torch.compile(kernel)
        torch.autograd.backward(compiled(x).sum())
        _synchronize(x)
        compile_s = time.perf_counter() - started
        forward_s, backward_s = _time_passes(compiled, x)
    except Exception as error:  # compiler, toolchain and cache may raise anything
        return {"reason": f"not compiled: {one_line(error, max_length=300)}"}
    return {"compile_s": compile_s, "compiled_forward_s": forward_s, "compiled_backward_s": backward_s}


def _time_passes(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """Median seconds of the forward and the backward pass in train mode, after a warm-up."""
    forward, backward, spent = list[float](), list[float](), 0.0
    for index in range(_WARM_UP + _PASSES):
        x.grad = None
        _synchronize(x)
        started = time.perf_counter()
        output = run(x)
        _synchronize(x)
        between = time.perf_counter()
        torch.autograd.backward(output, torch.ones_like(output))
        _synchronize(x)
        ended = time.perf_counter()
        if index < _WARM_UP:
            continue
        forward.append(between - started)
        backward.append(ended - between)
        spent += ended - started
        if spent > _SECONDS and len(forward) >= 3:
            break
    return median(forward), median(backward)


def _memory_bytes(kernel: nn.Module, x: Tensor) -> int:
    """Memory of a training step: parameters, gradients and saved activations, without the input."""
    saved: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in kernel.parameters()} | {x.untyped_storage().data_ptr()}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        output = kernel(x)
    parameters = sum(p.numel() * p.element_size() for p in kernel.parameters())
    del output
    return 2 * parameters + sum(size for pointer, size in saved.items() if pointer not in own)


def _synchronize(x: Tensor) -> None:
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)


def set_compile_cache(config: StorageConfig) -> None:
    """Let torch.compile use the configured cache folder, in this process and its children."""
    if config.compile_cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(config.compile_cache_dir).absolute())
