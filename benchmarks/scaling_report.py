"""Tables and goals of `scaling.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measuring import table, verdict

__all__ = ["goals", "tables"]

_GOALS = {
    ("resnet50", 224, 2): 0.97,
    ("resnet50", 224, 4): 0.97,
    ("resnet50", 224, 8): 0.95,
    ("resnet18", 32, 2): 0.92,
    ("resnet18", 32, 4): 0.92,
}
"""Efficiency at a fixed batch per rank, by model, image size and number of ranks."""
_GOAL_PAUSE_S = 2.0
_GIB = 2**30

Found = Sequence[dict[str, Any]]


def tables(cells: Found) -> str:
    """Speed and memory, then growths, then the status of each cell."""
    done = [cell for cell in cells if cell["status"] == "done"]
    speeds = [_speed(cell, arm) for cell in done if cell["kind"] != "growth" for arm in cell["images_per_s"]]
    growths = [_growth(cell, who, one) for cell, who, one in _growths(done)]
    ends = [{"cell": cell["name"], "status": cell["status"], "seconds": _seconds(cell.get("took_s"))} for cell in cells]
    return "\n\n".join(table(rows) for rows in (speeds, growths, ends))


def goals(cells: Found) -> list[str]:
    """The efficiency of each cell, then one line for each goal."""
    done = [cell for cell in cells if cell["status"] == "done"]
    lines, means = [], {}
    for cell in done:
        if cell["kind"] != "growth" and (ratio := cell["efficiency"].get("off")):
            lines.append(f"efficiency, {cell['name']}: {_ratio(ratio)}, late {_ratio(cell['efficiency'].get('late'))}")
            if cell["kind"] == "per rank":
                means[cell["model"], cell["image_size"], cell["ranks"]] = ratio["mean"]
    for where, goal in _GOALS.items():
        model, image_size, ranks = where
        met = means[where] >= goal if where in means else None
        lines.append(verdict(f"efficiency >= {goal} ({model}, {image_size} px, per rank, {ranks} ranks)", met))
    growths = [(one, who) for _, who, one in _growths(done)]
    pauses = [one["pause_s"] for one, _ in growths]
    lines.append(verdict(f"every pause <= {_GOAL_PAUSE_S:g} s", max(pauses) <= _GOAL_PAUSE_S if pauses else None))
    together = [one for one, who in growths if who == "together"]
    lines.append(verdict("hashes always equal", all(map(_are_equal, together)) if together else None))
    return lines


def _growths(done: Found) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    for cell in done:
        for who, growths in cell.get("growths", {}).items():
            for one in growths:
                yield cell, who, one


def _speed(cell: dict[str, Any], arm: str) -> dict[str, object]:
    speeds, memory = cell["images_per_s"][arm], cell["memory"][arm]
    to_off = cell["default_to_off"] if arm == "default" else {}
    return {
        "network": f"{cell['model']}, {cell['image_size']} px",
        "batch": f"{cell['batch_size']} {'a rank' if cell['kind'] == 'per rank' else 'in all'}",
        "run": arm,
        "1 rank, images/s": _median(speeds.get("alone")),
        "ranks": cell["ranks"],
        "all, images/s": _median(speeds.get("together")),
        "efficiency (95 %)": _ratio(cell["efficiency"].get(arm)),
        "off / late": _ratio(cell["off_to_late"]) if arm == "late" else None,
        "1 rank, its share / all of the batch": _ratio(cell["share_to_alone"]) if arm == "off" else None,
        "default / off, 1 rank": _ratio(to_off.get("alone")),
        "default / off, all": _ratio(to_off.get("together")),
        "1 rank, GiB": _gib(memory.get("alone")),
        "each of all, GiB": _gib(memory.get("together")),
        "n": max(map(len, speeds.values())),
    }


def _growth(cell: dict[str, Any], who: str, one: dict[str, Any]) -> dict[str, object]:
    return {
        "network": f"{cell['model']}, {cell['image_size']} px, {cell['batch_size']} a rank",
        "ranks": cell["ranks"] if who == "together" else 1,
        "module": f"{one['blueprint_id']} at {one['site']}",
        "scoring (images)": f"{one['scoring_s']:.3f} ({one['num_scored']})",
        "deciding": _seconds(one["deciding_s"]),
        "broadcast": _seconds(one["broadcast_s"]),
        "surgery": _seconds(one["surgery_s"]),
        "agreeing": _seconds(one["agreeing_s"]),
        "eager steps": _seconds(one["eager_s"]),
        "capture": _seconds(one["capture_s"]),
        "pause, s": _seconds(one["pause_s"]),
        "time lost, s": _seconds(one["lost_s"]),
        "hashes": "equal" if _are_equal(one) else "DIFFERENT",
        "finite": "yes" if one["is_finite"] else "NO",
        "GiB": _gib(cell["memory"]["growing"][who]),
    }


def _are_equal(one: dict[str, Any]) -> bool:
    return len(set(one["hashes"])) == len(set(one["later_hashes"])) == 1


def _median(values: list[float] | None) -> str | None:
    return f"{statistics.median(values):,.0f}" if values else None


def _ratio(ratio: dict[str, Any] | None) -> str | None:
    if ratio is None:
        return None
    return f"{ratio['mean']:.3f}" + ("" if ratio["low"] is None else f" ({ratio['low']:.3f} to {ratio['high']:.3f})")


def _gib(everyone: list[dict[str, int] | None] | None) -> str | None:
    """Allocated / reserved, maximum over ranks."""
    found = [one for one in everyone or [] if one]
    if not found:
        return None
    peaks = (max(one[key] for one in found) / _GIB for key in ("allocated_bytes", "reserved_bytes"))
    return " / ".join(f"{peak:.2f}" for peak in peaks)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
