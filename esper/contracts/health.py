"""The measurements of a site on which Tamiyo decides."""

from __future__ import annotations

from dataclasses import dataclass

from esper.contracts.lifecycle import SeedLifecycleState

__all__ = ["HealthSignal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSignal:
    """Measurements of one site at the end of an epoch; None: not measured, which never counts as healthy.

    Attributes:
        site: name of the site, e.g. `layer2.0:beside`.
        layer: its entry of `model.target_layers`.
        kind: `after` a block (y = h + f(h)), `beside` it (y = m(x) + g(x)), `parallel` to a convolution and its norm,
            or in the `width` of a block's inner channels or units; scores compare within one kind.
        epoch: epochs finished.
        progress: fraction of training done, in [0, 1].
        last_consultation: that fraction when Tamiyo was consulted before; None: not known.
        in_shape: of the kernel's input: (C, H, W), (T, D) or (D,).
        out_shape: of the kernel's output.
        state: lifecycle state of the site's seed.
        state_epoch: epochs finished when it entered that state.
        num_kernels: kernels kept here so far.
        has_room: whether another kernel may grow here (`model.max_kernels_per_seed`).
        last_adaptation_epoch: epoch of the last adaptation in this layer; None if there was none.
        score: first-order gain of growing here that the existing module cannot reach; for `parallel` sites, which
            add no capacity, `plain_score`. See `esper.kasmina.scores`.
        score_error: standard error of `score`.
        plain_score: squared Frobenius norm of E[g xᵀ], the first-order gain of growing a 1×1 convolution here.
        health: min(1, median score of the other sites of its kind / own score), scores divided by cost depending on
            `score_per`; a low value means that capacity is missing.
        effective_rank: effective rank of the activations at the site's output, in channels.
        narrowest_width: fewest channels of any layer of the block.
        activation_variance: variance of the site's input over the controller split.
        gradient_norm: norm of the loss's gradient at the site's output, root mean square over examples.
        added_macs: MACs that the preferred blueprint would add; None if no blueprint is allowed here.
        added_parameters: parameters that it would add.
        macs_left: MACs that growth may still add to the network; None without a budget.
        parameters_left: parameters that growth may still add; None without a budget.
        refused: blueprints that do not grow here any more: they were undone because of a fault.
    """

    site: str
    layer: str
    kind: str
    epoch: int
    progress: float
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    state: SeedLifecycleState
    state_epoch: int
    num_kernels: int
    has_room: bool
    last_adaptation_epoch: int | None
    last_consultation: float | None = None
    score: float | None = None
    health: float | None = None
    activation_variance: float | None = None
    gradient_norm: float | None = None
    score_error: float | None = None
    plain_score: float | None = None
    effective_rank: float | None = None
    narrowest_width: int | None = None
    added_macs: int | None = None
    added_parameters: int | None = None
    macs_left: int | None = None
    parameters_left: int | None = None
    refused: tuple[str, ...] = ()
