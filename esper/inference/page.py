"""A self-contained page of predicted pictures: the surest mistakes first."""

from __future__ import annotations

import base64
import heapq
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image
from torch import Tensor

from esper.files import write_atomically
from esper.inference.network import Network, Prediction
from esper.inference.sources import Picture
from esper.tracking.formatting import percent

__all__ = ["Gallery"]

_NUM_SHOWN = 48
"""Pictures of each section."""
_MAX_SIDE = 160
"""Pixels of a picture on the page."""
_SMALL = 64
"""Pictures up to this side are kept losslessly and shown enlarged."""
_MAX_CONFUSION = 30
"""Most classes of which the confusion matrix is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A picture on the page, as the network saw it: uint8 (C, S, S)."""

    picture: Picture
    values: Tensor
    prediction: Prediction

    @property
    def path(self) -> str:
        """As text: a name may be no UTF-8."""
        return os.fsencode(self.picture.path).decode(errors="replace")

    @property
    def is_right(self) -> bool | None:
        """None: unknown."""
        return None if self.picture.true_class is None else self.picture.true_class == self.prediction.label

    @property
    def data(self) -> str:
        """URL that contains the picture."""
        pixels = self.values.permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        kind = "png" if max(image.size) <= _SMALL else "jpeg"
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format=kind)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


_Ranked = tuple[float, int, _Shown]
"""Key, position from the end, picture."""


class Gallery:
    """Collects what the page shows, in memory that does not grow with the number of pictures.

    Args:
        network: what predicts.
        run: where it comes from.
    """

    def __init__(self, network: Network, *, run: Path) -> None:
        self._network, self._run = network, run
        self._mistakes: list[_Ranked] = []
        self._doubtful: list[_Ranked] = []
        self._first: list[_Shown] = []
        self._num = 0
        self._index = {name: i for i, name in enumerate(network.interface.names)}
        self._predicted = [0] * len(self._index)
        size = len(self._index) if network.task == "classification" else 0
        self._confusion = torch.zeros(size, size, dtype=torch.int64)

    def add(self, picture: Picture, values: Tensor, prediction: Prediction) -> None:
        """Count a picture; keep it if it may be shown."""
        shown = _Shown(picture=picture, values=values, prediction=prediction)
        number, label, probability = self._num, prediction.label, prediction.probability
        self._num += 1
        if label is None or probability is None:
            if number < _NUM_SHOWN:
                self._first.append(shown)
            return
        self._predicted[self._index[label]] += 1
        if picture.true_class is not None:
            self._confusion[self._index[picture.true_class], self._index[label]] += 1
            if picture.true_class != label:
                _keep(self._mistakes, (probability, -number, shown))
        _keep(self._doubtful, (-probability, -number, shown))

    def summary(self) -> str:
        """How many pictures there were, and how many predictions are right, if that is known."""
        known, right = int(self._confusion.sum()), int(self._confusion.diagonal().sum())
        found = f"{self._num:,} pictures"
        if not known:
            return found
        of_known = "" if known == self._num else f" of the {known:,} in folders named like a class"
        return f"{found}, {right:,} ({percent(right / known)}){of_known} predicted right"

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            WriteError: it cannot be written.
        """
        environment = Environment(
            loader=PackageLoader("esper.inference", "."),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["percent"] = percent
        write_atomically(path, environment.get_template("predictions.html.j2").render(self._content()))

    def _content(self) -> dict[str, Any]:
        names, confusion = list(self._index), self._confusion
        of_class = confusion.sum(1).tolist()
        rows = [
            {
                "name": name,
                "predicted": self._predicted[i],
                "num": of_class[i] if len(confusion) else 0,
                "recall": int(confusion[i, i]) / of_class[i] if len(confusion) and of_class[i] else None,
                "cells": confusion[i].tolist() if len(confusion) else [],
            }
            for i, name in enumerate(names)
        ]
        return {
            "run": str(self._run),
            "task": self._network.task,
            "summary": self.summary(),
            "is_known": bool(confusion.sum()),
            "mistakes": [shown for _, _, shown in sorted(self._mistakes, reverse=True)],
            "doubtful": [shown for _, _, shown in sorted(self._doubtful, reverse=True)],
            "first": self._first,
            "classes": rows if self._network.task == "classification" else [],
            "shows_confusion": 0 < len(names) <= _MAX_CONFUSION and bool(confusion.sum()),
            "is_small": self._network.interface.inputs[-1] <= _SMALL,
        }


def _keep(heap: list[_Ranked], item: _Ranked) -> None:
    """Keep the pictures with the greatest keys; of equal ones, those that came first."""
    if len(heap) < _NUM_SHOWN:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
