"""A trained network with what it needs to predict: how inputs are prepared, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.data.interface import Interface
from esper.data.loader import Preprocess
from esper.data.tokenizer import Tokenizer
from esper.inference.examples import read_example, split_examples
from esper.kasmina.modes import evaluating
from esper.models.memory_format import memory_format

__all__ = ["Network", "Prediction"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a network says of one example; what its task does not have is None or empty.

    Attributes:
        label: the likeliest class; of a language model, the likeliest next token.
        probability: of that.
        top: the likeliest classes or tokens with their probabilities, the likeliest first; with task=multilabel, the
            labels that apply.
        values: of a regression, the numbers.
        probabilities: of every class or label, float32 (C,); of a language model, of every token.
        output: what the network gave, float32.
    """

    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    values: tuple[float, ...] = ()
    probabilities: Tensor | None = field(default=None, repr=False)
    output: Tensor = field(repr=False)


class Network(nn.Module):
    """A trained network, in eval mode; `esper.load` makes it.

    Attributes:
        network: the plain network, from prepared inputs (N, …) to outputs.
        interface: shapes, class names, mean and deviation, how images are read.
        channels_last: whether images are prepared in that memory format, where it is safe.
        tokenizer: of a language model.
    """

    def __init__(
        self, network: nn.Module, interface: Interface, *, channels_last: bool, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.interface = interface
        self.channels_last = channels_last
        self.tokenizer = tokenizer
        self.eval()

    @property
    def task(self) -> str:
        """As in the settings, such as classification."""
        return self.interface.task

    @property
    def class_names(self) -> list[str]:
        """Names of the outputs; unnamed ones have their number. A language model's are its tokens."""
        if self.tokenizer is None:
            return self.interface.names
        return [self.tokenizer.decode([token]) for token in range(self.interface.outputs)]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def forward(self, inputs: Tensor) -> Tensor:
        """Prepared inputs (N, …) to outputs (N, …)."""
        output = self.network(inputs)
        assert isinstance(output, Tensor)
        return output

    def preprocess(self) -> Preprocess:
        """From values as the data has them to inputs: what training and validation use."""
        layout = memory_format(self.network, channels_last=self.channels_last, device=self.device)
        interface = self.interface
        return Preprocess(
            mean=interface.mean,
            std=interface.std,
            normalize=True,
            channels_last=layout is torch.channels_last,
            device=self.device,
        )

    def read(self, example: Any) -> Tensor:
        """An example as the data of the training had it: uint8 or float32 like `interface.inputs`, or token ids (T,).

        Raises:
            DataError: it does not suit the network.
        """
        return read_example(example, self.interface, self.tokenizer)

    def prepare(self, values: Tensor) -> Tensor:
        """A batch of what `read` gives, as the network's input, on its device."""
        values = values.to(self.device)
        return values if self.interface.values == "int64" else self.preprocess()(values)

    def predict(self, examples: Any, *, top_k: int = 5, batch_size: int = 128) -> Prediction | list[Prediction]:
        """Predict one example, or each of many.

        Args:
            examples: an image (its path, Pillow's, or a uint8 array (H, W) or (H, W, 3)), an array like those of the
                training, a row of numbers, or a text; or a list, or an array, of them.
            top_k: how many of the likeliest classes to name.
            batch_size: examples that the network gets at once.

        Raises:
            DataError: an example cannot be read, or does not suit the network.
        """
        given, is_many = split_examples(examples, self.interface)
        predictions: list[Prediction] = []
        size = 1 if self.tokenizer is not None else batch_size  # texts differ in length
        for start in range(0, len(given), size):
            values = torch.stack([self.read(example) for example in given[start : start + size]])
            predictions += self.describe(self.outputs(values), top_k=top_k)
        if is_many:
            return predictions
        return predictions[0]

    @torch.no_grad()
    def outputs(self, values: Tensor) -> Tensor:
        """What the network gives for a batch of what `read` gives: float32 on the CPU, (N, C) or (N,).

        Of a language model, the logits of the next token.
        """
        with evaluating(self):
            output: Tensor = self(self.prepare(values)).float().cpu()
        return output[:, -1] if self.tokenizer is not None else output

    def describe(self, outputs: Tensor, *, top_k: int = 5) -> list[Prediction]:
        """What outputs of the network mean."""
        if self.task in ("classification", "language_model"):
            return self._classes(outputs, top_k)
        if self.task == "multilabel":
            return self._labels(outputs)
        if self.task == "regression":
            return [Prediction(values=tuple(output.flatten().tolist()), output=output) for output in outputs]
        return [Prediction(output=output) for output in outputs]

    def _classes(self, outputs: Tensor, top_k: int) -> list[Prediction]:
        probabilities = outputs.softmax(1)
        found, indices = probabilities.topk(min(top_k, outputs.shape[1]))
        predictions = []
        for values, index, own, output in zip(found.tolist(), indices.tolist(), probabilities, outputs, strict=True):
            top = tuple(zip(self._names(index), values, strict=True))
            label, probability = top[0]
            predictions.append(
                Prediction(label=label, probability=probability, top=top, probabilities=own, output=output)
            )
        return predictions

    def _labels(self, outputs: Tensor) -> list[Prediction]:
        predictions = []
        for output in outputs:
            probabilities = output.sigmoid()
            order = [i for i in probabilities.argsort(descending=True).tolist() if output[i] > 0]
            top = tuple(zip(self._names(order), probabilities[order].tolist(), strict=True))
            predictions.append(Prediction(top=top, probabilities=probabilities, output=output))
        return predictions

    def _names(self, indices: Sequence[int]) -> list[str]:
        if self.tokenizer is not None:
            return [self.tokenizer.decode([token]) for token in indices]
        names = self.interface.names
        return [names[index] for index in indices]
