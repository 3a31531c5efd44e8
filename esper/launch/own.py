"""Networks and data that `fit` gets as objects: registered for this process, and digested, so that a run is theirs."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from esper import plugins
from esper.data.own import collected, own_dataset
from esper.errors import ConfigError

__all__ = ["own_overrides"]

_LIBRARIES = ("torch", "torchvision", "timm", "esper", "builtins", "functools", "numpy", "math")
_DATA = "own_data"
_TEST_SPLIT = 0.1


def own_overrides(model: Any, data: Any, task: str | None) -> list[str]:
    """The overrides that select a network, data and task given as objects; see `fit`.

    Raises:
        ConfigError, DataError: they cannot be used.
    """
    overrides = []
    if model is not None:
        if not callable(model):
            raise ConfigError(f"fit: model={type(model).__name__}: give a torch.nn.Module, or what makes one")
        made = type(model) if isinstance(model, nn.Module) else model
        name = getattr(made, "__name__", "")
        name = name if re.fullmatch(r"[A-Za-z]\w{0,63}", name, re.ASCII) else "own_model"
        plugins.offer("model", name, model)
        overrides += ["model=plugin", f"model.name={name}", f"model.digest=m{_digest(model)}"]
    if data is not None:
        splits = collected(data, where="fit: data")
        dataset = own_dataset(splits, test_split=_TEST_SPLIT, where="fit: data")
        plugins.offer("dataset", _DATA, lambda: splits)
        overrides += ["dataset=plugin", f"dataset.source={_DATA}", f"dataset.digest=d{dataset.fingerprint.digest}"]
    return [*overrides, *([f"task={task}"] if task is not None else [])]


def _digest(model: Any) -> str:
    """16 hex digits: of the source of all classes and functions but a library's; of a module also its weights."""
    digest, seen = hashlib.sha256(), set[int]()
    made = [model]
    if isinstance(model, nn.Module):
        made = list({type(part): None for part in model.modules()})
        digest.update(repr(model).encode())
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    for one in made:
        for text in _source(one, seen):
            digest.update(text.encode())
    return digest.hexdigest()[:16]


def _source(made: Any, seen: set[int]) -> Iterator[str]:
    """Source of a class or function, and of those that it names in its module."""
    while hasattr(made, "func"):  # functools.partial
        yield repr((made.args, made.keywords))
        made = made.func
    is_library = str(getattr(made, "__module__", "")).partition(".")[0] in _LIBRARIES
    if is_library or id(made) in seen or not isinstance(made, type | FunctionType):
        return
    seen.add(id(made))
    try:
        yield inspect.getsource(made)
    except (OSError, TypeError):  # typed into an interpreter
        yield made.__qualname__
    for function in _functions(made):
        yield repr(function.__defaults__)
        used = [cell.cell_contents for cell in function.__closure__ or ()]
        for code in _codes(function.__code__):
            yield repr([constant for constant in code.co_consts if not isinstance(constant, CodeType)])
            used += [function.__globals__.get(name) for name in code.co_names]
        for one in used:
            if isinstance(one, int | float | str | tuple):
                yield repr(one)
            yield from _source(one, seen)
    for base in made.__bases__ if isinstance(made, type) else ():
        yield from _source(base, seen)


def _functions(made: Callable[..., Any]) -> list[FunctionType]:
    found = list(vars(made).values()) if isinstance(made, type) else [made]
    return [function for function in found if isinstance(function, FunctionType)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
