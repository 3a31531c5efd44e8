"""Site scores: where the network lacks capacity, measured on held-out images in eval mode, once per decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.model import MorphableModel
from esper.kasmina.modes import evaluating, unfrozen
from esper.kasmina.moments import GroupedBatch, Moments, Term, group_images, score_terms
from esper.kasmina.sites import Site
from esper.tasks import by_example
from esper.urza.copied import CopiedBlocks
from esper.urza.kernel import main_tensor, num_channels, num_positions

__all__ = ["SiteScore", "health", "score_sites", "scoring_macs"]

_SHORTCUTS = frozenset({"downsample", "shortcut"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScore:
    """Measurements at a site.

    Attributes:
        score: first-order gain of growing here that the existing module cannot reach, per unit of output (see
            `esper.kasmina.moments`); at a `parallel` site, which adds no capacity, `plain_score`.
        score_error: standard error of the score; None for a plain score.
        plain_score: ‖M‖²_F, with M the gradient of the mean loss with respect to a 1×1 convolution added here.
        effective_rank: exp of the entropy of the normalised eigenvalues of the output's channel covariance, in
            channels. Source: Roy & Vetterli, The effective rank, EUSIPCO 2007.
        narrowest_width: fewest output channels of the block's convolutions or linear layers; None if it has none.
        activation_variance: variance of the kernel's input over images, channels and positions.
        gradient_norm: norm of the gradient at the site's output, root mean square over images.
    """

    score: float
    score_error: float | None
    plain_score: float
    effective_rank: float
    narrowest_width: int | None
    activation_variance: float
    gradient_norm: float


class _TensorName(NamedTuple):
    """Name of a tensor: a host module's input, output, or output gradient, subsampled by strides."""

    what: Literal["input", "output", "gradient"]
    module: str
    strides: tuple[int, ...] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SiteTensors:
    """The tensors needed at a site.

    Attributes:
        g, x, h: see `esper.kasmina.moments`; `x` and `h` at the positions of `y`.
        full_x: the kernel's input at all positions.
        y: the site's output.
        is_plain: whether the score is the plain one.
    """

    g: _TensorName
    x: _TensorName
    h: _TensorName | None
    full_x: _TensorName
    y: _TensorName
    is_plain: bool

    def terms(self) -> list[Term]:
        terms = [("each", self.g, self.x)] if self.is_plain else score_terms(g=self.g, x=self.x, h=self.h)
        shared = [("sum", self.full_x), ("squares", self.full_x), ("squares", self.g), ("sum", self.y)]
        return [*terms, *shared, ("all", self.y, self.y)]


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def score_sites(
    model: MorphableModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    losses: Callable[[Tensor, Tensor], Tensor] = _cross_entropy,
) -> dict[str, SiteScore]:
    """Score every site of a network in eval mode; parameters, gradients, buffers and modes are unchanged.

    Args:
        model: the network, grown or not.
        batches: images (N, C, H, W), normalised, and targets; at least three images in all.
        losses: from output and target, the loss of every example or token.
    """
    sites = [slot.site for slot in model.all_slots()]
    moments = Moments()
    tensors: list[_SiteTensors] = []
    with _Recorder(model, sites, losses) as recorder, evaluating(model):
        for images, targets in batches:
            batch = group_images(len(images), first=moments.num_images, device=images.device)
            recorder.run(model, images, targets, batch)
            names = [recorder.site_tensors(site) for site in sites]
            assert names == (tensors or names), "modules share the same tensors in every batch"
            tensors = names
            terms = dict.fromkeys(term for site in tensors for term in site.terms())
            operands = dict.fromkeys(name for term in terms for name in term[1:])
            moments.add({name: recorder.tensor(name) for name in operands}, terms, batch)
    return _results(model.host, sites, tensors, moments)


