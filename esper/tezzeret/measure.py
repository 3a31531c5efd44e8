"""Build a kernel, check it, and measure what it costs where it runs: for people and presets, never for decisions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from esper import urza
from esper.costs import count
from esper.errors import one_line
from esper.models import disable_inductor_layout_optimization, memory_format
from esper.tezzeret.build import build_kernel, check_kernel
from esper.urza import Shape

__all__ = ["Job", "measure"]

_WARM_UP = 3
_PASSES = 20
_SECONDS = 2.0
"""Most seconds of timed passes; at least three are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A blueprint to characterise at a site's shape.

    Attributes:
        blueprint_id: what to build.
        definition: what a declared one is made of, in JSON.
        in_shape, out_shape: (C, H, W) of its input and output.
        batch_size: examples of a pass.
        compile: whether to measure it compiled as well.
    """

    blueprint_id: str
    definition: str | None = None
    in_shape: Shape
    out_shape: Shape
    batch_size: int = 128
    compile: bool = True


def measure(job: Job, *, device: torch.device, begin: Callable[[str], None]) -> dict[str, Any]:
    """The fields of a `KernelRecord` that say how a kernel is, as float32 in the memory format that runs have.

    Args:
        job: what to measure.
        device: where.
        begin: called with the name of each phase before it.
    """
    begin("building")
    if job.definition is not None:
        urza.declare(job.definition)
    kernel = build_kernel(
        job.blueprint_id, in_shape=job.in_shape, out_shape=job.out_shape, init_seed=0, output_scale=1.0
    )
    kernel = kernel.to(device)
    order = memory_format(kernel, channels_last=True, device=device)
    kernel = kernel.to(memory_format=order)
    x = torch.randn(job.batch_size, *job.in_shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.to(memory_format=order).requires_grad_()
    begin("checking")
    found = check_kernel(kernel, x, job.out_shape)
    if not found.is_open:
        return {"status": "unsound", "reason": f"fails its check: {', '.join(found.failed)}"}
    begin("measuring")
    cost = count(kernel, job.in_shape)
    forward_s, backward_s = _time_passes(kernel, x)
    measured = {
        "status": "ready",
        "reason": "",
        "num_parameters": cost.num_parameters,
        "num_macs": cost.num_macs,
        "memory_bytes": _kept_bytes(kernel, x),
        "forward_s": forward_s,
        "backward_s": backward_s,
    }
    if job.compile:
        begin("compiling")
        disable_inductor_layout_optimization(device)
        measured |= _compiled(kernel, x)
    return measured


def _compiled(kernel: nn.Module, x: Tensor) -> dict[str, Any]:
    """Figures of the compiled kernel; where torch cannot compile it, why."""
    started = time.perf_counter()
    try:
        compiled = torch.compile(kernel)
        torch.autograd.backward(compiled(x).sum())
        _synchronize(x)
        compile_s = time.perf_counter() - started
        forward_s, backward_s = _time_passes(compiled, x)
    except Exception as error:  # torch raises what the compiler, the toolchain and the cache raise
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


def _kept_bytes(kernel: nn.Module, x: Tensor) -> int:
    """Bytes that a training step keeps for the kernel: parameters, gradients, and what backward needs of them."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in kernel.parameters()} | {x.untyped_storage().data_ptr()}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with saved_tensors_hooks(keep, lambda saved: saved):
        output = kernel(x)
    parameters = sum(p.numel() * p.element_size() for p in kernel.parameters())
    del output
    return 2 * parameters + sum(size for pointer, size in kept.items() if pointer not in own)


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
