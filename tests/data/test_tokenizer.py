from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from esper.configs import DatasetConfig
from esper.data import load_splits
from esper.data.tokenizer import ByteTokenizer, load_tokenizer
from esper.errors import ConfigError, DataError

TEXTS = [f"the cat number {i} sat on the mat, naïvely — and {i * i} dogs watched it.\n" * 6 for i in range(60)]


def byte_level(folder: Path) -> str:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_bytes_are_their_own_ids() -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode(["né".encode()])
    assert ids.tolist() == [110, 195, 169]
    assert tokenizer.decode(ids.tolist()) == "né"
    assert tokenizer.decode([195]) == "\ufffd"


def test_a_byte_level_tokenizer_restores_the_text_and_knows_the_bytes_of_each_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path))
    assert tokenizer.end_of_text == 0
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) <= 320
    assert tokenizer.token_bytes[0] == 0
    text = TEXTS[7] + "ÿ unseen \u4e2d"
    (ids,) = tokenizer.encode([text.encode()])
    assert len(ids) < len(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert sum(tokenizer.token_bytes[i] for i in ids) == len(text.encode())


def test_a_word_tokenizer_counts_the_bytes_of_its_pieces(tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, "cat": 1, "##s": 2, "▁naïve": 3, "<0x0A>": 4}
    model: Any = tokenizers.models.WordPiece(vocab, unk_token="[UNK]")
    path = tmp_path / "words.json"
    tokenizers.Tokenizer(model).save(str(path))
    assert load_tokenizer(str(path)).token_bytes == (5, 3, 1, 7, 1)


def test_text_is_tokenized_with_an_end_after_each_document(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02}.txt").write_text(text)
    path = byte_level(tmp_path)
    config = DatasetConfig(name="text", data_dir=str(folder), context=16, batch_size=4, tokenizer=path, val_split=0.3)
    splits = load_splits(config, rng_seed=0, cache_dir=tmp_path / "cache")
    tokenizer = load_tokenizer(path)
    expected = [np.append(ids, 0) for ids in tokenizer.encode([text.encode() for text in TEXTS])]
    assert splits.train.tokens.dtype is torch.int32
    assert splits.train.tokens.tolist() == np.concatenate(expected).tolist()
    assert splits.spec.num_outputs == tokenizer.vocab_size
    assert splits.spec.token_bytes == tokenizer.token_bytes
    assert splits.fingerprint.parts["tokenizer"][0] == 1


def test_what_is_no_utf8_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / "31.txt").write_bytes(b"\xff\xfe" * 50)
    config = DatasetConfig(name="text", data_dir=str(folder), tokenizer=byte_level(tmp_path))
    with pytest.raises(DataError, match=r"^[^\n]*31\.txt: not UTF-8 \(invalid start byte at byte 0\); [^\n]*$"):
        load_splits(config, rng_seed=0, cache_dir=None)


def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ConfigError, match=r"^dataset\.tokenizer=[^\n]*: not a tokenizer\.json of the library [^\n]*$"):
        load_tokenizer(str(path))
