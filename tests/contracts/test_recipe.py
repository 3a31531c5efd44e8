"""A part of a recipe: the network in between host and grown."""

from __future__ import annotations

from typing import Any

import pytest

from esper.contracts.recipe import Graft, part_of
from esper.errors import ConfigError


def graft(number: int, site: str, *sources: str, **fields: Any) -> Graft:
    blueprint = "copy" if sources else "conv3x3"
    return Graft(
        graft_id=number, site=site, blueprint_id=blueprint, init_seed=1, init_gain=1.0, born_step=6, sources=sources,
        **fields,
    )  # fmt: skip


def half(*recipe: Graft, num_macs: tuple[int, ...] = (), fraction: float = 0.5) -> dict[str, tuple[str, ...]]:
    kept = part_of(recipe, fraction, num_macs=num_macs or (0,) * len(recipe))
    assert [one.graft_id for one in kept] == sorted(one.graft_id for one in kept)
    return {f"{one.graft_id} {one.site}": one.sources for one in kept}


def test_every_graft_keeps_the_first_half_of_its_copies() -> None:
    assert half(graft(1, "a.1:after", "a.0", "a.1"), graft(2, "b.3:after", "b.0", "b.1", "b.2", "b.3")) == {
        "1 a.1:after": ("a.0",),
        "2 b.3:after": ("b.0", "b.1"),
    }


def test_of_single_copies_every_second_one_stays() -> None:
    recipe = [graft(number, f"a.{number}:after", f"a.{number}") for number in (1, 2, 3, 4)]
    assert list(half(*recipe)) == ["2 a.2:after", "4 a.4:after"]


def test_an_odd_number_of_copies_is_made_up_for_by_the_next_graft() -> None:
    assert half(graft(1, "a.2:after", "a.0", "a.1", "a.2"), graft(2, "b.2:after", "b.0", "b.1", "b.2")) == {
        "1 a.2:after": ("a.0",),
        "2 b.2:after": ("b.0", "b.1"),
    }


def test_a_copy_of_a_copy_is_named_by_the_block_of_the_host() -> None:
    twice = graft(1, "a.1:after", "a.0", "a.1"), graft(2, "a.1:after", "a.0", "a.1", "a.1+1", "a.1+2")
    assert half(*twice, fraction=0.9) == {"1 a.1:after": ("a.0",), "2 a.1:after": ("a.0", "a.1", "a.0", "a.1")}


@pytest.mark.parametrize(
    ("num_macs", "kept"),
    [((10, 10, 10, 10), ["1 a", "2 b"]), ((30, 1, 1, 1), ["1 a"]), ((1, 1, 1, 30), ["1 a", "2 b", "3 c"])],
)
def test_of_other_modules_the_first_ones_stay_up_to_about_half_of_the_macs(
    num_macs: tuple[int, ...], kept: list[str]
) -> None:
    assert list(half(*(graft(n, site) for n, site in enumerate("abcd", start=1)), num_macs=num_macs)) == kept


def test_copies_and_other_modules_are_divided_each_by_their_rule() -> None:
    recipe = graft(1, "x"), graft(2, "a.1:after", "a.0", "a.1"), graft(3, "y")
    assert half(*recipe, num_macs=(5, 0, 5)) == {"1 x": (), "2 a.1:after": ("a.0",)}


@pytest.mark.parametrize(
    ("recipe", "grown"),
    [
        ([], "nothing"),
        ([graft(1, "a.1:after", "a.1")], "copy at a.1:after"),
        ([graft(1, "a.1:after")], "conv3x3 at a.1:after"),
    ],
)
def test_one_module_leaves_no_size_in_between(recipe: list[Graft], grown: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe_fraction=0.5: the recorded run grew {grown}: no size lies in"):
        half(*recipe)
