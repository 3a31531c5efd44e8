"""Rows of numbers with a target: a file .csv, .npz or .parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.configs import DatasetConfig
from esper.configs.explain import nearest
from esper.data.images import Dataset
from esper.data.own import own_dataset
from esper.errors import DataError, one_line
from esper.images.fingerprint import Fingerprint

__all__ = ["SUFFIXES", "fingerprint", "load", "read_examples"]

SUFFIXES = (".csv", ".npz", ".parquet")
_MAX_NAMED = 10
_INDEX_NAMES = ("", "__index_level_0__")
"""What pandas calls the index in a .csv and a .parquet. It says where a row stood, and often gives the class away."""


def load(config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """The rows of `config.data_dir`; a fixed share of them is the test split.

    A .csv has a header line; the target is `config.target`, by default the last column. An .npz holds
    `inputs` and `targets`.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    file = Path(config.data_dir).expanduser()
    where = f"dataset.data_dir={file}"
    try:
        inputs, targets, columns = _read(file, config.target)
        if len(inputs.shape) < 2 or targets.shape[:1] != inputs.shape[:1]:
            raise ValueError(f"inputs {inputs.shape} and targets {targets.shape}; allowed are (N, D) and (N,)")
        numbers = torch.from_numpy(_as_float32(inputs))
    except (OSError, ValueError, TypeError, KeyError, ImportError, csv.Error, BadZipFile) as error:
        raise DataError(f"{where}: cannot be read as rows of numbers: {one_line(error)}") from None
    numbers_or_classes, names = _as_targets(targets, config.target_type, where)
    dataset = own_dataset((numbers, numbers_or_classes), test_split=config.test_split, where=where, class_names=names)
    return dataclasses.replace(dataset, input_names=columns[:-1], target_name=columns[-1]) if columns else dataset


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """Of the rows."""
    return load(config, None).fingerprint


def read_examples(
    file: Path, *, num_columns: int, target: str | None, names: Sequence[str]
) -> tuple[NDArray[np.generic], NDArray[np.generic] | None, list[str]]:
    """Inputs of a file, targets if it has them, and names of columns that are neither.

    Args:
        file: as `load` reads it; an .npz may lack `targets`, others the column of the target.
        num_columns: that the network reads.
        target: name of the target's column; None: the last one, if there is one column more than the network reads.
        names: of the columns that the network reads, wherever they stand; (): all but the target, as they stand.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        if file.suffix == ".npz":
            arrays = _read_npz(file)
            return arrays["inputs"], arrays.get("targets"), []
        columns = _columns(file, expected=names)
        if target is None and len(columns) == num_columns + 1:
            target = next(reversed(columns))
        targets = columns.pop(target, None) if target is not None else None
        others = [name for name in columns if name not in names] if names else []
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"lacks columns that the network reads: {_shown(missing)}{nearest(missing[0], others)}")
        if not names and len(columns) != num_columns:
            besides = f" besides the target, {target}" if targets is not None else ""
            raise ValueError(f"{len(columns)} columns{besides}, but the network reads {num_columns}")
        return np.stack([_as_numbers(name, columns[name]) for name in names or columns], axis=1), targets, others
    except (OSError, ValueError, TypeError, KeyError, ImportError, csv.Error, BadZipFile) as error:
        raise DataError(f"{file}: cannot be read as rows of numbers: {one_line(error)}") from None


def _as_targets(values: NDArray[np.generic], kind: str, where: str) -> tuple[Tensor, list[str]]:
    """Numbers, or classes and their names."""
    try:
        if kind == "number":
            return torch.from_numpy(_as_float32(values)), []
    except (ValueError, TypeError):
        raise DataError(f"{where}: the target is not a number; use dataset.target_type=class") from None
    is_missing = np.array([value is None or value != value or value == "" for value in values.ravel().tolist()])
    if values.ndim != 1 or is_missing.any():
        problem = (
            f"is {values.shape}, and classes are (N,)" if values.ndim != 1 else f"misses {is_missing.sum()} values"
        )
        raise DataError(f"{where}: the target {problem}; give each row one class")
    classes, index = np.unique(values, return_inverse=True)
    if len(classes) > max(2, len(values) // 2):
        raise DataError(
            f"{where}: the target has {len(classes)} different values in {len(values)} rows, too many for classes; use "
            "dataset.target_type=number and task=regression"
        )
    return torch.from_numpy(index.reshape(len(values))).long(), list(map(str, classes))


def _read(file: Path, target: str | None) -> tuple[NDArray[np.generic], NDArray[np.generic], tuple[str, ...]]:
    """Inputs, targets and, of a table, the names of the columns, the target's last."""
    if file.suffix == ".npz":
        arrays = _read_npz(file)
        if "targets" not in arrays:
            raise ValueError("it holds inputs, but no targets")
        return arrays["inputs"], arrays["targets"], ()
    columns = _columns(file)
    target = target if target is not None else next(reversed(columns), "")
    if target not in columns:
        raise ValueError(f"dataset.target={target}: no such column{nearest(target, list(columns))}")
    names = [name for name in columns if name != target]
    if index := [name for name in names if name in _INDEX_NAMES]:
        raise ValueError(
            f"column {1 + list(columns).index(index[0])} is named {index[0]!r}, as pandas names its index; leave it "
            "out (index=False), or name it"
        )
    if not names:
        hint = "; separate columns by commas" if any(mark in target for mark in ";\t|") else ""
        raise ValueError(f"there is no column but the target, {target!r}{hint}")
    inputs = np.stack([_as_numbers(name, columns[name]) for name in names], axis=1)
    if (missing := np.argwhere(~np.isfinite(inputs))).size:
        row, column = missing[0]
        raise ValueError(
            f"column {names[column]!r} has {inputs[row, column]} in row {row + 1}; fill it in, or leave out such rows "
            f"({len(np.unique(missing[:, 0]))})"
        )
    return inputs, columns[target], (*names, target)


