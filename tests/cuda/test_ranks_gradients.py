"""Two GPUs that sum their gradients while the captured backward pass goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.rank_steps import CASES, WAYS
from tests.tolaria.processes import both_ranks

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks found."""
    folder = str(tmp_path_factory.mktemp("runs"))
    return both_ranks("tests.cuda.rank_steps", folder, "cuda", num_threads=4, within_s=120)


@pytest.mark.parametrize("case", CASES)
def test_eager_and_captured_overlapped_sums_are_bit_identical_through_growth_and_culling_on_both_ranks(
    both: list[dict[str, dict[str, Any]]], case: str
) -> None:
    expected = both[0][case]["eager"]
    for found in both:
        for way in WAYS:
            assert found[case][way]["weights"] == expected["weights"], way
            assert found[case][way]["loss"] == expected["loss"], way


@pytest.mark.parametrize("case", CASES)
def test_all_sums_of_a_captured_step_start_in_its_backward_pass(
    both: list[dict[str, dict[str, Any]]], case: str
) -> None:
    for found in both:
        captured, late = found[case]["captured"], found[case]["captured, sums at the end"]
        assert captured["early"][-1] == captured["buckets"] > 2
        assert captured["early"][1] >= captured["early"][0] == captured["early"][2]
        assert late["early"] == [0, 0, 0]
        assert late["buckets"] == captured["buckets"]
