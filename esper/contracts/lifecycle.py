"""The lifecycle of a seed: states, allowed transitions, and gates.

DORMANT → GERMINATED → TRAINING → BLENDING → HOLDING → FOSSILIZED
any live state → CULLED → EMBARGOED → DORMANT
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from esper.errors import SurgeryError

__all__ = ["LIVE", "TRANSITIONS", "GateResult", "SeedLifecycleState", "gate", "transition"]


class SeedLifecycleState(StrEnum):
    """Lifecycle state of a seed; see the module's diagram."""

    DORMANT = "dormant"
    GERMINATED = "germinated"
    TRAINING = "training"
    BLENDING = "blending"
    HOLDING = "holding"
    FOSSILIZED = "fossilized"
    CULLED = "culled"
    EMBARGOED = "embargoed"


_S = SeedLifecycleState

LIVE = frozenset({_S.GERMINATED, _S.TRAINING, _S.BLENDING, _S.HOLDING})
"""States in which an attached module is neither kept nor culled yet."""

TRANSITIONS: Mapping[SeedLifecycleState, frozenset[SeedLifecycleState]] = MappingProxyType(
    {
        _S.DORMANT: frozenset({_S.GERMINATED}),
        _S.GERMINATED: frozenset({_S.TRAINING, _S.CULLED}),
        _S.TRAINING: frozenset({_S.BLENDING, _S.CULLED}),
        _S.BLENDING: frozenset({_S.HOLDING, _S.CULLED}),
        _S.HOLDING: frozenset({_S.FOSSILIZED, _S.CULLED}),
        _S.FOSSILIZED: frozenset(),
        _S.CULLED: frozenset({_S.EMBARGOED}),
        _S.EMBARGOED: frozenset({_S.DORMANT}),
    }
)


def transition(site: str, old: SeedLifecycleState, new: SeedLifecycleState) -> SeedLifecycleState:
    """Return `new` if a seed may go there from `old`.

    Raises:
        SurgeryError: the table has no such transition.
    """
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "none"
        raise SurgeryError(f"seed at {site!r} is {old}; it cannot become {new} (allowed: {allowed})")
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Outcome of a gate: names of the checks that passed and of those that failed."""

    passed: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """Whether every check passed."""
        return not self.failed


def gate(checks: Mapping[str, bool | None]) -> GateResult:
    """Evaluate named checks; a check that was not measured (None) fails."""
    return GateResult(
        passed=tuple(name for name, ok in checks.items() if ok),
        failed=tuple(name for name, ok in checks.items() if not ok),
    )
