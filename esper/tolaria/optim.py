"""The optimizer, keyed by parameter name, and how it follows growth.

State is made as zeros when a parameter is adopted: a resumed run has the same tensors as one that never stopped, and
fused implementations never meet a group in which some state is missing. A newborn's parameters get groups of their
own; the host's momentum stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from esper.configs import OptimizationConfig
from esper.errors import CheckpointError, SurgeryError
from esper.tolaria.schedule import newborn_factor

__all__ = [
    "adopt",
    "build_optimizer",
    "check_membership",
    "load_state_tensors",
    "release",
    "set_learning_rates",
    "state_tensors",
]

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def build_optimizer(config: OptimizationConfig, parameters: NamedParameters) -> Optimizer:
    """Make the optimizer for the host's parameters; fused where they are on CUDA."""
    named = list(parameters)
    fused = named[0][1].is_cuda
    groups = _groups(config, named, born_step=None)
    optimizer: Optimizer
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        optimizer = SGD(groups, lr=0.0, momentum=config.momentum, nesterov=nesterov, fused=fused)
    else:
        optimizer = AdamW(groups, lr=0.0, fused=fused, capturable=fused)
    for group in optimizer.param_groups:
        _make_state(optimizer, group)
    return optimizer


def adopt(
    optimizer: Optimizer,
    config: OptimizationConfig,
    parameters: NamedParameters,
    *,
    born_step: int,
    output_scale: nn.Parameter | None = None,
    output_scale_rate: float = 1.0,
    decayed: bool = True,
) -> None:
    """Add newborn parameters in groups of their own, with zero state.

    Args:
        optimizer: what follows.
        config: the host's weight decay.
        parameters: the newborn's, by name.
        born_step: optimizer step before which they were attached.
        output_scale: the one of them that scales the newborn's output.
        output_scale_rate: factor on the learning rate of it.
        decayed: whether its weights decay like the host's.
    """
    named = list(parameters)
    own_rate = output_scale is not None and output_scale_rate != 1.0
    scales = [item for item in named if own_rate and item[1] is output_scale]
    rest = [item for item in named if not (own_rate and item[1] is output_scale)]
    for rate, members in ((1.0, rest), (output_scale_rate, scales)):
        for group in _groups(config, members, born_step=born_step):
            if not decayed:
                group["weight_decay"] = 0.0
            optimizer.add_param_group(group | {"rate": rate})
            _make_state(optimizer, optimizer.param_groups[-1])


def release(optimizer: Optimizer, parameters: NamedParameters) -> None:
    """Forget parameters that left the model; all others keep their state and order."""
    gone = {id(parameter) for _, parameter in parameters}
    for group in optimizer.param_groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        for p in group["params"]:
            if id(p) in gone:
                optimizer.state.pop(p, None)
        group["params"] = [group["params"][i] for i in kept]
        group["names"] = [group["names"][i] for i in kept]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def set_learning_rates(optimizer: Optimizer, rate: float, *, step: int, newborn_warmup_steps: int) -> None:
    """Give every group its learning rate for a step: the host's, times the group's own factor and warm-up."""
    for group in optimizer.param_groups:
        newborn = newborn_factor(step=step, born_step=group["born_step"], warmup_steps=newborn_warmup_steps)
        value = rate * newborn * group["rate"]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = value
        elif value != group["lr_on_device"]:  # a captured step reads it from the device
            group["lr"].fill_(value)
            group["lr_on_device"] = value


def check_membership(optimizer: Optimizer, model: nn.Module) -> None:
    """Make sure that every parameter of the model is in exactly one group, and nothing else is.

    Raises:
        SurgeryError: one is missing, doubled or foreign; such a parameter would silently never train.
    """
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p): name for name, p in model.named_parameters()}
    if len(held) != len(set(held)) or set(held) != set(wanted):
        missing = [name for key, name in wanted.items() if key not in held]
        raise SurgeryError(
            f"optimizer and model disagree: {len(held)} parameters held, {len(wanted)} in the model"
            + (f"; missing {', '.join(missing)}" if missing else "")
        )


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>|<state name>` → tensor."""
    return {f"{name}|{key}": value for name, p in _named(optimizer) for key, value in optimizer.state[p].items()}


def load_state_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Copy saved state in by name; strides stay those of the parameters.

    Raises:
        CheckpointError: names or shapes differ.
    """
    mine = state_tensors(optimizer)
    if mine.keys() != tensors.keys():
        raise CheckpointError(f"optimizer state differs: {_difference(mine.keys(), tensors.keys())}")
    for key, value in mine.items():
        if value.shape != tensors[key].shape:
            raise CheckpointError(f"optimizer state {key!r} has shape {tuple(tensors[key].shape)}")
        value.copy_(tensors[key])


def _difference(mine: Iterable[str], theirs: Iterable[str]) -> str:
    a, b = set(mine), set(theirs)
    return (
        f"{len(a - b)} missing (e.g. {min(a - b, default='-')}), {len(b - a)} unknown (e.g. {min(b - a, default='-')})"
    )


def _groups(
    config: OptimizationConfig, named: list[tuple[str, nn.Parameter]], *, born_step: int | None
) -> list[dict[str, Any]]:
    # Norms, biases and gains are vectors; decaying them does harm (arXiv:1812.01187).
    groups = []
    for decay, chosen in (
        (config.weight_decay, [item for item in named if item[1].dim() > 1]),
        (0.0, [item for item in named if item[1].dim() <= 1]),
    ):
        if chosen:
            names, parameters = zip(*chosen, strict=True)
            groups.append(
                {
                    "params": list(parameters),
                    "names": list(names),
                    "weight_decay": decay,
                    "born_step": born_step,
                    "rate": 1.0,
                }
            )
    return groups


def _named(optimizer: Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _make_state(optimizer: Optimizer, group: dict[str, Any]) -> None:
    if group["fused"]:
        group["lr"], group["lr_on_device"] = torch.zeros((), device=group["params"][0].device), 0.0
    for p in group["params"]:
        if isinstance(optimizer, SGD):
            optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)} if group["momentum"] else {}
        else:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
