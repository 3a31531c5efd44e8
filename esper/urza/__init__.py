"""Urza: the blueprint library. What is built in lies in `catalogue`, what is declared in a `store`."""

from __future__ import annotations

from esper.urza.catalogue import CATALOGUE, declare, fitting, get
from esper.urza.kernel import Blueprint, Kernel, Shape

__all__ = ["CATALOGUE", "Blueprint", "Kernel", "Shape", "declare", "fitting", "get"]
