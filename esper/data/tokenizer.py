"""From text to token ids and back: bytes, or a `tokenizer.json` of the library tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esper.errors import ConfigError, DataError, one_line

__all__ = ["ByteTokenizer", "JsonTokenizer", "Tokenizer", "load_tokenizer"]

_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids.
        dtype: in which ids are stored: uint8 or int32.
        end_of_text: id that stands between documents; None: nothing does.
        token_bytes: bytes of text that each id stands for; empty: one.
    """

    vocab_size: int
    dtype: type[np.uint8] | type[np.int32]
    end_of_text: int | None
    token_bytes: tuple[int, ...]

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        """Ids of each text, without any at its beginning and end that stand for no text.

        Raises:
            DataError: a text has none; the message lacks where it is.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become `�`."""


class ByteTokenizer:
    """Each byte is a token. Byte 0, which text does not contain, ends a document."""

    vocab_size = 256
    dtype: type[np.uint8] | type[np.int32] = np.uint8
    end_of_text: int | None = 0
    token_bytes: tuple[int, ...] = ()

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        """See `Tokenizer`."""
        if any(b"\0" in text for text in texts):
            raise DataError("not a text, as it contains zero bytes")
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return bytes(ids).decode("utf-8", errors="replace")


class JsonTokenizer:
    """A tokenizer of the library tokenizers.

    Args:
        path: its `tokenizer.json`.

    Raises:
        ConfigError: the library is not installed, or the file cannot be used.
    """

    dtype: type[np.uint8] | type[np.int32] = np.int32

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise ConfigError(
                f"dataset.tokenizer={path}: the library tokenizers is not installed; run: pip install "
                "'esper-train[text]', or set it to null for bytes"
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise ConfigError(
                f"dataset.tokenizer={path}: not a tokenizer.json of the library tokenizers ({one_line(error)})"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = json.loads(self._tokenizer.to_str())
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        found = (self._tokenizer.token_to_id(token) for token in _END_OF_TEXT)
        self.end_of_text = next((number for number in found if number is not None), None)
        special = {token["id"] for token in settings["added_tokens"] if token["special"]}
        is_byte_level = '"ByteLevel"' in json.dumps([settings["decoder"], settings["pre_tokenizer"]])
        self.token_bytes = tuple(
            0 if number in special else _num_bytes(self._tokenizer.id_to_token(number) or "", is_byte_level)
            for number in range(self.vocab_size)
        )

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[Any]]:
        """See `Tokenizer`."""
        try:
            decoded = [text.decode("utf-8") for text in texts]
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def load_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer that `dataset.tokenizer` names; None: bytes."""
    return ByteTokenizer() if path is None else JsonTokenizer(Path(path))


def _num_bytes(token: str, is_byte_level: bool) -> int:
    """Bytes of text that a token stands for. A byte-level token has a character for each byte."""
    if is_byte_level:
        return len(token)
    return 1 if _BYTE.fullmatch(token) else len(token.removeprefix("##").replace("▁", " ").encode())
