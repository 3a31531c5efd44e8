"""`esper-train` up to its first step, with a timestamp of each phase; run by `startup.py`.

    python benchmarks/startup_child.py MARKS_FILE [OVERRIDE ...]

Functions are wrapped only after the command has imported their modules, so that the order of imports does not change.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

marks: dict[str, Any] = {}


def main() -> None:
    """Run the command."""
    file = Path(sys.argv.pop(1))
    sys.argv[0] = "esper-train"
    from esper import train

    app, loading = train.app, train._loading

    def watched(cfg: Any) -> float | None:
        marks["composed"] = time.time()
        return app(cfg)

    @contextlib.contextmanager
    def watched_loading() -> Iterator[None]:
        with loading():
            yield
        marks["imported"] = time.time()
        _watch(file)

    train.app, train._loading = functools.wraps(app)(watched), watched_loading
    marks["main"] = time.time()
    train.main()


def _watch(file: Path) -> None:
    from esper import build
    from esper.tolaria.loop import TrainingLoop
    from esper.tolaria.step import TrainStep

    build.load_splits = _timed("data", build.load_splits)  # type: ignore[attr-defined]
    build._build_model = _timed("network", build._build_model)
    initialize, step = TrainingLoop.initialize, TrainStep.forward_backward_update

    def initialized(self: TrainingLoop) -> None:
        initialize(self)
        marks["opened"] = time.time()

    def stepped(self: TrainStep, **position: int) -> None:
        step(self, **position)
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        marks["stepped"] = time.time()
        marks["modules"] = sorted(sys.modules)
        file.write_text(json.dumps(marks))
        os._exit(0)  # the rest of the training is not measured

    TrainingLoop.initialize = initialized  # type: ignore[method-assign]
    TrainStep.forward_backward_update = stepped  # type: ignore[method-assign]


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.time()
        result = function(*args, **kwargs)
        marks[name] = (started, time.time())
        return result

    return timed


if __name__ == "__main__":
    main()
