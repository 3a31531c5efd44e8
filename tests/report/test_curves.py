"""Curves of accuracy against length: crossings, and the transfer of a grown network."""

from __future__ import annotations

import math

import pytest

from esper.report.curves import crossings, transfer


def test_curves_cross_where_interpolation_in_the_logarithm_says() -> None:
    host, final = [(1.0, 0.80), (100.0, 0.84)], [(100.0, 0.90), (1.0, 0.70)]  # in any order
    (where,) = crossings(host, final)
    # 0.80 + 0.04 t = 0.70 + 0.20 t at t = 0.625 of two decades
    assert where == pytest.approx(100**0.625)
    assert crossings(final, host) == pytest.approx([where])


def test_only_the_range_that_both_curves_cover_counts() -> None:
    assert crossings([(1, 0.8), (2, 0.8)], [(4, 0.7), (8, 0.9)]) == []
    assert crossings([(1, 0.8), (6, 0.8)], [(2, 0.7), (8, 0.9)]) == pytest.approx([4.0])
    assert crossings([(1, 0.8), (3, 0.8)], [(2, 0.7), (8, 0.9)]) == []


@pytest.mark.parametrize(
    ("final", "num"),
    [
        ([(1, 0.7), (2, 0.75), (4, 0.79)], 0),
        ([(1, 0.9), (2, 0.9), (4, 0.9)], 0),
        ([(1, 0.8), (2, 0.8), (4, 0.8)], 0),  # the same everywhere
        ([(1, 0.7), (2, 0.8), (4, 0.7)], 0),  # touches
        ([(1, 0.7), (2, 0.8), (4, 0.9)], 1),
        ([(1, 0.7), (2, 0.9), (4, 0.7)], 2),
    ],
)
def test_a_crossing_is_a_change_of_the_lead(final: list[tuple[float, float]], num: int) -> None:
    assert len(crossings([(1, 0.8), (2, 0.8), (4, 0.8)], final)) == num


def test_curves_that_are_equal_for_a_while_cross_in_the_middle_of_that() -> None:
    flat = [(1.0, 0.8), (16.0, 0.8)]
    assert crossings(flat, [(1, 0.7), (2, 0.8), (4, 1.0)]) == pytest.approx([2.0])
    assert crossings(flat, [(1, 0.7), (2, 0.8), (8, 0.8), (16, 0.9)]) == pytest.approx([4.0])


def test_one_point_crosses_nothing() -> None:
    assert crossings([(1, 0.8)], [(1, 0.7), (2, 0.9)]) == []


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_the_transfer_is_found_again_from_a_curve_that_is_linear_in_the_logarithm(rho: float) -> None:
    def final(steps: float) -> float:
        return 0.5 + 0.1 * math.log(steps)

    found = transfer(
        [(steps, final(steps)) for steps in (100, 300, 900)],
        accuracy=final(rho * 200 + 250),
        host_steps=200,
        grown_steps=250,
    )
    assert found == pytest.approx(rho)


@pytest.mark.parametrize(
    ("curve", "accuracy"),
    [
        ([(100, 0.8)], 0.8),
        ([], 0.8),
        ([(100, 0.8), (200, 0.9)], 0.91),  # better than the curve: at least so much, but how much is unknown
        ([(100, 0.8), (200, 0.9)], 0.79),
        ([(100, 0.8), (200, 0.9), (400, 0.7)], 0.85),  # passed twice
    ],
)
def test_no_transfer_is_computed_where_the_curve_does_not_bracket_the_accuracy_once(
    curve: list[tuple[float, float]], accuracy: float
) -> None:
    assert transfer(curve, accuracy=accuracy, host_steps=100, grown_steps=100) is None


def test_an_accuracy_at_a_point_of_the_curve_counts_once() -> None:
    curve = [(100, 0.8), (200, 0.9), (400, 0.95)]
    assert transfer(curve, accuracy=0.9, host_steps=100, grown_steps=100) == pytest.approx(1.0)
    assert transfer(curve, accuracy=0.95, host_steps=100, grown_steps=100) == pytest.approx(3.0)
