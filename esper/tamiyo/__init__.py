"""Tamiyo: the controller. Policies, the judge, and the client."""

from __future__ import annotations

from esper.tamiyo.client import LocalTamiyo, TamiyoClient
from esper.tamiyo.judge import Verdict, judge, spend

__all__ = ["LocalTamiyo", "TamiyoClient", "Verdict", "judge", "spend"]
