"""Where capacity is missing: scores of every site, measured on held-out images in eval mode, once per decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.model import MorphableModel
from esper.kasmina.moments import Dealt, Moments, Term, deal, terms
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


class _Tap(NamedTuple):
    """Name of a tensor: what a module of the host reads or gives, every so many positions, or the gradient there."""

    what: Literal["input", "output", "gradient"]
    module: str
    strides: tuple[int, ...] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What is measured at a site: g, x and h of `esper.kasmina.moments`, the whole input of a kernel and the output."""

    g: _Tap
    x: _Tap
    h: _Tap | None
    whole: _Tap
    y: _Tap
    is_plain: bool

    def terms(self) -> list[Term]:
        needed = [("each", self.g, self.x)] if self.is_plain else terms(g=self.g, x=self.x, h=self.h)
        shared = [("sum", self.whole), ("squares", self.whole), ("squares", self.g), ("sum", self.y)]
        return [*needed, *shared, ("all", self.y, self.y)]


def score_sites(model: MorphableModel, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, SiteScore]:
    """Score every site of a network in eval mode; parameters, gradients, buffers and modes stay as they are.

    Args:
        model: the network, grown or not.
        batches: images (N, C, H, W), normalised, and labels (N,); at least three images in all.
    """
    sites = [slot.site for slot in model.all_slots()]
    moments = Moments()
    measured: list[_Measured] = []
    was_training = model.training
    with _Taps(model.host, sites) as taps:
        try:
            model.eval()
            for images, labels in batches:
                dealt = deal(len(images), first=moments.num_images, device=images.device)
                taps.run(model, images, labels, dealt)
                read = [taps.measured(site) for site in sites]
                assert read == (measured or read), "modules pass on the same tensors in every batch"
                measured = read
                wanted = dict.fromkeys(term for site in measured for term in site.terms())
                names = dict.fromkeys(name for _, *operands in wanted for name in operands)
                moments.add({name: taps.tensor(name) for name in names}, wanted, dealt)
        finally:
            model.train(was_training)
    return _results(model.host, sites, measured, moments)


def _results(
    host: nn.Module, sites: Sequence[Site], measured: Sequence[_Measured], moments: Moments
) -> dict[str, SiteScore]:
    ranks = _effective_ranks(moments, dict.fromkeys(of.y for of in measured))
    rows = []
    for of in measured:
        plain = moments.plain(g=of.g, x=of.x)
        score = torch.stack([plain, plain]) if of.is_plain else moments.score(g=of.g, x=of.x, h=of.h)
        rest = [plain, ranks[of.y], _variance(moments, of.whole), moments.gradient_norm(of.g)]
        rows.append(torch.cat([score, torch.stack(rest)]))
    values = torch.stack(rows).tolist()  # all that is measured is read here, at once
    return {
        site.name: SiteScore(
            score=score,
            score_error=None if of.is_plain else error,
            plain_score=plain,
            effective_rank=rank,
            narrowest_width=min((conv.out_channels for _, conv in _convolutions(host, site.block)), default=None),
            activation_variance=variance,
            gradient_norm=norm,
        )
        for site, of, (score, error, plain, rank, variance, norm) in zip(sites, measured, values, strict=True)
    }


def _variance(moments: Moments, x: _Tap) -> Tensor:
    """Variance over images, channels and positions, 0-dim."""
    sums = moments.total(("sum", x))
    count = moments.num_positions[x] * len(sums)
    return (moments.total(("squares", x)) / count - (sums.sum() / count).square()).clamp(min=0.0)


