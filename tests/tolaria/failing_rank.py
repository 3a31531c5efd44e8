"""A rank that fails while the other one goes on: whether it is still watched when its error leaves the watchdog."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time

from esper.configs import RanksConfig
from esper.tolaria.ranks import init_ranks


def main() -> None:
    """Print the names of this process's threads."""
    ranks = init_ranks()
    with contextlib.suppress(ValueError), ranks.watchdog(RanksConfig()):
        if ranks.rank == 1:
            raise ValueError
        time.sleep(3)  # the watchdogs exchange every two seconds
        end()
    end()


def end() -> None:
    """Print, and end without waiting for the other rank."""
    sys.stdout.write(json.dumps([thread.name for thread in threading.enumerate()]) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
