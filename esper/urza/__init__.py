"""Urza: the blueprint library. `catalogue` holds the blueprints, `store` the database of declared ones."""

from __future__ import annotations

from esper.urza.catalogue import CATALOGUE, allowed, declare, get
from esper.urza.kernel import Blueprint, Kernel, Shape

__all__ = ["CATALOGUE", "Blueprint", "Kernel", "Shape", "allowed", "declare", "get"]
