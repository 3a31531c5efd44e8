"""The arms of a fair comparison."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["ARMS", "ComparisonConfig", "dependency_level"]

# Required policy of each arm: "" allows any, None means no growth.
ARMS: dict[str, str | None] = {
    "grown": "",
    "static": None,
    "static_flops": None,
    "final": "replay",
    "final_flops": "replay",
    "final_seconds": "replay",
    "scheduled": "schedule",
    "random": "random",
}

# An arm can begin once the arms of lower levels have finished: grown, and final_flops for final_seconds.
_DEPENDENCY_LEVELS = {"static_flops": 1, "final": 1, "final_flops": 1, "final_seconds": 2}


@dataclass(kw_only=True)
class ComparisonConfig:
    """Group `comparison`; chosen with `arm=NAME`."""

    arm: str | None = setting(
        None,
        "grown; static (the host), static_flops (the host at the compute of grown); final (the final architecture of "
        "grown, from scratch), final_flops (at the compute of grown), final_seconds (in the time of grown); scheduled; "
        "random; null: no comparison",
        choices=tuple(ARMS),
    )
    grown_run: str | None = setting(None, "name of the grown run that this one is compared with; set at launch")
    grown_macs: int | None = setting(
        None, "multiply-accumulates that the grown run spent in total; set at launch", low=1
    )


def dependency_level(arm: str | None) -> int:
    """0 for arms that depend on no other, 1 for those that need the grown run, 2 for those that need one of level 1."""
    return _DEPENDENCY_LEVELS.get(arm or "", 0)
