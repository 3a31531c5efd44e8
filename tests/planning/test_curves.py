from __future__ import annotations

import numpy as np
import pytest

from esper.planning.curves import Curves, Trainings, fit

FLOORS = (0.5, 0.4)


def _curve(size: int, epochs: float, *, exponent: float = 0.8) -> float:
    return FLOORS[size] + epochs**-exponent


def _observed(*points: tuple[int, float]) -> tuple[np.ndarray, Trainings]:
    return np.array([_curve(*point) for point in points]), _asked(*points)


def _asked(*points: tuple[int, float], host_epochs: float = 0.0) -> Trainings:
    return Trainings.of([(size, epochs, host_epochs, size) for size, epochs in points])


def _expected(curves: Curves, trainings: Trainings) -> np.ndarray:
    return np.median(curves.predict(trainings), axis=0)


def test_exact_observations_of_a_power_law_predict_four_times_as_long_trainings() -> None:
    points = [(size, epochs) for size in (0, 1) for epochs in (2, 4, 8, 16)]
    curves = fit(*_observed(*points), num_sizes=2, noise=1e-4, num_draws=20)
    assert _expected(curves, _asked((0, 64), (1, 64))) == pytest.approx([_curve(0, 64), _curve(1, 64)], abs=0.003)


def test_a_size_with_one_observation_has_the_shape_of_the_others() -> None:
    points = [*((0, epochs) for epochs in (2, 4, 8, 16)), (1, 8.0)]
    curves = fit(*_observed(*points), num_sizes=2, noise=1e-4, num_draws=20)
    assert _expected(curves, _asked((1, 32)))[0] == pytest.approx(_curve(1, 32), abs=0.02)


def test_what_growing_carries_over_is_measured_by_runs_that_grew() -> None:
    tau = 0.8
    y, trainings = _observed(*((size, epochs) for size in (0, 1) for epochs in (2, 4, 8, 16)))
    # The final size reaches the host's loss at 8 epochs after (0.5 + 8 ** -0.8 - 0.4) ** (-1 / 0.8) epochs.
    equal = (_curve(0, 8) - FLOORS[1]) ** (-1 / 0.8)
    grown = _asked((1, 4), host_epochs=8)
    together = Trainings(
        size=np.append(trainings.size, grown.size),
        epochs=np.append(trainings.epochs, grown.epochs),
        host_epochs=np.append(trainings.host_epochs, grown.host_epochs),
        trunk=np.append(trainings.trunk, 2),
    )
    seen = np.append(y, _curve(1, 4 + tau * equal))
    curves = fit(seen, together, num_sizes=2, noise=1e-4, num_draws=50)
    assert float(np.median(curves.worth(1, 8.0))) == pytest.approx(tau * equal / 8, rel=0.05)
    assumed = fit(y, trainings, num_sizes=2, noise=1e-4, num_draws=50).worth(1, 8.0)
    assert assumed.std() > 2 * curves.worth(1, 8.0).std()


def test_one_diverged_pilot_changes_little() -> None:
    points = [(size, epochs) for size in (0, 1) for epochs in (2, 3, 4, 6, 8, 12, 16)]
    y, trainings = _observed(*points)
    y[3] += 0.5
    curves = fit(y, trainings, num_sizes=2, noise=0.003, num_draws=20)
    assert _expected(curves, _asked((0, 32)))[0] == pytest.approx(_curve(0, 32), abs=0.03)


def test_the_further_away_the_wider_the_draws_spread() -> None:
    rng = np.random.default_rng(0)
    y, trainings = _observed(*((size, epochs) for size in (0, 1) for epochs in (2, 4, 8)))
    curves = fit(y + 0.003 * rng.standard_normal(len(y)), trainings, num_sizes=2, noise=0.003, num_draws=100)
    near, far = curves.predict(_asked((1, 8), (1, 128))).std(axis=0)
    assert far > 1.5 * near


def test_the_same_observations_give_the_same_draws() -> None:
    observed = _observed((0, 2), (0, 4), (1, 2), (1, 4))
    one, other = (fit(*observed, num_sizes=2, noise=0.01, num_draws=5) for _ in range(2))
    assert np.array_equal(one.draws, other.draws)
