"""Muon for the matrices inside of a network, AdamW for everything else, as one optimizer.

Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonAndAdamW", "inner_matrices"]


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon is for: neither embeddings nor the last linear layer."""
    modules = list(model.modules())
    outer = [module.weight for module in modules if isinstance(module, nn.Embedding)]
    outer += [module.weight for module in modules if isinstance(module, nn.Linear)][-1:]
    return [
        p for p in model.parameters() if p.requires_grad and p.dim() == 2 and all(p is not other for other in outer)
    ]


class MuonAndAdamW(Optimizer):
    """Muon for the parameter groups whose `uses_muon` is true, AdamW for the others; both with the groups' settings.

    Args:
        groups: parameter groups.
        muon: options of Muon.
        adamw: options of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], *, muon: dict[str, Any], adamw: dict[str, Any]) -> None:
        placeholder = [nn.Parameter(torch.zeros(1, 1))]  # an optimizer cannot begin without a group
        self._parts: dict[bool, Optimizer] = {True: Muon(placeholder, **muon), False: AdamW(placeholder, **adamw)}
        for part in self._parts.values():
            part.param_groups.clear()
        super().__init__(groups, {})
        for part in self._parts.values():
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the defaults of its optimizer."""
        part = self._parts[param_group["uses_muon"]]
        part.add_param_group(param_group)
        self.param_groups.append(part.param_groups.pop())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step; reads nothing from the device.

        Muon takes no learning rate on the device. Its step is linear in it, so a step of rate 1 is scaled.
        """
        assert closure is None
        self._parts[False].param_groups = [group for group in self.param_groups if not group["uses_muon"]]
        self._parts[False].step()
        groups = [group for group in self.param_groups if group["uses_muon"]]
        before = [[p.clone() for p in group["params"]] for group in groups]
        self._parts[True].param_groups = [{**group, "lr": 1.0} for group in groups]
        self._parts[True].step()
        for group, old in zip(groups, before, strict=True):
            rate = group["lr"] if isinstance(group["lr"], Tensor) else float(group["lr"])
            steps = torch._foreach_sub(group["params"], old)
            torch._foreach_mul_(steps, rate)
            torch._foreach_copy_(group["params"], old)
            torch._foreach_add_(group["params"], steps)
