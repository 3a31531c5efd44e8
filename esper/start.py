"""The command `esper-train`: shows at once that it starts. The rest is in `esper.train`, which takes time to import."""

from __future__ import annotations

from esper import first_line
from esper.openmp import sleep_while_waiting

__all__ = ["main"]


def main() -> None:
    """Run `esper.train.main`."""
    first_line.begin("esper-train: starting")
    sleep_while_waiting()
    try:
        from esper.train import main as train

        train()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        first_line.end()
