"""The optimizer, keyed by parameter name; growth adds and removes parameters.

State is created as zeros when a parameter is added: a resumed run has the same tensors as an uninterrupted one, and
fused implementations never see a group with missing state. A newborn's parameters get groups of their own, so the
host's momentum is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from esper.configs import OptimizationConfig
from esper.errors import CheckpointError, SurgeryError
from esper.tolaria.schedule import newborn_warmup

__all__ = [
    "add_parameters",
    "build_optimizer",
    "check_membership",
    "copy_state",
    "is_alike",
    "load_state_tensors",
    "remove_parameters",
    "set_learning_rates",
    "state_tensors",
]

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def build_optimizer(config: OptimizationConfig, parameters: NamedParameters) -> Optimizer:
    """Build the optimizer of the host's parameters; fused if they are on CUDA."""
    named = list(parameters)
    fused = named[0][1].is_cuda
    groups = _groups(config, named)
    optimizer: Optimizer
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        optimizer = SGD(groups, lr=0.0, momentum=config.momentum, nesterov=nesterov, fused=fused)
    else:
        optimizer = AdamW(groups, lr=0.0, fused=fused, capturable=fused)
    for group in optimizer.param_groups:
        _make_state(optimizer, group)
    return optimizer


def add_parameters(
    optimizer: Optimizer,
    config: OptimizationConfig,
    parameters: NamedParameters,
    *,
    born_step: int,
    warmup_steps: int = 0,
    output_scale: nn.Parameter | None = None,
    output_scale_lr_factor: float = 1.0,
    decayed: bool = True,
) -> None:
    """Add newborn parameters in groups of their own, with zero state.

    Args:
        optimizer: where to add them.
        config: the host's weight decay.
        parameters: the newborn's, by name.
        born_step: optimizer step before which they were attached.
        warmup_steps: length of their own learning rate warm-up.
        output_scale: the parameter among them that scales the newborn's output.
        output_scale_lr_factor: factor on its learning rate.
        decayed: whether weight decay applies to them as to the host's.
    """
    named = list(parameters)
    is_apart = output_scale is not None and output_scale_lr_factor != 1.0
    scales = [item for item in named if is_apart and item[1] is output_scale]
    rest = [item for item in named if not (is_apart and item[1] is output_scale)]
    for lr_factor, members in ((1.0, rest), (output_scale_lr_factor, scales)):
        for group in _groups(config, members):
            if not decayed:
                group["weight_decay"] = 0.0
            group |= {"born_step": born_step, "warmup_steps": warmup_steps, "lr_factor": lr_factor}
            optimizer.add_param_group(group)
            _make_state(optimizer, optimizer.param_groups[-1])


def copy_state(optimizer: Optimizer, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Give parameters the optimizer state of others of the same shape: pairs of (from, to)."""
    for source, target in pairs:
        for key, value in optimizer.state[source].items():
            optimizer.state[target][key].copy_(value)


def remove_parameters(optimizer: Optimizer, parameters: NamedParameters) -> None:
    """Remove parameters that have left the model; all others keep their state and order."""
    gone = {id(parameter) for _, parameter in parameters}
    for group in optimizer.param_groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        for p in group["params"]:
            if id(p) in gone:
                optimizer.state.pop(p, None)
        group["params"] = [group["params"][i] for i in kept]
        group["names"] = [group["names"][i] for i in kept]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def set_learning_rates(optimizer: Optimizer, learning_rate: float, *, step: int) -> None:
    """Set every group's learning rate for a step: the host's, times the group's own warm-up and factor."""
    for group in optimizer.param_groups:
        warmup = newborn_warmup(step=step, born_step=group["born_step"], warmup_steps=group["warmup_steps"])
        value = learning_rate * warmup * group["lr_factor"]
        if not isinstance(group["lr"], Tensor):
            group["lr"] = value
        elif value != group["lr_on_device"]:  # a captured step reads it from the device
            group["lr"].fill_(value)
            group["lr_on_device"] = value


def check_membership(optimizer: Optimizer, model: nn.Module) -> None:
    """Check that the groups hold every parameter of the model exactly once, and no other.

    Raises:
        SurgeryError: they do not; a parameter in no group would silently never be trained.
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
        CheckpointError: names, shapes or types differ.
    """
    mine = state_tensors(optimizer)
    if mine.keys() != tensors.keys():
        raise CheckpointError(f"optimizer state differs: {_difference(mine.keys(), tensors.keys())}")
    for key, value in mine.items():
        if not is_alike(value, tensors[key]):
            raise CheckpointError(
                f"optimizer state {key!r} has shape {tuple(tensors[key].shape)} and type {tensors[key].dtype}"
            )
        value.copy_(tensors[key])


def is_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and type."""
    return a.shape == b.shape and a.dtype == b.dtype


def _difference(mine: Iterable[str], theirs: Iterable[str]) -> str:
    a, b = set(mine), set(theirs)
    return (
        f"{len(a - b)} missing (e.g. {min(a - b, default='-')}), {len(b - a)} unknown (e.g. {min(b - a, default='-')})"
    )


def _groups(config: OptimizationConfig, named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    groups = []
    # Norms, biases and gains are vectors; decaying them does harm (arXiv:1812.01187).
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
                    "born_step": None,
                    "warmup_steps": 0,
                    "lr_factor": 1.0,
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
