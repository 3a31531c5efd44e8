import pytest

from esper.terminal import pace as pace_module
from esper.terminal.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])
    return now


def test_one_step_tells_the_time_left_and_later_ones_correct_it(clock: list[float]):
    pace = Pace()
    pace.start(0, total=100)
    assert pace.seconds_left() is None
    clock[0] = 5.0  # the first step takes longer
    pace.reach(1)
    assert pace.seconds_left() == pytest.approx(5 * 99)
    clock[0] = 7.0
    pace.reach(3)
    assert pace.seconds_left() == pytest.approx(97)
    clock[0] = 7.5
    assert pace.seconds_left() == pytest.approx(96.5)
    assert pace.fractional_step() == pytest.approx(3.5)
    clock[0] = 60.0  # a step that hangs
    assert pace.fractional_step() < 4


def test_growth_changes_the_time_of_a_step(clock: list[float]):
    pace = Pace()
    pace.start(0, total=100)
    for step in range(1, 11):
        clock[0] += 1.0
        pace.reach(step)
    pace.change(10)
    assert pace.seconds_left() == pytest.approx(90)
    clock[0] += 3.0
    pace.reach(11)
    assert pace.seconds_left() == pytest.approx(3 * 89)


def test_the_steps_of_an_earlier_process_do_not_count(clock: list[float]):
    pace = Pace()
    pace.start(60, total=100)
    clock[0] = 2.0
    pace.reach(61, total=120)
    assert pace.seconds_left() == pytest.approx(2 * 59)
