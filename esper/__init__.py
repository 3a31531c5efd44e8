"""Esper: train a network while its architecture grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper import plugins

if TYPE_CHECKING:
    from esper.inference import load
    from esper.train import fit

__all__ = ["__version__", "blueprint", "dataset", "fit", "load", "model", "policy", "task"]

__version__ = "0.1.0"

model = plugins.decorator("model")
dataset = plugins.decorator("dataset")
task = plugins.decorator("task")
blueprint = plugins.decorator("blueprint")
policy = plugins.decorator("policy")


def __getattr__(name: str) -> Any:
    # Lazy: `import esper` must not import torch.
    if name == "fit":
        from esper.train import fit

        return fit
    if name == "load":
        from esper.inference import load

        return load
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
