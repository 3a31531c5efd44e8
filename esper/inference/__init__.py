"""Use a trained network: load it, predict, evaluate, export; without the trainer."""

from __future__ import annotations

from esper.inference.loading import load
from esper.inference.network import Network, Prediction

__all__ = ["Network", "Prediction", "load"]
