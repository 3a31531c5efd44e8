"""The token ids of all documents of a text dataset, in one file that is memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from esper import hanging, stopping
from esper.data.tokenizer import Tokenizer
from esper.errors import DataError

__all__ = ["Corpus", "read_corpus"]

_VERSION = 2
"""Of the format below: another one where it changes, so that older caches are not used."""
_MIN_DOCUMENTS = 20
"""With fewer, the text is cut into pieces, which are then the documents."""
_NUM_PIECES = 200
_LONGEST_PIECE = 10
"""A piece without an end of line may be so many times longer than the others; then it ends at a space, or anywhere."""
_BATCH_BYTES = 2**24
"""Text that is tokenized at a time."""


class Span(NamedTuple):
    """A document, or a piece of one: number of its file, first byte, byte behind it; whether a document ends there."""

    file: int
    start: int
    stop: int
    is_end: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Documents as token ids.

    Attributes:
        tokens: ids of all documents, one after the other, each followed by the end-of-text token if the tokenizer has
            one: uint8 or int32, (N,), memory-mapped.
        starts: where each document begins in `tokens`, and the end of the last: int64 (D + 1,).
        files: number of the file that each document is from, int64 (D,).
        is_cut: whether documents are pieces of the same text.
    """

    tokens: Tensor
    starts: Tensor
    files: Tensor
    is_cut: bool


def read_corpus(
    files: Sequence[str], tokenizer: Tokenizer, *, separator: str, contents: str, cache_dir: Path | None
) -> Corpus:
    """Tokenize files, or map the result of an earlier run.

    Args:
        files: paths.
        tokenizer: from text to ids.
        separator: text between the documents of a file; empty: each file is one. Of few documents, each is cut at ends
            of lines, or spaces where they are too long, into pieces.
        contents: names and digests of files and tokenizer; others invalidate the cache.
        cache_dir: folder of the cache; None: a temporary file, which is removed at once.

    Raises:
        DataError: a file cannot be read or is no text, or the result cannot be written.
    """
    try:
        digest = _digest(files, separator, contents)
        if cache_dir is None:
            with tempfile.TemporaryDirectory(prefix="esper-") as folder:
                return _written(files, tokenizer, separator, Path(folder, digest))
        cached = cache_dir / digest
        if (found := _mapped(cached, tokenizer)) is not None:
            return found
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _written(files, tokenizer, separator, cached)
    except OSError as error:
        place = cache_dir or tempfile.gettempdir()
        raise DataError(
            f"cannot write the token ids of the text in {place}: {error.strerror or error}; free space there, or give "
            "another folder (hydra.run.dir)"
        ) from None


