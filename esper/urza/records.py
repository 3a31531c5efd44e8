"""What the library knows of a blueprint: kernels that were characterised, and what past growth gained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from esper.urza.kernel import Shape

__all__ = ["BROKEN", "KernelRecord", "Outcome", "from_row", "to_row"]

BROKEN = ("crashed", "hung")
"""Kernel states for which a blueprint is quarantined: it took its process with it."""

_APART = {"kernel_id", "outcome_id", "measured_at", "recorded_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """A blueprint characterised at a site shape, on a device, with a version of torch.

    Attributes:
        blueprint_id: what it is.
        in_shape, out_shape: (C, H, W) of its input and output.
        batch_size: examples it was measured with.
        device: name of the processor.
        torch_version: of torch.
        status: ready, crashed, hung, too_large (memory) or unsound (failed a check).
        reason: why it is not ready; of a ready one, why it was not compiled.
        num_parameters, num_macs: its size; multiply-accumulates of one example.
        memory_bytes: what a training step keeps for it at this batch size: parameters, gradients and what the backward
            pass needs.
        forward_s, backward_s: medians of a pass of the batch.
        compile_s: time that torch.compile took; None: it was not compiled.
        compiled_forward_s, compiled_backward_s: medians after that.
    """

    blueprint_id: str
    in_shape: Shape
    out_shape: Shape
    batch_size: int
    device: str
    torch_version: str
    status: str
    reason: str = ""
    num_parameters: int | None = None
    num_macs: int | None = None
    memory_bytes: int | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    compile_s: float | None = None
    compiled_forward_s: float | None = None
    compiled_backward_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the judge of a run found a module to be worth; see `contracts.events.Judged` for the figures."""

    experiment_name: str
    run_name: str
    graft_id: int
    blueprint_id: str
    site: str
    in_shape: Shape | None
    out_shape: Shape | None
    epoch: int
    num_examples: int
    loss_off: float | None
    gain: float | None
    lower_bound: float | None
    confidence: float | None
    kept: bool
    added_parameters: int
    added_macs: int
    cost_macs: int
    cost_s: float


def to_row(record: KernelRecord | Outcome) -> dict[str, Any]:
    """A record as a row of its table."""
    row = dataclasses.asdict(record)
    for name in ("in_shape", "out_shape"):
        row[name] = "x".join(map(str, row[name])) if row[name] is not None else None
    return row


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record from a row of its table."""
    fields = {name: value for name, value in row.items() if name not in _APART}
    for name in ("in_shape", "out_shape"):
        fields[name] = tuple(map(int, row[name].split("x"))) if row[name] is not None else None
    return fields