def _results(
    host: nn.Module, sites: Sequence[Site], tensors: Sequence[_SiteTensors], moments: Moments
) -> dict[str, SiteScore]:
    ranks = _effective_ranks(moments, dict.fromkeys(at.y for at in tensors))
    rows = []
    for at in tensors:
        plain = moments.plain(g=at.g, x=at.x)
        score = torch.stack([plain, plain]) if at.is_plain else moments.score(g=at.g, x=at.x, h=at.h)
        rest = [plain, ranks[at.y], _variance(moments, at.full_x), moments.gradient_norm(at.g)]
        rows.append(torch.cat([score, torch.stack(rest)]))
    values = torch.stack(rows).tolist()  # the only synchronisation with the device
    return {
        site.name: SiteScore(
            score=score,
            score_error=None if at.is_plain else error,
            plain_score=plain,
            effective_rank=rank,
            narrowest_width=min((_num_outputs(layer) for _, layer in _linear_layers(host, site)), default=None),
            activation_variance=variance,
            gradient_norm=norm,
        )
        for site, at, (score, error, plain, rank, variance, norm) in zip(sites, tensors, values, strict=True)
    }


def _variance(moments: Moments, x: _TensorName) -> Tensor:
    """Variance over images, channels and positions, 0-dim."""
    sums = moments.total(("sum", x))
    count = moments.num_positions[x] * len(sums)
    return (moments.total(("squares", x)) / count - (sums.sum() / count).square()).clamp(min=0.0)


def _effective_ranks(moments: Moments, outputs: Iterable[_TensorName]) -> dict[_TensorName, Tensor]:
    """Effective rank of each output, 0-dim; one call of eigvalsh for all outputs with the same number of channels."""
    by_channels: dict[int, dict[_TensorName, Tensor]] = {}
    for y in outputs:
        mean = moments.total(("sum", y)) / moments.num_positions[y]
        covariance = moments.total(("all", y, y)) / moments.num_positions[y] - torch.outer(mean, mean)
        by_channels.setdefault(len(mean), {})[y] = covariance
    ranks: dict[_TensorName, Tensor] = {}
    for covariances in by_channels.values():
        eigenvalues = torch.linalg.eigvalsh(torch.stack(list(covariances.values()))).clamp(min=0.0)
        shares = eigenvalues / eigenvalues.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        ranks |= zip(covariances, torch.special.entr(shares).sum(1).exp(), strict=True)
    return ranks


def scoring_macs(model: MorphableModel) -> int:
    """Multiply-accumulates of the moments of all sites per image, without the forward and backward pass.

    An upper bound: tensors that sites share are counted for each site, but computed once.
    """
    total = 0
    for slot in model.all_slots():
        out, into = num_channels(slot.site.out_shape), num_channels(slot.site.in_shape)
        feature = _last_linear(model, slot.site)
        features = _num_inputs(model.get_submodule(feature)) if feature is not None else 0
        total += num_positions(slot.site.out_shape) * (
            out * into + out * features + into**2 + features**2 + features * into + out**2
        )
    return total


