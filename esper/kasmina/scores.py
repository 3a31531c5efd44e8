"""Where capacity is missing: scores of every site, measured on held-out images in eval mode, once per decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.model import MorphableModel
from esper.kasmina.moments import Moments
from esper.kasmina.sites import Site

__all__ = ["SiteScore", "health", "score_sites", "scoring_macs"]

_SHORTCUTS = frozenset({"downsample", "shortcut"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScore:
    """What was measured at a site over all images.

    Attributes:
        score: what growing here would gain to first order beyond what the present module can reach, per unit of output
            (see `esper.kasmina.moments`); at a `parallel` site, which adds no capacity, `plain_score`.
        score_error: its standard error; None for a plain score.
        plain_score: ‖M‖²_F, with M the gradient of the mean loss for a 1×1 convolution standing here.
        effective_rank: exp of the entropy of the normalised eigenvalues of the output's channel covariance, in
            channels. Source: Roy & Vetterli, The effective rank, EUSIPCO 2007.
        narrowest_width: fewest output channels of the block's convolutions; None if it has none.
        activation_variance: variance of the kernel's input over images, channels and positions.
        gradient_norm: norm of one image's gradient at the site's output, root mean square over images.
    """

    score: float
    score_error: float | None
    plain_score: float
    effective_rank: float
    narrowest_width: int | None
    activation_variance: float
    gradient_norm: float


class _Measurement:
    """One site while images pass: which modules it looks at, and its sums."""

    def __init__(self, site: Site, host: nn.Module) -> None:
        self.site = site
        self.feature = _last_linear(host, site)
        feature = host.get_submodule(self.feature) if self.feature is not None else None
        num_features = feature.in_channels if isinstance(feature, nn.Conv2d) else 0
        device = next(host.parameters()).device
        self.moments = Moments(site.out_shape[0], site.in_shape[0], num_features, device=device)
        self.narrowest = min((conv.out_channels for _, conv in _convolutions(host, site.block)), default=None)
        # float64: sums over a whole split, read back once. Of the input: count, sum, sum of squares.
        self.input = torch.zeros(3, dtype=torch.float64, device=device)
        channels = site.out_shape[0]
        self.output_sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self.output_products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.num_positions = 0

    def add(self, taps: _Taps, gradients: dict[str, Tensor]) -> None:
        y = taps.outputs[self.site.end].detach()
        x = y if self.site.kind == "after" else taps.inputs[self.site.start]
        h = taps.inputs[self.feature] if self.feature is not None else None
        self.moments.add(gradients[self.site.end], _at(x, y), _at(h, y) if h is not None else None)
        x, flat = x.float(), y.float().transpose(0, 1).flatten(1)
        self.input += torch.stack([x.new_tensor(float(x.numel())), x.sum(), x.square().sum()])
        self.output_sum += flat.sum(1)
        self.output_products += flat @ flat.T
        self.num_positions += flat.shape[1]

    def result(self) -> SiteScore:
        plain = self.moments.plain()
        score, error = (plain, None) if self.site.kind == "parallel" else self.moments.score()
        count, total, squares = self.input.tolist()
        return SiteScore(
            score=score,
            score_error=error,
            plain_score=plain,
            effective_rank=self._effective_rank(),
            narrowest_width=self.narrowest,
            activation_variance=max(0.0, squares / count - (total / count) ** 2),
            gradient_norm=self.moments.gradient_norm(),
        )

    def _effective_rank(self) -> float:
        mean = self.output_sum / self.num_positions
        covariance = self.output_products / self.num_positions - torch.outer(mean, mean)
        eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0.0)
        shares = eigenvalues / eigenvalues.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return float(torch.special.entr(shares).sum().exp())


def score_sites(model: MorphableModel, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, SiteScore]:
    """Score every site of a network in eval mode; parameters, gradients, buffers and modes stay as they are.

    Args:
        model: the network, grown or not.
        batches: images (N, C, H, W), normalised, and labels (N,); at least three images in all.
    """
    measurements = [_Measurement(slot.site, model.host) for slot in model.all_slots()]
    was_training = model.training
    with _Taps(model.host, measurements) as taps:
        try:
            model.eval()
            for images, labels in batches:
                with torch.enable_grad():
                    # Summed, so that each image's gradient is that of its own loss.
                    loss = F.cross_entropy(model(images), labels, reduction="sum")
                    ends = list(taps.outputs)
                    gradients = torch.autograd.grad(loss, [taps.outputs[end] for end in ends])
                for measurement in measurements:
                    measurement.add(taps, dict(zip(ends, gradients, strict=True)))
        finally:
            model.train(was_training)
    return {measurement.site.name: measurement.result() for measurement in measurements}


def scoring_macs(model: MorphableModel) -> int:
    """Multiply-accumulates of the moments of all sites for one image, beside the forward and backward pass."""
    total = 0
    for slot in model.all_slots():
        measurement = _Measurement(slot.site, model.host)
        (out, into, features) = (*measurement.moments.gx.shape[1:], measurement.moments.gh.shape[2])
        _, height, width = slot.site.out_shape
        total += height * width * (out * into + out * features + into**2 + features**2 + features * into + out**2)
    return total


class _Taps:
    """The tensors that pass through a host's modules; the hooks are there between enter and exit."""

    def __init__(self, host: nn.Module, measurements: Sequence[_Measurement]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._host = host
        sites = [measurement.site for measurement in measurements]
        features = [measurement.feature for measurement in measurements if measurement.feature is not None]
        self._read = dict.fromkeys([*(site.start for site in sites if site.kind != "after"), *features])
        self._ends = dict.fromkeys(site.end for site in sites)

    def __enter__(self) -> _Taps:
        # Registered last, so they see a module's output with all that has grown there.
        self._hooks = [
            *(self._host.get_submodule(name).register_forward_pre_hook(self._input(name)) for name in self._read),
            *(self._host.get_submodule(name).register_forward_hook(self._output(name)) for name in self._ends),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _input(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs[name] = args[0].detach()

        return record

    def _output(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
        def record(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor:
            self.outputs[name] = output
            passed_on = output.clone()  # an in-place ReLU that follows must not write into what is differentiated
            assert isinstance(passed_on, Tensor)
            return passed_on

        return record


def _convolutions(host: nn.Module, block: str) -> list[tuple[str, nn.Conv2d]]:
    """The convolutions of a block by name, in order, without those of its shortcut."""
    return [
        (f"{block}.{name}" if name else block, module)
        for name, module in host.get_submodule(block).named_modules()
        if isinstance(module, nn.Conv2d) and _SHORTCUTS.isdisjoint(name.split("."))
    ]


def _last_linear(host: nn.Module, site: Site) -> str | None:
    """Name of the last convolution of the module that a kernel would stand beside or after."""
    found = [name for name, _ in _convolutions(host, site.block) if name in site.convs]
    return found[-1] if found and site.kind != "parallel" else None


def _at(x: Tensor, y: Tensor) -> Tensor:
    """Those positions of x that the positions of y lie over."""
    strides = [-(-size // wanted) for size, wanted in zip(x.shape[2:], y.shape[2:], strict=True)]
    return x[..., :: strides[0], :: strides[1]]


def health(scores: Sequence[tuple[Site, SiteScore]]) -> dict[str, float | None]:
    """Health of each site: min(1, median score of the other sites of its kind / its own score).

    1 is a site like the others or better off; 1/3 one whose score stands out threefold. The others' median counts as at
    least their median standard error: where all that is seen of them is noise around 0, a site stands out only if it
    does so from the noise. A site without another of its kind to compare with has none.
    """
    result: dict[str, float | None] = {}
    for site, own in scores:
        others = [score for other, score in scores if other.kind == site.kind and other.name != site.name]
        if not others:
            result[site.name] = None
            continue
        usual = max(median(score.score for score in others), median(score.score_error or 0.0 for score in others))
        result[site.name] = 1.0 if own.score <= 0.0 else min(1.0, max(0.0, usual) / own.score)
    return result
