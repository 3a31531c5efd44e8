"""Networks of the user's own, which a plugin has registered with `@esper.model("name")`, or that `fit` was given."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from esper import plugins
from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError, one_line

__all__ = ["build", "describe", "try_out"]

_made: WeakSet[nn.Module] = WeakSet()
"""The networks that `build` has returned."""


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Call the factory with `model.options`, and with the spec if it has a parameter `spec`; see `build_host`.

    A module instead of a factory is copied, with the weights that it has.

    Raises:
        ConfigError: there is no such network, it cannot be copied, the options do not suit it, or its lazy layers
            cannot take the data.
    """
    made = plugins.find("model", config.name)
    if made is None:
        raise ConfigError(f"model.name={config.name}: no plugin has registered it; name its module in plugins=[MODULE]")
    network: Any
    if isinstance(made, nn.Module):
        try:
            network = copy.deepcopy(made)
        except Exception as error:  # it is the user's, and may raise anything
            raise ConfigError(
                f"model.name={config.name}: a module is copied, but this one cannot be ({one_line(error)}); give its "
                "class, or a function that makes it"
            ) from None
    else:
        network = plugins.call("model", made, setting=f"model.name={config.name}", options=config.options, spec=spec)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model.name={config.name}: gave a {type(network).__name__}; it must make a torch.nn.Module")
    if network in _made:
        raise ConfigError(f"model.name={config.name}: gave the same network twice; it must make a new one each time")
    _made.add(network)
    _require_tensors(network, config.name)
    _initialise_lazy(network, config.name, spec)
    if not any(p.requires_grad for p in network.parameters()):
        raise ConfigError(f"model.name={config.name}: has no parameters to train")
    return network


def describe(_config: ModelConfig, spec: DataSpec, _network: nn.Module) -> dict[str, Any]:
    """Shape of the inputs and number of outputs."""
    return {"inputs": list(spec.inputs), "num_outputs": spec.num_outputs}


def try_out(network: nn.Module, name: str, spec: DataSpec) -> Tensor:
    """What a network gives for two examples of ones.

    Args:
        network: in eval mode.
        name: of the network, for the message.
        spec: inputs and outputs that the data ask for.

    Raises:
        ConfigError: it does not map the data's inputs to one tensor, or has too few outputs.
    """
    output = _run(network, name, spec)
    if not isinstance(output, Tensor) or output.shape[:1] != (2,):
        found = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(
            f"model.name={name}: gives {found} for 2 examples; it must give one tensor, (2, …); return the one to "
            "learn from alone"
        )
    if output.ndim > 1 and output.shape[-1] < spec.num_outputs:
        raise ConfigError(
            f"model.name={name}: has {output.shape[-1]} outputs, but the data have {spec.num_outputs}; a parameter "
            "named spec of its factory gets spec.num_outputs"
        )
    return output


def _require_tensors(network: nn.Module, name: str) -> None:
    """Refuse a network without weights, or with a state that checkpoints cannot hold."""
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"model.name={name}: its state {key!r} is a {type(value).__name__} (get_extra_state); checkpoints hold "
                "tensors alone: register it as a buffer"
            )
        if value.is_meta:
            raise ConfigError(f"model.name={name}: is on the meta device, without weights; make it on the CPU")


def _initialise_lazy(network: nn.Module, name: str, spec: DataSpec) -> None:
    """Give lazy layers, such as `nn.LazyLinear`, the shapes that the data ask for."""
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        was_training = network.training
        _run(network.eval(), name, spec)
        network.train(was_training)


@torch.no_grad()
def _run(network: nn.Module, name: str, spec: DataSpec) -> Any:
    reference = next(network.parameters())
    try:
        # Not zeros: as ids of tokens they are often padding, and a sequence of nothing else has length 0.
        return network(torch.ones(2, *spec.inputs, dtype=spec.dtype, device=reference.device))
    except Exception as error:  # it is the user's, and may raise anything
        problem = f"{type(error).__name__}: {one_line(error)}"
    dtype = str(spec.dtype).removeprefix("torch.")
    hint = (
        "; give an embedding x.long().clamp(0, SIZE - 1), and set dataset.normalize=false"
        if "'indices'" in problem
        else ""
    )
    raise ConfigError(f"model.name={name}: cannot take inputs of shape {spec.inputs}, {dtype}: {problem}{hint}")
