"""What the commands are given to predict or to evaluate: pictures, rows of numbers, text."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.data.sources.arrays import SUFFIXES, read_examples
from esper.errors import DataError, one_line
from esper.images.listing import described_suffixes, is_special, walk
from esper.images.pixels import suffixes
from esper.inference.network import Network
from esper.redact import printable

__all__ = ["Picture", "as_targets", "check_examples", "find_pictures", "is_table", "read_pictures", "read_table"]

_NUM_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture file.

    Attributes:
        path: as given, or found below a folder.
        true_class: name of the innermost folder around it that is the name of a class; None: there is none.
    """

    path: str
    true_class: str | None


def is_table(path: str) -> bool:
    """Whether a file holds rows of numbers or arrays."""
    return Path(path).suffix.lower() in SUFFIXES


def find_pictures(given: Sequence[str], class_names: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Pictures in order, and a line about everything that is none.

    Args:
        given: files; folders, whose files are found as training finds them; `-`: one name a line on standard input.
        class_names: of the network.
    """
    classes, pictures, problems = frozenset(class_names), list[Picture](), list[str]()
    for text in _names(given):
        path = Path(text).expanduser()
        if path.is_dir():
            found, others = _below(path, classes)
            pictures += found
            problems += others
        elif not path.exists():
            problems.append(f"{path}: no such file or folder")
        elif is_special(path):
            problems.append(f"{path}: not a regular file")
        else:
            name = path.absolute().parent.name
            pictures.append(Picture(path=str(path), true_class=name if name in classes else None))
    return pictures, problems


def _names(given: Sequence[str]) -> Iterator[str]:
    for text in given:
        if text == "-":
            yield from (line for line in map(str.strip, sys.stdin) if line)
        else:
            yield text


def _below(folder: Path, classes: frozenset[str]) -> tuple[list[Picture], list[str]]:
    pictures, unread, problems = list[Picture](), Counter[str](), list[str]()
    prefix = len(os.path.join(folder, ""))  # noqa: PTH118
    for entry in sorted(walk(folder), key=lambda entry: entry.path.split(os.sep)):  # noqa: PTH206
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        if suffix not in suffixes():
            if not entry.is_dir():  # a link to a folder is not followed
                unread[suffix] += 1
        elif is_special(entry):
            problems.append(f"{entry.path}: not a regular file")
        else:
            parents = entry.path[prefix:].split(os.sep)[:-1]  # noqa: PTH206
            true_class = next((name for name in reversed(parents) if name in classes), None)
            pictures.append(Picture(path=entry.path, true_class=true_class))
    if unread:
        problems.append(f"{folder}: {described_suffixes(unread)}")
    return pictures, problems


def read_pictures(
    network: Network, pictures: Sequence[Picture], *, batch_size: int
) -> Iterator[list[tuple[Picture, Tensor | DataError]]]:
    """Batches of pictures with what `Network.read` gives, or why one cannot be read."""

    def read(picture: Picture) -> Tensor | DataError:
        try:
            return network.read(picture.path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            yield list(zip(batch, pool.map(read, batch), strict=True))


def read_table(network: Network, path: str) -> tuple[Tensor, NDArray[np.generic] | None]:
    """Examples as the training had them, (N, …), and targets as the file has them, if it does; see `as_targets`.

    Columns of a table are found by name, where the network knows names; others are named on standard error.

    Raises:
        DataError: the file cannot be read, or does not suit the network.
    """
    interface = network.interface
    inputs, targets, others = read_examples(
        Path(path).expanduser(),
        num_columns=interface.inputs[0],
        target=interface.target,
        names=interface.input_names,
    )
    if others:
        sys.stderr.write(printable(f"not read: {path}: columns that the network does not know: {', '.join(others)}\n"))
    if inputs.ndim < 2 or len(inputs) == 0:
        raise DataError(f"{path}: holds no examples")
    try:
        values = torch.stack([network.read(row) for row in inputs])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return values, targets


def as_targets(network: Network, targets: NDArray[np.generic], path: str, *, num: int) -> Tensor:
    """What the task compares outputs with: classes int64 (N,), or numbers float32.

    Args:
        network: the network.
        targets: as `read_table` gives them.
        path: the file, for messages.
        num: of its examples.

    Raises:
        DataError: they do not suit the network.
    """
    if targets.shape[:1] != (num,):
        raise DataError(f"{path}: has {num} inputs and targets of the shape {targets.shape}")
    if network.task == "classification":
        return _classes(targets, network.interface.names, path)
    if network.task == "multilabel" and targets.shape != (num, network.interface.outputs):
        wanted = f"labels are numbers 0 or 1 of the shape ({num}, {network.interface.outputs}), in an .npz"
        raise DataError(f"{path}: targets {targets.shape}: {wanted}")
    try:
        return torch.from_numpy(targets.astype(np.float32))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: the targets are not numbers: {one_line(error)}") from None


def _classes(targets: NDArray[np.generic], names: Sequence[str], path: str) -> Tensor:
    """Numbers of classes, from their names, or from the numbers themselves where these are no names: int64 (N,)."""
    if targets.size != len(targets):
        raise DataError(f"{path}: targets {targets.shape}: classes are (N,)")
    targets = targets.ravel()
    index = {name: number for number, name in enumerate(names)}
    named = list(map(str, targets.tolist()))
    unknown = next((name for name in named if name not in index), None)
    if unknown is None:
        return torch.tensor([index[name] for name in named])
    if targets.dtype.kind in "iu" and targets.min() >= 0 and targets.max() < len(names):
        return torch.from_numpy(targets.astype(np.int64))
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise DataError(f"{path}: {unknown!r} is no class of the network, which are {shown}")


def check_examples(network: Network, path: str, *, num: int) -> list[Tensor]:
    """Examples of a folder of pictures, a picture or a table; see `export`.

    Raises:
        DataError: one of them cannot be read.
    """
    if is_table(path):
        return list(read_table(network, path)[0][:num])
    pictures, problems = find_pictures([path], network.interface.names)
    if not pictures:
        raise DataError(problems[0] if problems else f"{path}: holds no pictures")
    return [network.read(picture.path) for picture in pictures[:num]]
