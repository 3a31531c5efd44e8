from __future__ import annotations

import itertools

import pytest

from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.lifecycle import LIVE, TRANSITIONS, SeedLifecycleState, gate, transition
from esper.errors import SurgeryError

S = SeedLifecycleState


def test_the_straight_way_and_the_way_back_are_open() -> None:
    straight = [S.DORMANT, S.GERMINATED, S.TRAINING, S.BLENDING, S.HOLDING, S.FOSSILIZED]
    for old, new in itertools.pairwise(straight):
        assert transition("s", old, new) is new
    for old, new in ((S.CULLED, S.EMBARGOED), (S.EMBARGOED, S.DORMANT)):
        assert transition("s", old, new) is new


def test_every_live_state_can_be_culled_and_no_other() -> None:
    assert {state for state in S if S.CULLED in TRANSITIONS[state]} == LIVE


@pytest.mark.parametrize(("old", "new"), [(S.DORMANT, S.HOLDING), (S.FOSSILIZED, S.CULLED), (S.TRAINING, S.FOSSILIZED)])
def test_a_transition_that_the_table_lacks_is_refused(old: S, new: S) -> None:
    with pytest.raises(SurgeryError, match=f"seed at 'site' is {old}; it cannot become {new}"):
        transition("site", old, new)


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(S)


def test_a_gate_names_what_passed_and_what_failed_and_unmeasured_is_not_healthy() -> None:
    found = gate({"a": True, "b": False, "c": None})
    assert (found.passed, found.failed, found.is_open) == (("a",), ("b", "c"), False)
    assert gate({"a": True}).is_open


def test_a_decision_says_what_it_asks_for() -> None:
    wish = AdaptationDecision(
        should_adapt=True, target_layer="layer1", blueprint_id="b", confidence=0.9, reasoning="bottleneck"
    )
    assert wish.action is Action.GERMINATE
    assert AdaptationDecision(should_adapt=False).action is Action.NONE


@pytest.mark.parametrize(
    "fields",
    [
        {"should_adapt": True},
        {"should_adapt": True, "site": "s", "confidence": 1.5},
        {"should_adapt": False, "action": Action.CULL},
    ],
)
def test_a_decision_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"site or a target_layer|must be in \[0, 1\]|contradicts"):
        AdaptationDecision(**fields)  # type: ignore[arg-type]