class _Recorder:
    """Context manager whose hooks record inputs of a network's modules, outputs and output gradients of its host's."""

    def __init__(
        self, model: MorphableModel, sites: Sequence[Site], losses: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self._model = model
        self._losses = losses
        self._features = {site.name: _last_linear(model, site) for site in sites}
        starts = [f"host.{site.start}" for site in sites if site.kind != "after"]
        self._readers = dict.fromkeys([*starts, *(name for name in self._features.values() if name is not None)])
        self._ends = dict.fromkeys(site.end for site in sites)
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def __enter__(self) -> _Recorder:
        # Registered last, so they see a module's output including the kernels.
        self._hooks = [
            *(
                self._model.get_submodule(name).register_forward_pre_hook(self._on_input(name))
                for name in self._readers
            ),
            *(self._model.host.get_submodule(name).register_forward_hook(self._on_output(name)) for name in self._ends),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def run(self, model: MorphableModel, images: Tensor, targets: Tensor, batch: GroupedBatch) -> None:
        """Run a forward and backward pass on the images of a batch, sorted and padded as in `batch`."""
        with torch.enable_grad(), unfrozen(model):
            losses = by_example(self._losses(model(images[batch.index]), targets[batch.index]))
            # Summed, so that each image's gradient is that of its own loss.
            loss = losses.where(batch.is_real, 0.0).sum()
            gradients = torch.autograd.grad(loss, list(self._outputs.values()))
        self._gradients = dict(zip(self._outputs, gradients, strict=True))

    def site_tensors(self, site: Site) -> _SiteTensors:
        """Names of the tensors needed at a site, valid for the last batch run."""
        y = _TensorName("output", site.end)
        full_x = y if site.kind == "after" else self._input_name(f"host.{site.start}")
        feature = self._features[site.name]
        return _SiteTensors(
            g=_TensorName("gradient", site.end),
            x=self._subsampled(full_x, like=y),
            h=self._subsampled(self._input_name(feature), like=y) if feature is not None else None,
            full_x=full_x,
            y=y,
            is_plain=site.kind == "parallel",
        )

    def tensor(self, name: _TensorName) -> Tensor:
        """A tensor of the last batch run, (N, C, H, W), (N, T, D) or (N, D)."""
        tensors = {"input": self._inputs, "output": self._outputs, "gradient": self._gradients}[name.what]
        tensor = tensors[name.module]
        return tensor[..., :: name.strides[0], :: name.strides[1]] if tensor.dim() == 4 else tensor

    def _input_name(self, module: str) -> _TensorName:
        """One name for equal tensors: the module that put it out, if recorded, else the first that reads it."""
        x = self._inputs[module]
        for end, copy in self._copies.items():
            if copy is x and x._version == 0:  # not modified in place
                return _TensorName("output", end)
        return _TensorName("input", next(name for name, tensor in self._inputs.items() if tensor is x))

    def _subsampled(self, x: _TensorName, *, like: _TensorName) -> _TensorName:
        """Tensor x at the positions of another tensor; only images may have others."""
        if self.tensor(x).dim() != 4:
            return x
        sizes = zip(self.tensor(x).shape[2:], self.tensor(like).shape[2:], strict=True)
        return x._replace(strides=tuple(-(-size // target) for size, target in sizes))

    def _on_input(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs[name] = args[0]

        return record

    def _on_output(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def record(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            y = self._outputs[name] = main_tensor(output)
            # A copy: a subsequent in-place ReLU must not modify the recorded tensor.
            copy = self._copies[name] = y.clone()
            return (copy, *output[1:]) if isinstance(output, tuple) else copy

        return record


def _linear_layers(host: nn.Module, site: Site) -> list[tuple[str, nn.Module]]:
    """The convolutions of a site's block by name, in order, except those of its shortcut; of tokens, linear layers."""
    kind = nn.Linear if len(site.out_shape) < 3 else nn.Conv2d
    return [
        (f"{site.block}.{name}" if name else site.block, module)
        for name, module in host.get_submodule(site.block).named_modules()
        if isinstance(module, kind) and _SHORTCUTS.isdisjoint(name.split("."))
    ]


def _num_inputs(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _num_outputs(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _last_linear(model: MorphableModel, site: Site) -> str | None:
    """Name of the last convolution, or linear layer, of the site's block, or of the last copy behind it.

    None at `parallel` sites, and where there is none.
    """
    names = [name for name, _ in _linear_layers(model.host, site) if name in site.convs]
    if not names or site.kind == "parallel":
        return None
    slot = model.slot(site.name)
    for graft in reversed(slot.grafts):
        kernel = slot.kernel(graft)
        if isinstance(kernel, CopiedBlocks) and kernel.origins[-1] == site.block:
            (path,) = (name for name, module in model.named_modules() if module is kernel.blocks[-1])
            return f"{path}{names[-1].removeprefix(site.block)}"
    return f"host.{names[-1]}"


def health(scores: Sequence[tuple[Site, SiteScore]]) -> dict[str, float | None]:
    """Health of each site: min(1, median score of the other sites of its kind / its own score).

    1: its score is at most the others' median; 1/3: it is three times the median. The median is clamped to at least
    the others' median standard error, so that a site must also stand out from noise around 0. None for the only site
    of its kind.
    """
    result: dict[str, float | None] = {}
    for site, own in scores:
        others = [score for other, score in scores if other.kind == site.kind and other.name != site.name]
        if not others:
            result[site.name] = None
            continue
        typical = max(median(score.score for score in others), median(score.score_error or 0.0 for score in others))
        result[site.name] = 1.0 if own.score <= 0.0 else min(1.0, max(0.0, typical) / own.score)
    return result
