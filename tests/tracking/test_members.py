"""The list of a sweep's members, added to by every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.errors import RunError
from esper.tracking.members import note_members, read_members


def test_a_second_command_adds_its_members(tmp_path: Path) -> None:
    note_members(tmp_path / "new", {"a": ["rng_seed=0"], "b": ["rng_seed=1"]})
    note_members(tmp_path / "new", {"b": ["rng_seed=1"], "c": ("rng_seed=2",)})
    assert read_members(tmp_path / "new") == {"a": ["rng_seed=0"], "b": ["rng_seed=1"], "c": ["rng_seed=2"]}


def test_a_damaged_list_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("[")
    with pytest.raises(RunError, match="remove it, the sweep's command writes it anew"):
        read_members(tmp_path)
