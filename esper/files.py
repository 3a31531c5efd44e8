"""Files as Esper keeps them: replaced atomically, read strictly."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import socket
import stat
import types
import typing
from collections.abc import Mapping
from enum import Enum
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Union

import psutil
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from esper.errors import RunError, WriteError

__all__ = [
    "Count",
    "Number",
    "as_json",
    "as_umask_says",
    "decode",
    "first_problem",
    "json_object",
    "make_folder",
    "open_regular",
    "read_bytes",
    "read_json",
    "require_writable",
    "sha256",
    "write_atomically",
]

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**63)]
Whole = Annotated[int, Field(ge=-(2**64), le=2**64)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_SCALARS: Mapping[Any, Any] = {int: Whole, float: Number | None, Any: Any}
_MAX_BYTES = 64 * 2**20
_MAX_REASON = 200


# --- writing ----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str, *, is_private: bool = False) -> None:
    """Replace a file's content; readers, and a crash, see the old content or the new, never a part of it.

    With `is_private`, only its owner can read it. Temporary files that killed processes of this machine left for the
    same file are removed.

    Raises:
        WriteError: it cannot be written; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        try:
            _remove_leftovers(path)
            temporary.unlink(missing_ok=True)  # a link or another user's file would be written to
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if is_private else 0o666)
            # Names of files and folders may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, unless it is there; raises `WriteError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}") from None


def require_writable(out: Path, *, is_folder: bool = False) -> None:
    """Refuse what `--out` names if it cannot be written, before the work whose result it is to hold.

    Args:
        out: a file, or a folder that may be there, in folders that need not be there.
        is_folder: whether it is a folder.

    Raises:
        RunError: a folder stands in place of the file, or what it lies in is no folder or cannot be written to.
    """
    # os.access: `Path.exists` raises where a folder cannot be searched, or a name is too long.
    if not is_folder and os.access(out, os.F_OK) and out.is_dir():
        raise RunError(f"--out {out}: is a folder; name a file")
    folder = next(folder for folder in out.absolute().parents if os.access(folder, os.F_OK))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "cannot be written to" if folder.is_dir() else "is no folder"
        raise RunError(f"--out {out}: {folder} {problem}; choose another place")


def as_umask_says(path: Path) -> None:
    """Give a file the mode of any new file: libraries such as safetensors let nobody else read what they write.

    Raises:
        OSError: it cannot be changed, or its folder not be written to.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    probe.touch(exist_ok=False)
    try:
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink()


def _remove_leftovers(path: Path) -> None:
    host = socket.gethostname()  # another machine that shares the folder may be writing
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(host)}\.(\d{{1,9}})", re.ASCII)
    for name in os.listdir(path.parent):  # noqa: PTH208 (names only, and fast in large folders)
        if (match := pattern.fullmatch(name)) and not psutil.pid_exists(int(match[1])):
            path.with_name(name).unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: it is missing.
        RunError: it cannot be opened, or is a folder, pipe or device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: it is missing.
        RunError: it cannot be read, is too large, or is a folder, pipe or device.
    """
    with open_regular(path) as file:
        try:
            content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_BYTES:
        raise RunError(f"{path} is larger than {_MAX_BYTES // 2**20} MiB, too large for what it holds")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of the content of a regular file, in hex digits.

    Raises:
        FileNotFoundError, RunError: as `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, schema: TypeAdapter[T]) -> T:
    """Read a JSON file strictly.

    Raises:
        FileNotFoundError: it is missing.
        RunError: it cannot be read, or is not as the schema says.
    """
    return decode(read_bytes(path), schema, where=str(path))


def decode(content: bytes | str, schema: TypeAdapter[T], *, where: str) -> T:
    """Decode JSON strictly.

    Raises:
        RunError: it is not JSON, is nested too deeply, or something in it is missing, of another type or out of range.
    """
    try:
        return schema.validate_json(content, strict=True)
    except ValidationError as error:
        raise RunError(f"{where} is damaged: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Where the first problem is, and what, in printable characters."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    reason = f"{place}: {first['msg']}" if place else first["msg"]
    return "".join(char if char.isprintable() else "?" for char in reason[:_MAX_REASON])


def json_object(name: str, fields: Mapping[str, Any], *, extra: Literal["allow", "forbid"] = "allow") -> Any:
    """The schema of a JSON object that has these fields, and others if allowed; it is read as a dict."""
    return with_config(ConfigDict(extra=extra))(TypedDict(name, dict(fields)))  # type: ignore[operator]


def decoder(schema: Any) -> TypeAdapter[dict[str, Any]]:
    """The decoder of JSON objects of a schema."""
    return TypeAdapter(schema)


def as_json(cls: type, *, extra: Literal["allow", "forbid"] = "allow", **instead: Any) -> Any:
    """The schema of a dataclass as JSON holds it: lists for tuples, null for numbers that are not finite.

    Fields with a default may be missing, as in files of older versions.

    Args:
        cls: the dataclass.
        extra: whether an object may have other fields.
        instead: schemas of fields by name, instead of what their types say.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {}
    for field in dataclasses.fields(cls):
        schema = instead.get(field.name, _as_json(hints[field.name]))
        is_optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        fields[field.name] = NotRequired[schema] if is_optional else schema
    return json_object(cls.__name__, fields, extra=extra)


def _as_json(hint: Any) -> Any:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if dataclasses.is_dataclass(hint):
        return as_json(typing.cast(type, hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_as_json, arguments))]  # noqa: UP007 (their number is not known)
    if origin is tuple and arguments[-1] is not Ellipsis:
        items: Any = Union[tuple(map(_as_json, arguments))]  # noqa: UP007
        return Annotated[list[items], Field(min_length=len(arguments), max_length=len(arguments))]
    if origin in (list, tuple):
        return list[_as_json(arguments[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[str, _as_json(arguments[1])]  # type: ignore[misc]
    return hint