def _effective_ranks(moments: Moments, outputs: Iterable[_Tap]) -> dict[_Tap, Tensor]:
    """Effective rank of each output, 0-dim; the eigenvalues of all with as many channels come from one call."""
    alike: dict[int, dict[_Tap, Tensor]] = {}
    for y in outputs:
        mean = moments.total(("sum", y)) / moments.num_positions[y]
        covariance = moments.total(("all", y, y)) / moments.num_positions[y] - torch.outer(mean, mean)
        alike.setdefault(len(mean), {})[y] = covariance
    ranks: dict[_Tap, Tensor] = {}
    for covariances in alike.values():
        eigenvalues = torch.linalg.eigvalsh(torch.stack(list(covariances.values()))).clamp(min=0.0)
        shares = eigenvalues / eigenvalues.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        ranks |= zip(covariances, torch.special.entr(shares).sum(1).exp(), strict=True)
    return ranks


def scoring_macs(model: MorphableModel) -> int:
    """Multiply-accumulates of the moments of all sites for one image, beside the forward and backward pass.

    Each site is counted for itself: what sites have in common is computed once, and costs less.
    """
    total = 0
    for slot in model.all_slots():
        (out, height, width), into = slot.site.out_shape, slot.site.in_shape[0]
        feature = _last_linear(model.host, slot.site)
        conv = model.host.get_submodule(feature) if feature is not None else None
        features = conv.in_channels if isinstance(conv, nn.Conv2d) else 0
        total += height * width * (out * into + out * features + into**2 + features**2 + features * into + out**2)
    return total


class _Taps:
    """The tensors that pass through a host's modules; the hooks are there between enter and exit."""

    def __init__(self, host: nn.Module, sites: Sequence[Site]) -> None:
        self._host = host
        self._features = {site.name: _last_linear(host, site) for site in sites}
        starts = [site.start for site in sites if site.kind != "after"]
        self._read = dict.fromkeys([*starts, *(name for name in self._features.values() if name is not None)])
        self._ends = dict.fromkeys(site.end for site in sites)
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._passed_on: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

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

    def run(self, model: MorphableModel, images: Tensor, labels: Tensor, dealt: Dealt) -> None:
        """Send the images of a batch through the network and back, in the order in which they are dealt."""
        with torch.enable_grad():
            losses = F.cross_entropy(model(images[dealt.index]), labels[dealt.index], reduction="none")
            # Summed, so that each image's gradient is that of its own loss.
            loss = losses.where(dealt.is_real, 0.0).sum()
            gradients = torch.autograd.grad(loss, list(self._outputs.values()))
        self._gradients = dict(zip(self._outputs, gradients, strict=True))

    def measured(self, site: Site) -> _Measured:
        """The names of what is measured at a site, which are those of the last batch run."""
        y = _Tap("output", site.end)
        whole = y if site.kind == "after" else self._input_of(site.start)
        feature = self._features[site.name]
        return _Measured(
            g=_Tap("gradient", site.end),
            x=self._over(whole, y),
            h=self._over(self._input_of(feature), y) if feature is not None else None,
            whole=whole,
            y=y,
            is_plain=site.kind == "parallel",
        )

    def tensor(self, name: _Tap) -> Tensor:
        """A tensor of the last batch run, (N, C, H, W)."""
        tensors = {"input": self._inputs, "output": self._outputs, "gradient": self._gradients}[name.what]
        return tensors[name.module][..., :: name.strides[0], :: name.strides[1]]

    def _input_of(self, module: str) -> _Tap:
        """What a module reads: under the name of the end that passed it on or of the first that read it, if any."""
        x = self._inputs[module]
        for end, passed_on in self._passed_on.items():
            if passed_on is x and x._version == 0:  # nobody wrote into it
                return _Tap("output", end)
        return _Tap("input", next(name for name, tensor in self._inputs.items() if tensor is x))

    def _over(self, x: _Tap, y: _Tap) -> _Tap:
        """Those positions of x that the positions of y lie over."""
        sizes = zip(self.tensor(x).shape[2:], self.tensor(y).shape[2:], strict=True)
        return x._replace(strides=tuple(-(-size // wanted) for size, wanted in sizes))

    def _input(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[name] = args[0]

        return record

    def _output(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
        def record(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            self._outputs[name] = output
            # An in-place ReLU that follows must not write into what is differentiated and measured.
            passed_on = self._passed_on[name] = output.clone()
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
