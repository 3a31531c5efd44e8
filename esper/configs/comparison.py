"""Which arm of a fair comparison a run is."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["ARMS", "ComparisonConfig", "wave"]

# What the policy of each arm has to be: "" whatever grown has, None no growth at all.
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

# What an arm is measured against has to have finished before it can begin.
_WAVES = {"static_flops": 1, "final": 1, "final_flops": 1, "final_seconds": 2}


@dataclass(kw_only=True)
class ComparisonConfig:
    """Group `comparison`; chosen with `arm=NAME`."""

    arm: str | None = setting(
        None,
        "grown; static (the host), static_flops (at grown's compute); final (grown's last architecture from scratch), "
        "final_flops (at grown's compute), final_seconds (in grown's time); scheduled; random; null: no comparison",
        choices=tuple(ARMS),
    )
    grown_run: str | None = setting(None, "name of the grown run that this one is measured against; set at launch")
    grown_macs: int | None = setting(None, "multiply-accumulates that the grown run spent in all; set at launch", low=1)


def wave(arm: str | None) -> int:
    """In which wave of a sweep an arm's runs can begin; 0 at once, 1 after the grown runs, 2 after those of wave 1."""
    return _WAVES.get(arm or "", 0)