def _read_npz(file: Path) -> dict[str, NDArray[np.generic]]:
    """`inputs` and, if it has them, `targets`."""
    with file.open("rb") as opened:
        if not is_zipfile(opened):  # NumPy would advise to allow pickles
            raise ValueError("it is no .npz, or damaged")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as arrays:
            if "inputs" not in arrays:
                raise ValueError(f"it holds {_shown([*arrays]) or 'nothing'}; needed are inputs and targets")
            found = {name: arrays[name] for name in ("inputs", "targets") if name in arrays}
    for name, array in found.items():
        if array.dtype.kind == "c":
            raise ValueError(f"{name} are {array.dtype}; turn complex values into two real ones each")
    return found


def _columns(file: Path, *, expected: Sequence[str] = ()) -> dict[str, NDArray[np.generic]]:
    """Columns by name, of which some may be known."""
    if file.suffix == ".csv":
        return dict(_read_csv(file, is_named=bool(expected)))
    if file.suffix != ".parquet":
        file.stat()  # a file that is missing has no wrong suffix
        raise ValueError("allowed are .csv, .npz and .parquet")
    from pyarrow import parquet

    read = parquet.read_table(file)
    return {name: read[name].to_numpy() for name in read.column_names}


def _read_csv(file: Path, *, is_named: bool) -> dict[str, NDArray[np.generic]]:
    """Columns of text by name; with `is_named` the caller looks for names, which may be numbers."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8; save it in that encoding") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    names, rows = next(reader, []), list[list[str]]()
    for row in reader:
        if row and len(row) != len(names):
            raise ValueError(f"line {reader.line_num} has {len(row)} values for {len(names)} column names")
        rows += [row] if row else []
    if rows and not is_named and all(map(_is_number, names)) and not all(name.strip().isdigit() for name in names):
        raise ValueError(
            f"the first line holds numbers ({_shown(names)}), not names; put a line of column names above it"
        )
    if not rows or len(set(names)) < len(names):
        raise ValueError("column names repeat" if rows else "there are no rows below a line of column names")
    return dict(zip(names, np.array(rows).T, strict=True))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")


def _as_float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinity is refused
        return np.ascontiguousarray(values, dtype=np.float32)


def _as_numbers(name: str, column: NDArray[np.generic]) -> NDArray[np.float32]:
    if column.dtype.kind in "mM":
        raise ValueError(f"column {name!r} holds dates or times; turn them into numbers, or leave it out")
    try:
        return _as_float32(column)
    except (ValueError, TypeError):
        row, value = next((row, value) for row, value in enumerate(column.tolist(), start=1) if not _is_number(value))
        found = "nothing" if value is None or (isinstance(value, str) and not value) else _one_value(value)
        raise ValueError(
            f"column {name!r} has {found} in row {row}, not a number; fill it in, turn it into numbers, or leave it out"
        ) from None


def _one_value(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, np.ndarray | list) else repr(value)


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False
    return True
