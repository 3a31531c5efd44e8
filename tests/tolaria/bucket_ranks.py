"""The ranks of `test_buckets.py`: each prints, as one line of JSON, what its gradients became."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.errors import RankError
from esper.tolaria.buckets import GradientBuckets
from esper.tolaria.ranks import Ranks, init_ranks


class Network(nn.Module):
    """Convolutions in channels-last, a frozen layer, a layer that is not always used; it grows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3)
        self.frozen = nn.Conv2d(7, 7, 3).requires_grad_(False)
        self.sometimes = nn.Conv2d(7, 7, 3, padding=1)
        self.grown = nn.Sequential()
        self.head = nn.Linear(7, 5)
        self.uses_all = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.stem(x))
        x = self.grown(self.sometimes(x) if self.uses_all else x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def main() -> None:
    ranks = init_ranks()
    torch.manual_seed(0)
    model = Network().to(memory_format=torch.channels_last)
    buckets = GradientBuckets(model, ranks)
    buckets.bucket_bytes, buckets.outer_bytes = 300, 20
    found: dict[str, Any] = {}
    for name, change in CHANGES.items():
        change(model, buckets)
        found[name] = [step(model, buckets, ranks, seed=seed) for seed in range(2)]
    sys.stdout.write(json.dumps(found | {"problem": unequal_order(model, buckets, ranks)}))


def _grow(model: Network, buckets: GradientBuckets) -> None:
    model.grown.append(nn.Conv2d(7, 7, 1))
    buckets.forget()


def _use_all(model: Network, _: GradientBuckets) -> None:
    model.uses_all = True


def _cull(model: Network, buckets: GradientBuckets) -> None:
    model.grown = nn.Sequential()
    buckets.forget()


CHANGES: dict[str, Callable[[Network, GradientBuckets], None]] = {
    "first": lambda model, buckets: None,
    "grown": _grow,
    "used without notice": _use_all,
    "culled": _cull,
}


def step(model: Network, buckets: GradientBuckets, ranks: Ranks, *, seed: int) -> dict[str, Any]:
    """A step in two parts; the sums of gradients are compared with those of gathered ones."""
    torch.manual_seed(10 * seed + ranks.rank)
    parts = torch.randn(2, 4, 3, 9, 9)
    everyone = ranks.gather([gradients(model, part) for part in parts])
    names = {id(p): name for name, p in model.named_parameters()}
    model.zero_grad()
    model(parts[0]).square().sum().backward()
    with buckets.last_backward(overlapped=True):
        model(parts[1]).square().sum().backward()
        num_early = len(buckets._waits)
    buckets.reduce()
    sums = {name: sum(part[name] for rank in everyone for part in rank) for name in everyone[0][0]}
    with_gradients = {name: p for name, p in model.named_parameters() if p.grad is not None}
    result = {
        "with gradient": sorted(with_gradients),
        "expected": sorted(sums),
        "error": max(
            float((p.grad - sums[name]).abs().max() / sums[name].abs().max()) for name, p in with_gradients.items()
        ),
        "strides": all(p.grad.stride() == p.stride() for p in with_gradients.values()),
        "buckets": [[names[id(p)] for p in bucket.views] for bucket in buckets._buckets],
        "early": num_early,
        "hooks": sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()),
    }
    model.zero_grad()
    return result


def gradients(model: Network, images: Tensor) -> dict[str, Tensor]:
    used = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(model(images).square().sum(), list(used.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(used, found, strict=True) if gradient is not None}


def unequal_order(model: Network, buckets: GradientBuckets, ranks: Ranks) -> str:
    """The error if a rank uses another parameter than the other."""
    buckets.forget()
    model.uses_all = ranks.is_rank0
    with buckets.last_backward(overlapped=True):
        model(torch.randn(4, 3, 9, 9)).sum().backward()
    try:
        buckets.reduce()
    except RankError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
