"""Where version 0.1.0 had `esper.sweep.job`: jobs that it submitted hold this name, or run this module."""

from __future__ import annotations

import sys
from pathlib import Path

from esper.sweep.job import MemberJob

__all__ = ["MemberJob"]

if __name__ == "__main__":
    MemberJob(Path(sys.argv[1]))()
