"""Load tensors that were read from a file into a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["load_weights"]


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """As `load_state_dict`, of tensors that this version of the network has written.

    Files hold no versions of modules, and a module that finds none takes the tensors for those of its first version:
    torchvision's MNASNet then refuses them.

    Raises:
        RuntimeError: they are not those of the network.
    """
    state = OrderedDict(tensors)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)
