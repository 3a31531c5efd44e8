"""Networks and data that `fit` gets as objects: registered for this process, and digested, so that a run is theirs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from esper import plugins
from esper.data.own import collected, own_dataset
from esper.errors import ConfigError

__all__ = ["own_overrides"]

_LIBRARIES = ("torch", "torchvision", "timm", "esper", "numpy")
_DATA = "own_data"
_TEST_SPLIT = 0.1
_parsing = threading.Lock()
"""Python 3.11 fails where two threads parse source at once (python/cpython#106905)."""


def own_overrides(model: Any, data: Any, task: str | None) -> list[str]:
    """Digest a network and data given as objects, and register them; see `fit`.

    Returns the arguments of `esper-train` that select them, until another call registers its own.

    Raises:
        ConfigError, DataError: they cannot be used.
    """
    overrides = list[str]()
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
    """16 hex digits: of the source of all classes and functions but a library's; of modules also their weights."""
    digest = hashlib.sha256()
    with _parsing:
        for text in _content(model, set()):
            digest.update(text.encode())
    return digest.hexdigest()[:16]


def _content(one: Any, seen: set[int]) -> Iterator[str]:
    """What defines a class, function or object, as text that is the same in another process."""
    if one is None or isinstance(one, int | float | str | bytes):
        yield repr(one)
    elif isinstance(one, set | frozenset):  # in an order of their own in each process
        yield from sorted("".join(_content(member, seen)) for member in one)
    elif isinstance(one, tuple):  # perhaps made here, so that another may have its id later
        yield from _members(one, seen)
    elif id(one) not in seen:
        seen.add(id(one))
        yield from _content_of_object(one, seen)


def _members(members: Iterable[Any], seen: set[int]) -> Iterator[str]:
    for member in members:
        yield ","
        yield from _content(member, seen)


def _content_of_object(one: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(one, list):
        yield from _members(one, seen)
    elif isinstance(one, dict):
        yield from _members(one.items(), seen)
    elif isinstance(one, nn.Module):
        yield from _module(one, seen)
    elif isinstance(one, functools.partial):
        yield from _members((one.func, one.args, one.keywords), seen)
    elif isinstance(one, MethodType):
        yield from _members((one.__func__, one.__self__), seen)
    elif isinstance(one, type | FunctionType):
        if not _is_library(one.__module__):
            yield from _source(one, seen)
    elif isinstance(one, SimpleNamespace | Namespace) or _is_of_user(type(one)):
        yield from _members((type(one), vars(one) if hasattr(one, "__dict__") else None), seen)


def _module(module: nn.Module, seen: set[int]) -> Iterator[str]:
    """Layout, weights and classes."""
    yield repr(module)
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.is_meta:  # without values
            yield f"{name} {type(tensor).__name__}"
            continue
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        yield hashlib.sha256(tensor.detach().cpu().contiguous().float().numpy().tobytes()).hexdigest()
    yield from _members({type(part): None for part in module.modules()}, seen)


def _source(made: type | FunctionType, seen: set[int]) -> Iterator[str]:
    """Source of a class or function, and what it names: other classes, functions and values."""
    try:
        yield inspect.getsource(made)
    except (OSError, TypeError):  # typed into an interpreter
        yield made.__qualname__
    for function in _functions(made):
        yield from _members((function.__defaults__, function.__kwdefaults__), seen)
        yield from _members((_value(cell) for cell in function.__closure__ or ()), seen)
        for code in _codes(function.__code__):
            yield from _members((one for one in code.co_consts if not isinstance(one, CodeType)), seen)
            yield from _members(_named(code.co_names, function.__globals__), seen)
    for base in made.__bases__ if isinstance(made, type) else ():
        yield from _content(base, seen)


def _named(names: Sequence[str], scope: Mapping[str, Any]) -> list[Any]:
    """The values of names in a module, and in the modules of the user's among these values."""
    found = [scope[name] for name in names if name in scope]
    for module in found:  # grows
        if isinstance(module, ModuleType) and not _is_library(module.__name__):
            inside = [vars(module)[name] for name in names if name in vars(module)]
            found += [one for one in inside if not any(one is other for other in found)]
    return found


def _is_library(module: str | None) -> bool:
    top = str(module).partition(".")[0]
    return top in _LIBRARIES or top in sys.stdlib_module_names


def _is_of_user(made: type) -> bool:
    """Whether a class is neither a library's nor installed: only then is the state of its objects known."""
    file = str(getattr(sys.modules.get(made.__module__), "__file__", None) or "")
    return not _is_library(made.__module__) and "site-packages" not in file


def _value(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return None


def _functions(made: Callable[..., Any]) -> list[FunctionType]:
    found = list(vars(made).values()) if isinstance(made, type) else [made]
    return [function for function in found if isinstance(function, FunctionType)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
