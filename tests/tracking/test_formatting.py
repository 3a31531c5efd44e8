import pytest

from esper.contracts.metrics import MetricInfo
from esper.tracking import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (98_765, "98,765"), (99_999.6, "100 k"), (1_234_567, "1.23 M"), (7.89e9, "7.89 G"), (3e18, "3000 P")],
)
def test_large_counts_are_shortened_to_three_digits(value: float, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.9129, "3.913"), (4.0, "4.000"), (3.79, "3.790"), (1234.0, "1234"), (2.5e9, "2.500e+09")]
)
def test_metrics_without_a_percentage_have_four_digits_so_that_they_stand_below_each_other(
    value: float, text: str
) -> None:
    assert (
        formatting.metric(value, MetricInfo(name="m", label="m", unit="nats", higher_is_better=False)) == f"{text} nats"
    )


def test_what_is_not_known_is_a_dash() -> None:
    unknown = (
        formatting.number,
        formatting.signed,
        formatting.percent,
        formatting.loss,
        formatting.clock,
        formatting.memory,
    )
    assert {figure(None) for figure in unknown} == {"–"}
    assert formatting.change(0, 5) == "–"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert formatting.clock(seconds) == text


def test_a_change_is_relative_to_what_was_before() -> None:
    assert formatting.change(1000, 1200) == "+20.0 %"
    assert formatting.signed(-5) == "-5"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.2, "1 min"), (3599, "59 min"), (3600, "1 h 00 min"), (86520, "24 h 02 min")]
)
def test_a_duration_names_its_two_largest_units(seconds: float, text: str):
    assert formatting.duration(seconds) == text
