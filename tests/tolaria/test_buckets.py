"""Gradients of two real ranks, summed in buckets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from esper.tolaria.buckets import GradientBuckets
from esper.tolaria.ranks import Ranks
from tests.tolaria.processes import both_ranks

MIB = 2**20
STAGES = ["first", "grown", "used without notice", "culled"]


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    """What each of two ranks found, by stage of the network: its first step and its second."""
    return both_ranks("tests.tolaria.bucket_ranks")


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_become_their_sums_over_ranks_and_parts_and_what_is_not_used_has_none(
    both: list[dict[str, Any]], stage: str
) -> None:
    for step in both[0][stage] + both[1][stage]:
        assert step["with gradient"] == step["expected"]
        assert step["error"] < 1e-5
        assert step["strides"]
        assert step["hooks"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_buckets_hold_gradients_in_the_order_in_which_they_become_ready_on_all_ranks(
    both: list[dict[str, Any]], stage: str
) -> None:
    first, second = both[0][stage]
    assert [step["buckets"] for step in both[1][stage]] == [first["buckets"], second["buckets"]]
    assert first["buckets"] == second["buckets"]
    layers = list(dict.fromkeys(name.split(".")[0] for bucket in second["buckets"] for name in bucket))
    if stage == "used without notice":
        assert layers == ["head", "grown", "stem", "sometimes"]  # last, since it was not expected
    else:
        assert layers == [layer for layer in ("head", "grown", "sometimes", "stem") if layer in layers]


@pytest.mark.parametrize("stage", STAGES)
def test_after_the_first_step_all_buckets_start_in_the_backward_pass(both: list[dict[str, Any]], stage: str) -> None:
    first, second = both[0][stage]
    num_before = len(both[0]["grown"][1]["buckets"]) if stage == "used without notice" else 0
    assert first["early"] == num_before
    assert second["early"] == len(second["buckets"]) > 2


def test_ranks_that_use_different_parameters_end_with_one_line(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "the order of gradients differs: " in found["problem"]


@pytest.mark.parametrize(
    ("megabytes", "expected"),
    [
        ([0.1, 0.2], [2]),
        ([0.5, 0.6, 20, 10, 0.4, 0.4], [2, 2, 2]),
        ([2, 2, 2], [1, 2]),
        ([30, 30, 0.5], [1, 1, 1]),
        ([0.4, 0.3, 0.2, 0.2], [1, 3]),
    ],
)
def test_the_first_and_the_last_bucket_are_small(megabytes: list[float], expected: list[int]) -> None:
    sizes = [nn.Parameter(torch.empty(int(size * MIB) // 4, device="meta")) for size in megabytes]
    divided = GradientBuckets(nn.Module(), Ranks())._divided(sizes)
    assert [len(bucket) for bucket in divided] == expected


def test_a_bucket_has_gradients_of_one_type() -> None:
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float64)]
    assert [len(bucket) for bucket in GradientBuckets(nn.Module(), Ranks())._divided(parameters)] == [1, 2]
