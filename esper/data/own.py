"""Data of the user's own, in memory: tensors, `torch.utils.data.Dataset`s, or what `datasets` has saved on disk."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from esper.data.digests import fingerprint_tensors
from esper.data.images import Dataset, ImageSet, draw_stratified
from esper.errors import DataError, one_line

__all__ = ["collected", "own_dataset"]

_MAX_CLASSES = 100_000
_CHANNELS = (1, 3, 4)
"""Of images in uint8: a last dimension of so many, behind a first one of more, holds the channels."""
_OTHERS = {"batch_sampler": "its dataset: loader.dataset", "to_numpy": "arrays: its .to_numpy()"}
"""What else users have, by an attribute of it."""
_REMEDY = "give (inputs, targets), two tensors of equal length, a map-style Dataset, or two or three of these as splits"


def own_dataset(data: Any, *, test_split: float, where: str = "data", class_names: Sequence[str] = ()) -> Dataset:
    """A dataset of inputs and targets.

    Inputs: images uint8 or float32 (N, C, H, W), or rows float32 (N, D). Targets: classes, whole numbers (N,), or
    numbers float32 (N,) or (N, D).

    Args:
        data: one split, of which a share becomes the test split; (train, test); or (train, val, test). A split is
            (inputs, targets), a `Dataset` of such pairs, or the folder of a dataset of the library `datasets`.
        test_split: that share; which examples, depends on no seed.
        where: what holds them, for messages.
        class_names: names of the classes; (): their numbers.

    Raises:
        DataError: they cannot be used.
    """
    splits = [ImageSet(inputs, targets) for inputs, targets in collected(data, where=where)]
    first = splits[0]
    for split in splits:
        if split.shape != first.shape or split.labels.dtype != first.labels.dtype:
            raise DataError(f"{where}: splits differ in the shape of inputs or the type of targets; make them equal")
    digests = {name: (split.images, split.labels) for name, split in zip(_names(len(splits)), splits, strict=True)}
    found = fingerprint_tensors(digests)
    names: tuple[str, ...] = ()
    if not first.labels.is_floating_point():
        num_classes = 1 + max(int(split.labels.max()) for split in splits)
        if num_classes > _MAX_CLASSES or min(int(split.labels.min()) for split in splits) < 0:
            raise DataError(f"{where}: whole numbers as targets are classes 0, 1, …; give others as float32")
        counts = torch.cat([split.labels for split in splits]).bincount()
        if (missing := counts == 0).any():
            raise DataError(
                f"{where}: no example is of class {int(missing.nonzero()[0])}; number the {int((~missing).sum())} "
                "classes 0, 1, … without gaps (model.num_classes gives a network more outputs)"
            )
        names = tuple(class_names) or tuple(map(str, range(num_classes)))
    if len(splits) == 1:
        test, train = draw_stratified(first.strata, test_split, torch.Generator().manual_seed(0))
        splits = [first[train], first[test]]
    val = splits[1] if len(splits) == 3 else None
    return Dataset(train=splits[0], val=val, test=splits[-1], class_names=names, fingerprint=found)


def collected(data: Any, *, where: str) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of each split, read once; see `own_dataset`."""
    return [_split(split, where) for split in _splits(data, where)]


def _names(num_splits: int) -> list[str]:
    return {1: ["data"], 2: ["train", "test"], 3: ["train", "val", "test"]}[num_splits]


def _splits(data: Any, where: str) -> list[Any]:
    is_one = not isinstance(data, tuple | list) or (
        len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)
    )
    splits = [data] if is_one else list(data)
    if not 1 <= len(splits) <= 3:
        raise DataError(f"{where}: has {len(splits)} splits; {_REMEDY}")
    return splits


