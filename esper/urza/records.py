"""Records of the library: characterised kernels, and outcomes of past growth, which come from journals of runs."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from esper.errors import RunError, StoreError
from esper.files import Count, as_json, first_problem
from esper.tracking import read
from esper.urza.kernel import Shape

__all__ = ["BROKEN", "KernelRecord", "Outcome", "from_row", "read_outcomes", "to_row"]

BROKEN = ("crashed", "hung")
"""Kernel states that quarantine a blueprint: its worker process had to be replaced."""

_STATES = ("ready", *BROKEN, "too_large", "unsound")
_SHAPES = ("in_shape", "out_shape")
_COUNTS = ("batch_size", "graft_id", "epoch", "num_examples", "added_parameters", "cost_macs")
_OPTIONAL_COUNTS = ("num_parameters", "num_macs", "memory_bytes")
_TIMES = ("forward_s", "backward_s", "compile_s", "compiled_forward_s", "compiled_backward_s")
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


R = TypeVar("R", KernelRecord, Outcome)


def to_row(record: KernelRecord | Outcome) -> dict[str, Any]:
    """The columns of a record."""
    row = dataclasses.asdict(record)
    for name in _SHAPES:
        row[name] = "x".join(map(str, row[name])) if row[name] is not None else None
    return row


def from_row(kind: type[R], row: Mapping[str, Any], *, where: str) -> R:
    """The record in a row: SQLite keeps values of any type in any column.

    Raises:
        StoreError: something in it is of another type or out of range.
    """
    fields = {field.name: row[field.name] for field in dataclasses.fields(kind)}
    for name in _SHAPES:
        if isinstance(text := fields[name], str) and re.fullmatch(r"\d{1,9}(x\d{1,9})*", text, re.ASCII):
            fields[name] = [int(size) for size in text.split("x")]
    try:
        _row_schemas()[kind].validate_python(fields, strict=True)
    except ValidationError as error:
        raise StoreError(
            f"{where}: a row of {kind.__name__} is damaged: {first_problem(error)}; remove the row, or the file"
        ) from None
    return kind(**fields | {name: tuple(fields[name]) for name in _SHAPES if fields[name] is not None})


@functools.cache
def _row_schemas() -> dict[type, TypeAdapter[dict[str, Any]]]:
    instead: dict[str, Any] = {
        **dict.fromkeys(_COUNTS, Count),
        **dict.fromkeys(_OPTIONAL_COUNTS, Count | None),
        **dict.fromkeys(_TIMES, _Seconds | None),
        "status": Literal[_STATES],
    }
    return {kind: TypeAdapter(as_json(kind, **instead)) for kind in (KernelRecord, Outcome)}


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
