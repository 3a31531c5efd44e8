"""Build a blueprint for a site, check the kernel on a real batch, count what it adds."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from esper import urza
from esper.contracts.lifecycle import GateResult, gate
from esper.costs import Cost, count
from esper.urza import Kernel, Shape
from esper.urza.copied import CopiedBlocks

__all__ = ["build_kernel", "check_kernel", "kernel_cost"]


def build_kernel(
    blueprint_id: str, *, in_shape: Shape, out_shape: Shape, init_seed: int, output_scale: float
) -> Kernel:
    """Build a kernel whose initial weights depend on `init_seed` alone; the global generator does not change.

    Args:
        blueprint_id: what to build.
        in_shape, out_shape: of its input and output.
        init_seed: random seed of its weights.
        output_scale: initial value of its output scale.

    Raises:
        ConfigError: there is no such blueprint.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(init_seed)  # torch.manual_seed would reseed CUDA's generators too
        kernel = urza.get(blueprint_id).build(in_shape, out_shape)
    if kernel.output_scale is not None:
        nn.init.constant_(kernel.output_scale, output_scale)
    return kernel


def check_kernel(kernel: Kernel, x: Tensor, out_shape: Shape, *args: Any, **kwargs: Any) -> GateResult:
    """Check a copy of a kernel on a real batch; the kernel and the global generator do not change.

    Checks: output shape, dtype, finite values, and a gradient in every parameter within two steps (at output scale 0,
    only the scale has one in the first). Not the gradients of copies: they train as their sources do, whose units may
    be dead.

    Args:
        x: its input (N, …).
        out_shape: required of its output, without N.
        args, kwargs: see `Kernel.branch`.
    """
    trial = copy.deepcopy(kernel).train()
    with torch.enable_grad():
        output = trial.branch(x, *args, **kwargs)
        checks: dict[str, bool | None] = {
            "shape": tuple(output.shape[1:]) == tuple(out_shape),
            "dtype": output.dtype == x.dtype,
            "finite": bool(output.isfinite().all()),
        }
        if isinstance(kernel, CopiedBlocks):
            return gate(checks)
        is_sound = all(checks.values())
        checks["gradient_in_every_parameter"] = None
        if is_sound:
            # A random direction: a norm, which subtracts the mean, hides a constant one.
            direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
            reached = [_step_gradients(trial, x, direction), _step_gradients(trial, x, direction)]
            checks["gradient_in_every_parameter"] = all(map(any, zip(*reached, strict=True)))
    return gate(checks)


def _step_gradients(trial: Kernel, x: Tensor, direction: Tensor) -> list[bool]:
    """Take a sign-gradient step; returns whether each parameter, in order, got a finite gradient that is not 0."""
    parameters = list(trial.parameters())
    gradients = torch.autograd.grad((trial(x) * direction).mean(), parameters, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                p.sub_(g.sgn(), alpha=0.01)  # also of complex weights
    return [g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in gradients]


@cache
def kernel_cost(blueprint_id: str, in_shape: Shape, out_shape: Shape) -> Cost:
    """Parameters and MACs that a blueprint adds at a site, counted on the meta device: no memory, no random numbers.

    Raises:
        ConfigError: there is no such blueprint.
    """
    with torch.device("meta"):
        return count(urza.get(blueprint_id).build(in_shape, out_shape), in_shape)