def _digest(files: Sequence[str], separator: str, contents: str) -> str:
    """Hash paths, sizes, modification times and contents of files, and how they become documents."""
    entries = []
    for path in files:
        stat = os.stat(path)  # noqa: PTH116
        entries.append((path, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps([_VERSION, entries, separator, contents]).encode()).hexdigest()[:24]


def _mapped(path: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus that was written to a path; None if there is none, or it is damaged."""
    ids = path.with_suffix(".tokens")
    try:
        index = load_file(path.with_suffix(".safetensors"))
        num_tokens = int(index["starts"][-1])
        if ids.stat().st_size != num_tokens * np.dtype(tokenizer.dtype).itemsize:
            return None
    except (OSError, SafetensorError):
        return None
    dtype = torch.uint8 if tokenizer.dtype is np.uint8 else torch.int32
    tokens = torch.from_file(str(ids), shared=False, size=num_tokens, dtype=dtype)
    return Corpus(tokens=tokens, starts=index["starts"], files=index["files"], is_cut=bool(index["is_cut"]))


def _written(files: Sequence[str], tokenizer: Tokenizer, separator: str, path: Path) -> Corpus:
    """Tokenize files into `<path>.tokens` and, last, `<path>.safetensors`; returns the mapped result."""
    spans, is_cut = _documents(files, separator)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            lengths = [length for batch in _batches(spans) for length in _tokenize(batch, files, tokenizer, out)]
        temporary.replace(path.with_suffix(".tokens"))
        starts = torch.tensor([0, *lengths]).cumsum(0)
        index = {"starts": starts, "files": torch.tensor([span.file for span in spans]), "is_cut": torch.tensor(is_cut)}
        temporary.write_bytes(save(index))
        temporary.replace(path.with_suffix(".safetensors"))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    corpus = _mapped(path, tokenizer)
    assert corpus is not None
    return corpus


def _tokenize(spans: Sequence[Span], files: Sequence[str], tokenizer: Tokenizer, out: BinaryIO) -> list[int]:
    """Write the ids of documents; returns how many each has."""
    stopping.check()
    hanging.beat()
    lengths = []
    for span, ids in zip(spans, _encoded(spans, files, tokenizer), strict=True):
        end = [tokenizer.end_of_text] if span.is_end and tokenizer.end_of_text is not None else []
        ids.tofile(out)
        np.array(end, dtype=tokenizer.dtype).tofile(out)
        lengths.append(len(ids) + len(end))
    return lengths


def _encoded(spans: Sequence[Span], files: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[Any]]:
    texts = []
    for file, members in itertools.groupby(spans, key=lambda span: span.file):
        with _map(files[file]) as mapped:
            texts += [mapped[span.start : span.stop] for span in members]
    try:
        return tokenizer.encode(texts)
    except DataError:
        for span, text in zip(spans, texts, strict=True):
            try:
                tokenizer.encode([text])
            except DataError as error:
                raise DataError(
                    f"{files[span.file]}: {error}; remove it, or choose files by dataset.file_pattern, such as *.txt"
                ) from None
        raise


def _batches(spans: Sequence[Span]) -> Iterator[list[Span]]:
    batch, size = list[Span](), 0
    for span in spans:
        batch.append(span)
        size += span.stop - span.start
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- documents --------------------------------------------------------------------------------------------------------


def _documents(files: Sequence[str], separator: str) -> tuple[list[Span], bool]:
    """The documents of files, and whether they had to be cut."""
    spans = [Span(file, start, stop) for file, path in enumerate(files) for start, stop in _split(path, separator)]
    if not spans:
        raise DataError(f"{files[0]}: holds nothing but dataset.document_separator={separator!r}; give some text")
    if len(spans) >= _MIN_DOCUMENTS:
        return spans, False
    size = max(1, sum(span.stop - span.start for span in spans) // _NUM_PIECES)
    return [piece for span in spans for piece in _cut(files[span.file], span, size)], True


def _split(path: str, separator: str) -> Iterator[tuple[int, int]]:
    """Where the documents of a file that is not empty begin and end."""
    mark = separator.encode()
    with _map(path) as text:
        start = 0
        while mark and (found := text.find(mark, start)) >= 0:
            if found > start:
                yield start, found
            start = found + len(mark)
        if start < len(text):
            yield start, len(text)


def _cut(path: str, span: Span, size: int) -> Iterator[Span]:
    """Cut a document at ends of lines into pieces of at least `size` bytes."""
    start = span.start
    with _map(path) as text:
        while start < span.stop:
            end = _end_of_piece(text, start, span.stop, size)
            yield Span(span.file, start, end, is_end=end == span.stop)
            start = end


def _end_of_piece(text: mmap.mmap, start: int, stop: int, size: int) -> int:
    """Where a piece ends: behind a line; if that is too far, behind a space; without one, behind a character."""
    limit = min(stop, start + _LONGEST_PIECE * size)
    first = min(start + size, stop) - 1
    if (line_end := text.find(b"\n", first, limit)) >= 0:
        return line_end + 1
    if limit == stop:
        return stop
    if (space := text.find(b" ", first, limit)) >= 0:
        return space + 1
    end = first + 1
    while end < stop and text[end] & 0xC0 == 0x80:  # inside a character of UTF-8
        end += 1
    return end


@contextlib.contextmanager
def _map(path: str) -> Iterator[mmap.mmap]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty now
        raise DataError(f"{path}: cannot be read ({error}); repair or remove it") from None
    with mapped:
        yield mapped
