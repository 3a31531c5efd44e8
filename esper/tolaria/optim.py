"""The optimizer, keyed by parameter name; growth adds and removes parameters.

State is created as zeros when a parameter is added: a resumed run has the same tensors as an uninterrupted one, and
fused implementations never see a group with missing state. A newborn's parameters get groups of their own, so the
host's momentum is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.configs import OptimizationConfig
from esper.configs.optimization import OPTIMIZERS
from esper.errors import CheckpointError, ConfigError, SurgeryError, one_line
from esper.tolaria.eager_optimizer import eager
from esper.tolaria.muon import MuonAndAdamW, inner_matrices
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
    "undecayed_parameters",
]

NamedParameters = Iterable[tuple[str, nn.Parameter]]


_BUFFERS = {
    "adadelta": ("square_avg", "acc_delta"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamax": ("exp_avg", "exp_inf"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "nadam": ("exp_avg", "exp_avg_sq"),
    "radam": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("square_avg",),
}
"""State that is shaped like the parameter and begins as zeros, beside a step count."""


def build_optimizer(config: OptimizationConfig, model: nn.Module) -> Optimizer:
    """Build the optimizer of a network's parameters; on CUDA one whose step can be captured, if there is one.

    Raises:
        ConfigError: torch refuses an option, or the optimizer trains nothing in this network.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    name, on_cuda = config.optimizer, named[0][1].is_cuda
    matrices = inner_matrices(model) if name == "muon" else []
    if name == "muon" and not matrices:
        raise ConfigError(
            "optimization.optimizer=muon: trains matrices inside of a network, of which this one has none (kernels of "
            "convolutions are none); use adamw"
        )
    groups = _groups(config, named, undecayed=undecayed_parameters(model), matrices=matrices)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.optimizer_options.items()}
    try:
        if name == "muon":
            optimizer: Optimizer = _muon(groups, options, on_cuda=on_cuda)
        else:
            made: Any = eager(getattr(torch.optim, OPTIMIZERS[name].class_name))
            optimizer = made(groups, lr=0.0, **_implementation(config, on_cuda=on_cuda), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimization.optimizer_options={config.optimizer_options}: {one_line(error)}") from None
    for group in optimizer.param_groups:
        _make_state(optimizer, config, group)
    return optimizer


def undecayed_parameters(
    model: nn.Module, copies: Iterable[tuple[nn.Parameter, nn.Parameter]] = ()
) -> set[nn.Parameter]:
    """Parameters that the method `no_weight_decay` of a module in the network names, as in timm, and their copies.

    Args:
        model: the network.
        copies: pairs of a parameter and a copy, in order of birth.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    found: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            paths = (f"{prefix}.{name}" if prefix else name for name in listed())
            found.update(named[path] for path in paths if path in named)
    for source, copy in copies:
        if source in found:
            found.add(copy)
    return found


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
    undecayed: Collection[nn.Parameter] = (),
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
        undecayed: parameters that it spares, beside norms and biases.
    """
    named = list(parameters)
    matrices = [p for _, p in named if p.dim() == 2]
    is_apart = output_scale is not None and output_scale_lr_factor != 1.0
    scales = [item for item in named if is_apart and item[1] is output_scale]
    rest = [item for item in named if not (is_apart and item[1] is output_scale)]
    for lr_factor, members in ((1.0, rest), (output_scale_lr_factor, scales)):
        for group in _groups(config, members, undecayed=undecayed, matrices=matrices):
            if not decayed:
                group["weight_decay"] = 0.0
            group |= {"born_step": born_step, "warmup_steps": warmup_steps, "lr_factor": lr_factor}
            optimizer.add_param_group(group)
            _make_state(optimizer, config, optimizer.param_groups[-1])


def copy_state(optimizer: Optimizer, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Give parameters the optimizer state of others of the same shape: pairs of (from, to)."""
    for source, target in pairs:
        for key, value in optimizer.state.get(source, {}).items():  # frozen parameters have none
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
    """Check that the groups hold every parameter of the model that is not frozen exactly once, and no other.

    Raises:
        SurgeryError: they do not; a parameter in no group would silently never be trained.
    """
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
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


def _groups(
    config: OptimizationConfig,
    named: list[tuple[str, nn.Parameter]],
    *,
    undecayed: Collection[nn.Parameter],
    matrices: list[nn.Parameter],
) -> list[dict[str, Any]]:
    """Parameters by weight decay and, with Muon, by optimizer."""
    spared = {id(p) for p in undecayed}
    inner = {id(p) for p in matrices} - spared
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, p in named:
        # Norms, biases and gains are vectors; decaying them does harm (arXiv:1812.01187).
        is_decayed = config.decay_norms_and_biases or (p.dim() > 1 and id(p) not in spared)
        uses_muon = config.optimizer == "muon" and id(p) in inner
        group = groups.setdefault(
            (is_decayed, uses_muon),
            {
                "params": [],
                "names": [],
                "weight_decay": config.weight_decay if is_decayed else 0.0,
                "born_step": None,
                "warmup_steps": 0,
                "lr_factor": 1.0,
                "uses_muon": uses_muon,
            },
        )
        group["params"].append(p)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _named(optimizer: Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _implementation(config: OptimizationConfig, *, on_cuda: bool) -> dict[str, Any]:
    """Arguments that choose torch's implementation, the fused one or one that can be captured; SGD's settings."""
    if config.optimizer == "sgd":
        return {"fused": on_cuda, "momentum": config.momentum, "nesterov": config.nesterov and config.momentum > 0}
    info = OPTIMIZERS[config.optimizer]
    if info.is_fused:
        return {"fused": on_cuda, "capturable": on_cuda}
    return {"foreach": True, "capturable": True} if on_cuda and info.is_capturable else {}


def _muon(groups: list[dict[str, Any]], options: dict[str, Any], *, on_cuda: bool) -> MuonAndAdamW:
    """One learning rate suits both if Muon's steps have the size of AdamW's (arXiv:2502.16982)."""
    adamw = {key: value for key, value in options.items() if key in OPTIMIZERS["adamw"].options}
    muon = {key: value for key, value in options.items() if key not in adamw}
    return MuonAndAdamW(
        groups,
        muon={"adjust_lr_fn": "match_rms_adamw", **muon},
        adamw={"fused": on_cuda, "capturable": on_cuda, **adamw},
    )


def _make_state(optimizer: Optimizer, config: OptimizationConfig, group: dict[str, Any]) -> None:
    device = group["params"][0].device
    if device.type == "cuda" and OPTIMIZERS[config.optimizer].is_capturable:
        group["lr"], group["lr_on_device"] = torch.zeros((), device=device), 0.0
    for p in group["params"]:
        optimizer.state[p] = _initial_state(config.optimizer, group, p)


def _initial_state(name: str, group: dict[str, Any], p: nn.Parameter) -> dict[str, Tensor]:
    """The state that torch makes in the first step of a parameter."""
    if name == "sgd" or group["uses_muon"]:
        return {"momentum_buffer": torch.zeros_like(p)} if group["momentum"] or group["uses_muon"] else {}
    device = p.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    state = {"step": torch.zeros((), dtype=torch.float32, device=device)}
    if name == "adagrad":
        return state | {"sum": torch.full_like(p, group["initial_accumulator_value"])}
    if name == "adafactor" and p.dim() > 1:
        return state | {"row_var": torch.zeros_like(p[..., :1]), "col_var": torch.zeros_like(p[..., :1, :])}
    if name == "adafactor":
        return state | {"variance": torch.zeros_like(p)}
    if name == "nadam":
        state["mu_product"] = torch.ones((), dtype=torch.float32, device=device)
    buffers = [*_BUFFERS["adamw" if name == "muon" else name]]
    buffers += ["max_exp_avg_sq"] * bool(group.get("amsgrad"))
    buffers += ["grad_avg"] * bool(group.get("centered"))
    buffers += ["momentum_buffer"] * (name == "rmsprop" and group["momentum"] > 0)
    return state | {buffer: torch.zeros_like(p) for buffer in buffers}
