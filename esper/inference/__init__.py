"""Use a trained network: load it, predict, evaluate, export; without the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.inference.loading import load
    from esper.inference.network import Network, Prediction

__all__ = ["Network", "Prediction", "load"]


def __getattr__(name: str) -> Any:
    # Lazy: the parser of the command line must not import torch.
    if name not in __all__:
        raise AttributeError(f"module 'esper.inference' has no attribute {name!r}")
    from esper.inference import loading, network

    return getattr(loading if name == "load" else network, name)
