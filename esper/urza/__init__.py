"""Urza: the blueprint library."""

from __future__ import annotations

from esper.urza.catalogue import CATALOGUE, fitting, get
from esper.urza.kernel import Blueprint, Kernel, Shape

__all__ = ["CATALOGUE", "Blueprint", "Kernel", "Shape", "fitting", "get"]
