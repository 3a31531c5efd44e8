"""Records of the library: characterised kernels, and outcomes of past growth, which come from journals of runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.errors import RunError
from esper.tracking import read
from esper.urza.kernel import Shape

__all__ = ["BROKEN", "KernelRecord", "Outcome", "from_row", "read_outcomes", "to_row"]

BROKEN = ("crashed", "hung")
"""Kernel states that quarantine a blueprint: its worker process had to be replaced."""

_SHAPES = ("in_shape", "out_shape")
_GENERATED_COLUMNS = {"kernel_id", "outcome_id", "measured_at", "recorded_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """Measurements of a blueprint at a site's shapes, on one device and version of torch.

    Attributes:
        in_shape, out_shape: of its input and output.
        batch_size: examples of a timed pass.
        device: name of the CPU or GPU.
        status: ready, crashed, hung, too_large (memory) or unsound (failed a check).
        reason: why it is not ready, or if ready, why it was not compiled.
        num_macs: multiply-accumulates of one example.
        memory_bytes: memory of a training step at this batch size: parameters, gradients and saved activations.
        forward_s, backward_s: median time of a pass.
        compile_s: time of torch.compile; None: not compiled.
        compiled_forward_s, compiled_backward_s: median time of a pass of the compiled kernel.
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
    """A judged module of a run; for the fields see `contracts.events.Judged`."""

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
    """The columns of a record."""
    row = dataclasses.asdict(record)
    for name in _SHAPES:
        row[name] = "x".join(map(str, row[name])) if row[name] is not None else None
    return row


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, from its columns."""
    fields = {name: value for name, value in row.items() if name not in _GENERATED_COLUMNS}
    for name in _SHAPES:
        fields[name] = tuple(map(int, row[name].split("x"))) if row[name] is not None else None
    return fields


def read_outcomes(run_dir: Path) -> list[Outcome]:
    """The judged modules of a run, in order, from its journal.

    Raises:
        RunError: the folder holds no run, or its journal is damaged or of another version.
    """
    journal = run_dir / "journal.jsonl"
    if not journal.is_file():
        raise RunError(f"{run_dir} holds no run: no journal.jsonl; give a folder that esper-train made")
    run: dict[str, Any] = {}
    shapes: dict[str, dict[str, Shape]] = {}
    outcomes = []
    try:
        for event in read(journal):
            if event["kind"] == "run_started":
                run = {name: event[name] for name in ("experiment_name", "run_name")}
            elif event["kind"] == "signals":
                shapes |= {s["site"]: {name: tuple(s[name]) for name in _SHAPES} for s in event["signals"]}
            elif event["kind"] == "judgement":
                known = {**run, **(shapes.get(event["site"]) or dict.fromkeys(_SHAPES))}
                names = {field.name for field in dataclasses.fields(Outcome)} - known.keys()
                outcomes.append(Outcome(**known, **{name: event[name] for name in names}))
    except (KeyError, TypeError) as error:
        raise RunError(f"{journal}: events of another version of Esper ({error}); leave that run out") from None
    return outcomes
