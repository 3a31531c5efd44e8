"""Progress of a run that has not finished, read from its journal as that grows."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.contracts.metrics import ACCURACY, MetricInfo, headline_of
from esper.errors import RunError
from esper.files import decode, open_regular
from esper.tracking.event_schema import EVENT
from esper.tracking.history import image_macs

__all__ = ["Progress"]

_KINDS = ("run_started", "epoch", "surgery", "signals", "fork", "judgement")
_EVENTS = tuple(f'{{"kind": "{kind}",'.encode() for kind in _KINDS)
_PACE_EPOCHS = 5


@dataclass(kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        epoch: number of epochs done.
        total_epochs: number of epochs to train; 0 before the run begins.
        metric: the leading metric of the last epoch on the validation split.
        headline: what that metric is.
        macs: multiply-accumulates spent until the last event, but for incubation.
        seconds: time spent until then, without pauses between processes.
    """

    journal: Path
    epoch: int = 0
    total_epochs: int = 0
    metric: float | None = None
    headline: MetricInfo = ACCURACY
    macs: int = 0
    seconds: float = 0.0
    _offset: int = 0
    _times: list[float] = field(default_factory=list)
    _step: int = 0
    _last_s: float = 0.0
    _batch_size: int = 0
    _image_macs: int = 0

    def update(self) -> None:
        """Read the new lines of the journal."""
        try:
            with open_regular(self.journal) as file:
                if file.seek(0, 2) < self._offset:  # rewound to a checkpoint, or started anew
                    self.epoch, self.metric, self._offset, self._times = 0, None, 0, []
                    self.macs, self.seconds, self._step, self._image_macs = 0, 0.0, 0, 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if line.startswith(_EVENTS):
                        with contextlib.suppress(RunError):  # a damaged line; the next epoch's tells
                            self._read_event(decode(line, EVENT(), where=""))
        except (OSError, RunError):
            return

    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last epochs; None before the second epoch."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return max(0.0, self._times[-1] + pace * (self.total_epochs - self.epoch) - time.time())

    def _read_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "run_started":
            self.total_epochs, self.headline = event["total_epochs"], headline_of(event)
            self._batch_size = event["config"]["dataset"]["batch_size"]
            self._image_macs = self._image_macs or image_macs(event)  # on a resume the network has grown
            self._times = []  # the time between two jobs of a run is not part of its pace
            self._last_s = event["time_unix_s"]
            return
        self._spend(event)
        if event["kind"] == "surgery" and event["committed"]:
            self._image_macs = image_macs(event)
        if event["kind"] == "epoch":
            self.epoch, self.metric = event["epoch"], event["val_metrics"].get(self.headline.name)
            self._times = [*self._times[-_PACE_EPOCHS:], event["time_unix_s"]]

    def _spend(self, event: dict[str, Any]) -> None:
        num_examples = self._batch_size * max(0, event["step"] - self._step)
        self.macs += num_examples * self._image_macs + event.get("cost_macs", 0)
        self.seconds += max(0.0, event["time_unix_s"] - self._last_s) if self._last_s else 0.0
        self._step, self._last_s = max(self._step, event["step"]), event["time_unix_s"]
