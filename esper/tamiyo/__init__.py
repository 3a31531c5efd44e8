"""Tamiyo: the controller. Policies, the judge's test, client and service."""

from __future__ import annotations

from esper.tamiyo.client import LocalTamiyo, TamiyoClient
from esper.tamiyo.judge import Verdict, judge, significance_of

__all__ = ["LocalTamiyo", "TamiyoClient", "Verdict", "judge", "significance_of"]
