"""The examples that Hypothesis draws."""

from __future__ import annotations

from hypothesis.internal.conjecture import providers


def test_examples_do_not_depend_on_which_modules_are_imported() -> None:
    assert len(providers._get_local_constants()) == 0
