from __future__ import annotations

import statistics
import warnings

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.moments import (
    NUM_GROUPS,
    Moments,
    Term,
    cholesky_factor,
    cross_fitted,
    group_images,
    score_terms,
    unreachable,
    whitened,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what gromo imports warns of itself
    from gromo.modules.conv2d_growing_module import RestrictedConv2dGrowingModule
    from gromo.modules.linear_growing_module import LinearGrowingModule


def measured(g: Tensor, x: Tensor, h: Tensor | None) -> Moments:
    moments, tensors = Moments(), {"g": g, "x": x} | ({} if h is None else {"h": h})
    for start in range(0, len(g), 11):  # batches that no number of groups divides
        part = {name: tensor[start : start + 11] for name, tensor in tensors.items()}
        batch = group_images(len(part["g"]), first=start, device=g.device)
        moments.add({name: tensor[batch.index] for name, tensor in part.items()}, terms(h), batch)
    return moments


def terms(h: Tensor | None) -> list[Term]:
    return score_terms(g="g", x="x", h=None if h is None else "h")


def scored(g: Tensor, x: Tensor, h: Tensor) -> tuple[float, float]:
    score, error = measured(g, x, h).score(g="g", x="x", h="h").tolist()
    return score, error


def pooled(moments: Moments) -> float:
    gx, gh, xx, hh, hx = (
        moments.total(term).sum(0) / moments.num_images
        if term[0] == "each"
        else moments.total(term) / moments.num_images
        for term in (("each", "g", "x"), ("each", "g", "h"), ("all", "x", "x"), ("all", "h", "h"), ("all", "h", "x"))
    )
    m = unreachable(gx, gh, hx, factor=cholesky_factor(hh))
    return float(whitened(m, factor=cholesky_factor(xx)).square().sum())


@pytest.mark.parametrize(("channels", "positions", "num_images"), [(4, 1, 64), (16, 16, 64), (32, 4, 400)])
def test_without_signal_the_score_is_0_within_its_standard_error(
    channels: int, positions: int, num_images: int
) -> None:
    generator = torch.Generator().manual_seed(channels)
    mixing = torch.randn(channels, channels, generator=generator)
    scores, z = [], []
    for _ in range(60):
        x, h, g = (torch.randn(num_images, channels, positions, 1, generator=generator) for _ in range(3))
        x = torch.einsum("ij,njpq->nipq", mixing, x)
        score, error = scored(g, x, h)
        scores.append(score)
        z.append(score / error)
    assert abs(statistics.mean(scores)) < 3 * statistics.stdev(scores) / len(scores) ** 0.5
    # Without a signal the jackknife says twice the variance that there is: cautious, and by no more.
    assert 0.25 < statistics.variance(z) < 1.3
    assert statistics.mean(scores) < 0.1 * statistics.mean([pooled(measured(g, x, h))])


def test_the_score_counts_only_the_signal_that_the_existing_module_cannot_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, 1, 1, generator=generator)
    seen, unseen = x[:, :3], x[:, 3:]
    noise = torch.randn(4000, 3, 1, 1, generator=generator)
    reachable, _ = scored(seen + noise, x, seen)
    beyond, error = scored(2.0 * unseen + noise, x, seen)
    assert abs(reachable) < 0.05
    assert beyond == pytest.approx(3 * 2.0**2, abs=4 * error)
    assert error < 1.0


def test_the_score_is_invariant_to_the_scale_of_the_input_and_quadratic_in_that_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x, h, g = (torch.randn(40, 3, 2, 2, generator=generator) for _ in range(3))
    score, error = scored(g, x, h)
    assert scored(g, 100.0 * x, 0.01 * h) == pytest.approx((score, error), rel=1e-3)
    assert scored(3.0 * g, x, h) == pytest.approx((9 * score, 9 * error), rel=1e-6)


def test_images_are_assigned_to_groups_round_robin_across_batches() -> None:
    moments = measured(torch.ones(30, 1, 1, 1), torch.ones(30, 1, 1, 1), None)
    assert moments.num_images == moments.num_positions["x"] == 30
    assert moments.total(("each", "g", "x")).flatten().tolist() == [4.0] * 6 + [3.0] * (NUM_GROUPS - 6)


def test_the_jackknife_error_is_that_of_leaving_out_one_group_at_a_time() -> None:
    parts = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    score, error = cross_fitted(parts).tolist()

    def plain(chosen: list[int]) -> float:
        return statistics.mean(float((parts[i] * parts[j]).sum()) for i in chosen for j in chosen if i != j)

    left_out = [plain([i for i in range(5) if i != k]) for k in range(5)]
    assert score == pytest.approx(plain(list(range(5))))
    assert error == pytest.approx((statistics.pvariance(left_out) * 4) ** 0.5)


@pytest.mark.parametrize("kind", ["linear", "conv1x1"])
def test_the_pooled_score_is_that_of_gromo(kind: str) -> None:
    """TINY's and GradMax's first-order gains, against an implementation by others."""
    torch.manual_seed(0)
    first: LinearGrowingModule | RestrictedConv2dGrowingModule
    if kind == "linear":
        first = LinearGrowingModule(6, 4, use_bias=False, post_layer_function=nn.ReLU())
        second = LinearGrowingModule(4, 3, use_bias=False, previous_module=first)
        x, target = torch.randn(200, 6), torch.randn(200, 3)
    else:
        first = RestrictedConv2dGrowingModule(6, 4, 1, use_bias=False, post_layer_function=nn.ReLU(), input_size=(5, 5))
        second = RestrictedConv2dGrowingModule(4, 3, 1, use_bias=False, previous_module=first, input_size=(5, 5))
        x, target = torch.randn(40, 6, 5, 5), torch.randn(40, 3, 5, 5)
    first.init_computation()
    second.init_computation()
    output = second(first(x))
    ((output - target) ** 2).sum().div(2).backward()  # the gradient of each image's own loss is output - target
    first.update_computation()
    second.update_computation()
    theirs = {}
    for name, tiny in (("gradmax", False), ("tiny", True)):
        if tiny:
            second.compute_optimal_delta()
        second.compute_optimal_updates(
            numerical_threshold=1e-12,
            statistical_threshold=1e-12,
            compute_delta=False,
            use_covariance=tiny,
            alpha_zero=not tiny,
            use_projection=tiny,
        )
        theirs[name] = float(second.eigenvalues_extension.square().sum())
    g, h = (output - target).detach(), first(x).detach()
    as_images = (t if t.dim() == 4 else t[:, :, None, None] for t in (g, x, h))
    moments = measured(*as_images)
    assert float(moments.plain(g="g", x="x")) == pytest.approx(theirs["gradmax"], rel=1e-5)
    assert pooled(moments) == pytest.approx(theirs["tiny"], rel=1e-2)  # our ridge
