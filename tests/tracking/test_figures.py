import pytest

from esper.tracking import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (98_765, "98,765"), (99_999.6, "100 k"), (1_234_567, "1.23 M"), (7.89e9, "7.89 G"), (3e18, "3000 P")],
)
def test_large_counts_are_shortened_to_three_digits(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_what_is_not_known_is_a_dash() -> None:
    unknown = (figures.number, figures.signed, figures.percent, figures.loss, figures.clock, figures.memory)
    assert {figure(None) for figure in unknown} == {"–"}
    assert figures.change(0, 5) == "–"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert figures.clock(seconds) == text


def test_a_change_is_relative_to_what_was_before() -> None:
    assert figures.change(1000, 1200) == "+20.0 %"
    assert figures.signed(-5) == "-5"
