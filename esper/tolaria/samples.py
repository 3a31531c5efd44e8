"""Images of the validation split that the network classifies correctly or not, for the run's report."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from esper.build import Parts
from esper.data.tokens import TokenSet
from esper.kasmina.modes import evaluating
from esper.tolaria.run import Run
from esper.tracking.samples import Sample

__all__ = ["samples"]

_NUM_EXAMINED = 512
_NUM_SHOWN = 8
"""Of those classified correctly, and of the others."""
_MAX_SIDE = 96
"""Pixels of a picture's longer side."""


def samples(run: Run) -> list[Sample]:
    """Of up to 512 images spread over the controller split, the surest mistakes and some that are classified correctly.

    Empty unless the task is to classify images. It changes nothing in the run.
    """
    parts, split = run.parts, run.parts.splits.controller
    shape = parts.spec.inputs
    if parts.task.name != "classification" or len(shape) != 3 or shape[0] not in (1, 3) or isinstance(split, TokenSet):
        return []
    chosen = torch.linspace(0, len(split) - 1, min(_NUM_EXAMINED, len(split))).long()
    wrong: list[Sample] = []
    right: list[Sample] = []
    with evaluating(run.model), torch.no_grad():
        for inputs, targets in parts.evaluation_batches(split[chosen]):
            probabilities, predicted = run.model(inputs).float().softmax(1).max(1)
            mistakes = (predicted != targets).nonzero().flatten()
            surest = mistakes[probabilities[mistakes].argsort(descending=True)][:_NUM_SHOWN]
            first = (predicted == targets).nonzero().flatten()[:_NUM_SHOWN]
            for found, numbers in ((wrong, surest), (right, first)):
                found += [
                    _sample(parts, inputs[n], classes=(targets[n], predicted[n]), probability=float(probabilities[n]))
                    for n in numbers.tolist()
                ]
    wrong.sort(key=lambda sample: -sample.probability)
    return [*wrong[:_NUM_SHOWN], *right[:_NUM_SHOWN]]


def _sample(parts: Parts, image: Tensor, *, classes: tuple[Tensor, Tensor], probability: float) -> Sample:
    """`classes`: the true one and the predicted one, 0-dim each."""
    names = parts.spec.output_names
    true, predicted = (names[int(n)] if names else str(int(n)) for n in classes)
    png = _png(parts.prepare.undone(image))
    return Sample(true_class=true, predicted_class=predicted, probability=probability, png=png)


def _png(pixels: Tensor) -> str:
    """A picture (C, H, W) as PNG in Base64; values beyond 0 to 255, of data of one's own, are stretched to them."""
    low, high = float(pixels.min()), float(pixels.max())
    if low < -0.5 or high > 255.5 or high <= 1.0:
        pixels = (pixels - low) * (255.0 / max(high - low, 1e-12))
    array = pixels.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
