"""The arms of a comparison: what each trains, what it needs, and the words that readers see."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["ARMS", "ArmInfo", "ComparisonConfig", "dependency_level"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmInfo:
    """What is known about an arm.

    Attributes:
        words: what it is, for readers.
        policy: the growth policy that it needs: "" allows any, None means no growth.
        after: the arms whose results it needs, of the same seed.
        budget: what it gets as much of as the grown run: `epochs`, `compute` or `seconds`.
    """

    words: str
    policy: str | None
    after: tuple[str, ...] = ("grown",)
    budget: str = "compute"

    @property
    def grows(self) -> bool:
        """Whether its network changes during training; a recipe is replayed before the first step."""
        return self.policy not in (None, "replay")


ARMS = {
    "grown": ArmInfo(words="grown", policy="", after=()),
    "static": ArmInfo(words="host, as many epochs", policy=None, budget="epochs"),
    "static_flops": ArmInfo(words="host, trained longer", policy=None),
    "between_flops": ArmInfo(words="a size in between", policy="replay"),
    "final": ArmInfo(words="final size, as many epochs", policy="replay", budget="epochs"),
    "final_flops": ArmInfo(words="final size from scratch", policy="replay"),
    "final_seconds": ArmInfo(
        words="final size, as many seconds", policy="replay", after=("grown", "final_flops"), budget="seconds"
    ),
    "scheduled": ArmInfo(words="growth at fixed times, sites in order", policy="schedule"),
    "random": ArmInfo(words="growth at random sites", policy="random"),
}
"""The arms in the order in which they are shown."""


@dataclass(kw_only=True)
class ComparisonConfig:
    """Group `comparison`; chosen with `arm=NAME`."""

    arm: str | None = setting(
        None,
        "; ".join(f"{name} ({arm.words})" for name, arm in ARMS.items())
        + "; _flops, scheduled, random: at the compute of grown; null: no comparison",
        choices=tuple(ARMS),
    )
    grown_run: str | None = setting(None, "name of the grown run that this one is compared with; set at launch")
    grown_macs: int | None = setting(
        None, "multiply-accumulates that the grown run spent in total; set at launch", low=1
    )


def dependency_level(arm: str | None) -> int:
    """0 for arms that depend on no other, 1 for those that need an arm of level 0, and so on."""
    return 0 if arm is None else max((1 + dependency_level(other) for other in ARMS[arm].after), default=0)
