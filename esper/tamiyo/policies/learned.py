"""Grow what a fitted linear model predicts to gain most per cost; `esper.simic` fits it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.errors import ConfigError
from esper.tamiyo.policies.eligible import eligible, germinate, no_growth
from esper.tezzeret import kernel_cost
from esper.urza import Blueprint, Shape

__all__ = ["FEATURES", "SCHEMA", "Learned", "build", "cost", "features", "load_policy"]

SCHEMA = 1
FEATURES = (
    "log_score",
    "log_relative_score",
    "depth",
    "progress",
    "num_kernels",
    "log_cost",
    "beside",
    "residual",
    "attention",
    "complexity",
)


def cost(blueprint: Blueprint, in_shape: Shape, out_shape: Shape) -> int:
    """MACs per example that a kernel adds, plus one per output element so that it is never 0."""
    return kernel_cost(blueprint.blueprint_id, in_shape, out_shape).num_macs + math.prod(out_shape)


def features(signal: HealthSignal, signals: Sequence[HealthSignal], blueprint: Blueprint) -> list[float]:
    """Model inputs for a blueprint at a measured site, in the order of `FEATURES`.

    Health is not included, as it is a function of the relative score.
    """
    if signal.score is None:
        raise ValueError(f"site {signal.site!r} was not measured")
    own = max(0.0, signal.score)  # a cross-fitted score may be negative
    peers = [max(0.0, s.score) for s in signals if s.kind == signal.kind and s.score is not None]
    sites = [s.site for s in signals]
    return [
        math.log(own + 1e-12),
        math.log((own + 1e-12) / (median(peers) + 1e-12)),
        sites.index(signal.site) / max(1, len(sites) - 1),
        signal.progress,
        float(signal.num_kernels),
        math.log(cost(blueprint, signal.in_shape, signal.out_shape)),
        float(signal.kind == "beside"),
        float(blueprint.category == "residual"),
        float(blueprint.category == "attention"),
        float(blueprint.complexity),
    ]


@dataclass(frozen=True)
class Learned:
    """Germinate the blueprint with the largest predicted gain per cost among those predicted to be kept.

    Gain is the relative drop of the judge loss, weights · (features - mean) / deviation + bias, in float64; a blueprint
    is predicted to be kept if its gain exceeds `improvement_threshold`. Confidence is the gain, at most 1.
    """

    config: MorphogeneticConfig
    weights: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Predict the gain of every allowed blueprint at every free, measured site."""
        options = [
            (candidate.signal, blueprint)
            for candidate in eligible(signals, self.config)
            if candidate.signal.score is not None
            for blueprint in candidate.blueprints
        ]
        if not options:
            return no_growth("no site is free and measured")
        rows = [features(signal, signals, blueprint) for signal, blueprint in options]
        inputs = (torch.tensor(rows, dtype=torch.float64) - self.mean) / self.deviation
        gains: list[float] = (inputs @ self.weights + self.bias).tolist()
        threshold = self.config.improvement_threshold
        keepable = [(gain, *option) for gain, option in zip(gains, options, strict=True) if gain > threshold]
        if not keepable:
            return no_growth(f"the largest relative gain predicted is {max(gains):.3f}, not above {threshold:g}")
        gain, signal, blueprint = max(keepable, key=lambda o: o[0] / cost(o[2], o[1].in_shape, o[1].out_shape))
        reasoning = (
            f"{blueprint.blueprint_id} at {signal.site}: predicted relative gain {gain:.3f} is above {threshold:g}, "
            f"and the largest per cost of {len(keepable)} candidates"
        )
        return germinate(signal, blueprint, confidence=min(1.0, gain), reasoning=reasoning)


def build(config: MorphogeneticConfig, rng_seed: int) -> Learned:  # noqa: ARG001
    """Make the policy from its file; see `load_policy`."""
    return load_policy(Path(config.tamiyo_policy_path or "").expanduser(), config)


def load_policy(path: Path, config: MorphogeneticConfig) -> Learned:
    """Read a policy file.

    Raises:
        ConfigError: it is missing, or not a policy of this schema.
    """
    remedy = "make one with: esper simic RUN_DIR... --out policy.safetensors"
    names = ("weights", "bias", "mean", "deviation")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("esper", "{}"))
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise ConfigError(f"morphogenetic.tamiyo_policy_path={path}: no such file; {remedy}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"morphogenetic.tamiyo_policy_path={path}: not a policy ({error}); {remedy}") from None
    width = (len(FEATURES),)
    if (
        not isinstance(metadata, dict)
        or metadata.get("schema") != SCHEMA
        or metadata.get("features") != list(FEATURES)
        or [tuple(tensors[name].shape) for name in names] != [width, (), width, width]
        or any(tensor.dtype != torch.float64 for tensor in tensors.values())
    ):
        raise ConfigError(f"morphogenetic.tamiyo_policy_path={path}: made for another version of Esper; {remedy}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()) or not (tensors["deviation"] > 0).all():
        raise ConfigError(f"morphogenetic.tamiyo_policy_path={path}: contains NaN or Inf; {remedy}")
    return Learned(config, *(tensors[name] for name in names))