def _split(split: Any, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(split, str | Path):
        split = _from_disk(Path(split), where)
    if not isinstance(split, tuple | list):
        split = _examples(split, where)
    split = [
        torch.as_tensor(part) if isinstance(part, np.ndarray) and part.dtype.kind in "biuf" else part for part in split
    ]
    if len(split) != 2 or not all(isinstance(part, Tensor) for part in split) or len(split[0]) != len(split[1]):
        raise DataError(f"{where}: a split is not two tensors of equal length; {_REMEDY}")
    for name, part in zip(("inputs", "targets"), split, strict=True):
        unfit = (
            (part.is_complex(), "complex", "torch.view_as_real"),
            (part.is_quantized, "quantized", "dequantize()"),
            (part.layout is not torch.strided, "sparse", "to_dense()"),
        )
        for is_so, kind, remedy in unfit:
            if is_so:
                raise DataError(f"{where}: {name} are {kind}; give dense real numbers ({remedy})")
    inputs, targets = (part.detach().cpu() for part in split)
    if inputs.numel() == 0:
        raise DataError(f"{where}: inputs {tuple(inputs.shape)}: a split is empty; {_REMEDY}")
    if inputs.ndim not in (2, 4) or (inputs.ndim == 2 and inputs.dtype == torch.uint8):
        raise DataError(
            f"{where}: inputs {inputs.dtype} {tuple(inputs.shape)}: allowed: (N, C, H, W), or float (N, D); flatten "
            "others to rows, and reshape them in the network"
        )
    if inputs.ndim == 4 and inputs.dtype == torch.uint8 and inputs.shape[3] in _CHANNELS and inputs.shape[1] > 4:
        raise DataError(
            f"{where}: inputs uint8 {tuple(inputs.shape)} seem to have their channels last; give (N, C, H, W): "
            "inputs.permute(0, 3, 1, 2), or for a Dataset a transform such as torchvision's PILToTensor()"
        )
    if inputs.dtype != torch.uint8:
        inputs = inputs.float()
    if inputs.is_floating_point() and not inputs.isfinite().all():
        raise DataError(f"{where}: inputs hold NaN or infinity; fill or leave out these examples")
    if targets.is_floating_point():
        targets = targets.float()
        if not targets.isfinite().all():
            raise DataError(f"{where}: targets hold NaN or infinity; leave out these examples")
    elif targets.ndim == 1:
        targets = targets.long()
    else:
        raise DataError(
            f"{where}: targets {tuple(targets.shape)}: classes are (N,): targets.argmax(1) or targets[:, 0]; give "
            "numbers or labels as float32"
        )
    return inputs, targets


def _examples(dataset: Any, where: str) -> tuple[Tensor, Tensor]:
    """All examples of a map-style dataset."""
    kind = type(dataset).__name__
    if not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
        raise DataError(
            f"{where}: {kind} is no map-style Dataset, with a length and an example at each place; {_REMEDY}"
        )
    remedy = next((remedy for attribute, remedy in _OTHERS.items() if hasattr(dataset, attribute)), None)
    if remedy is None and isinstance(dataset, Mapping):
        remedy = "its values, as splits"
    if remedy is not None:
        raise DataError(f"{where}: {kind} is no map-style Dataset of pairs; give {remedy}")
    pairs = []
    for i in range(len(dataset)):
        try:
            pair = dataset[i]
        except Exception as error:  # it is the user's, and may raise anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {one_line(error)} ({place.filename}:{place.lineno})"
            raise DataError(f"{where}: {kind}[{i}] fails: {problem}") from None
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            keys = f" ({', '.join(map(str, pair))})" if isinstance(pair, Mapping) else ""
            raise DataError(
                f"{where}: {kind}[{i}] is {_described(pair)}{keys}; give a Dataset of pairs (input, target)"
            )
        parts = zip(("input", "target"), pair, strict=True)
        pairs.append([_as_tensor(part, f"{where}: {kind}[{i}]: its {name}") for name, part in parts])
    try:
        inputs, targets = (torch.stack(part) for part in zip(*pairs, strict=True))
    except (ValueError, RuntimeError) as error:  # no pairs, or of several shapes
        problem = one_line(error) if pairs else "it is empty"
        raise DataError(f"{where}: {kind} does not give pairs of equal shape: {problem}; {_REMEDY}") from None
    return inputs, targets


def _described(value: Any) -> str:
    return f"of type {type(value).__name__}" + (f", of length {len(value)}" if isinstance(value, tuple | list) else "")


def _as_tensor(value: Any, what: str) -> Tensor:
    """A part of an example."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        hint = "numbers the classes 0, 1, …" if isinstance(value, str) else "makes it a tensor"
        if hasattr(value, "getbands"):  # of Pillow
            hint += ": transform=torchvision.transforms.PILToTensor(), behind a Resize if sizes differ"
        raise DataError(f"{what} is {_described(value)}; give a Dataset that {hint}") from None


def _from_disk(folder: Path, where: str) -> Sequence[Tensor]:
    """The two columns of a dataset that `datasets` has saved."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{where}={folder}: needs datasets; pip install 'esper-train[datasets]'") from None
    try:
        table = datasets.load_from_disk(str(folder)).with_format("torch")
        if isinstance(table, Mapping):
            each = ", ".join(repr(str(folder / name)) for name in table)
            raise DataError(f"{where}={folder}: holds splits; give them: ({each})")
        columns = list(table.column_names)
        if len(columns) != 2:
            raise DataError(
                f"{where}={folder}: has {len(columns)} columns ({', '.join(columns)}); save two, inputs and targets: "
                "its select_columns([…])"
            )
        return [torch.stack(list(table[name])) for name in columns]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}={folder}: not two columns of numbers saved by datasets: {one_line(error)}") from None
