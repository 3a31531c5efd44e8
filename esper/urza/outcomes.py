"""From a run's journal to what its modules gained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esper.errors import RunError
from esper.tracking import read
from esper.urza.kernel import Shape
from esper.urza.records import Outcome

__all__ = ["read_outcomes"]

_SAME = (
    "graft_id",
    "blueprint_id",
    "site",
    "epoch",
    "num_examples",
    "loss_off",
    "gain",
    "lower_bound",
    "confidence",
    "kept",
    "added_parameters",
    "added_macs",
    "cost_macs",
    "cost_s",
)


def read_outcomes(run_dir: Path) -> list[Outcome]:
    """The judged modules of a run, in order.

    Raises:
        RunError: it is no run, or its journal is damaged or of another version.
    """
    journal = run_dir / "journal.jsonl"
    if not journal.is_file():
        raise RunError(f"{run_dir} is no run: it has no journal.jsonl; give a folder that esper-train made")
    run: dict[str, Any] = {}
    shapes: dict[str, tuple[Shape, Shape]] = {}
    found = []
    try:
        for event in read(journal):
            if event["kind"] == "run_started":
                run = {name: event[name] for name in ("experiment_name", "run_name")}
            elif event["kind"] == "signals":
                shapes |= {s["site"]: (tuple(s["in_shape"]), tuple(s["out_shape"])) for s in event["signals"]}
            elif event["kind"] == "judgement":
                in_shape, out_shape = shapes.get(event["site"], (None, None))
                figures = {name: event[name] for name in _SAME}
                found.append(Outcome(**run, **figures, in_shape=in_shape, out_shape=out_shape))
    except (KeyError, TypeError) as error:
        raise RunError(f"{journal}: events of another version of Esper ({error}); leave that run out") from None
    return found
