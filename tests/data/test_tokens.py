from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.configs import DatasetConfig
from esper.data import TokenLoader, TokenSet, load_splits
from esper.data.corpus import read_corpus
from esper.data.tokenizer import load_tokenizer
from esper.data.tokens import draw_groups, token_set
from esper.errors import DataError

CPU = torch.device("cpu")
TOKENS = torch.arange(1000, dtype=torch.int32)
STARTS = torch.arange(0, 1001, 10)


def split(documents: list[int], *, context: int = 8, is_streamed: bool = False) -> TokenSet:
    return token_set(TOKENS, torch.tensor(documents), starts=STARTS, context=context, is_streamed=is_streamed)


def loader(tokens: TokenSet | None = None, *, rows: slice = slice(None), **changes: Any) -> TokenLoader:
    config = DatasetConfig(batch_size=5, **changes)
    return TokenLoader(tokens or split(list(range(40))), config, rng_seed=3, device=CPU, rows=rows)


def test_a_split_reads_its_documents_as_if_they_stood_together() -> None:
    chosen = split([0, 2, 3, 9])
    assert chosen.num_tokens == 40
    whole = [*range(10), *range(20, 40), *range(90, 100)]
    assert chosen.read(torch.tensor([0]), 40)[0].tolist() == whole
    assert chosen.read(torch.tensor([8, 28]), 4).tolist() == [whole[8:12], whole[28:32]]


@pytest.mark.parametrize("num_documents", [4, 5])  # with and without a shorter last window
def test_evaluation_predicts_every_token_but_the_first_exactly_once(num_documents: int) -> None:
    chosen = split(list(range(num_documents)))
    batches = list(chosen.batches(3, CPU))
    targets = torch.cat([targets.flatten() for _, targets in batches])
    assert targets.tolist() == list(range(1, 10 * num_documents))
    assert sum(len(inputs) for inputs, _ in batches) == len(chosen)
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in batches)


def test_the_shards_of_ranks_hold_the_windows_of_the_whole_split() -> None:
    chosen = split(list(range(5)))
    shards = [chosen[torch.arange(len(chosen))[part]] for part in (slice(0, 2), slice(2, None))]
    targets = [targets.flatten() for shard in shards for _, targets in shard.batches(2, CPU)]
    assert [len(shard) for shard in shards] == [2, len(chosen) - 2]
    assert torch.cat(targets).tolist() == list(range(1, 50))


def test_a_pass_takes_each_window_once_and_the_next_one_shifts_them() -> None:
    batches = loader()
    starts = [
        torch.cat([batches.batch(epoch, i)[0][:, 0] for i in range(batches.num_batches)]).sort().values
        for epoch in (0, 1)
    ]
    assert batches.num_batches == 9  # 400 tokens: 49 windows after any shift, in fives
    for found in starts:
        assert len(found.unique()) == 45
        assert (found % 8).unique().numel() == 1
    assert starts[0][0] % 8 != starts[1][0] % 8


def test_batches_depend_on_seed_epoch_and_index_alone() -> None:
    first, second = loader(), loader()
    wanted = [(2, 3), (0, 1), (2, 3)]
    a, b = [first.batch(*key) for key in wanted], {key: second.batch(*key) for key in sorted(set(wanted))}
    assert all(torch.equal(inputs, b[key][0]) for (inputs, _), key in zip(a, wanted, strict=True))
    other = TokenLoader(split(list(range(40))), DatasetConfig(batch_size=5), rng_seed=4, device=CPU)
    assert not torch.equal(a[0][0], other.batch(2, 3)[0])


def test_batches_from_tensors_on_the_device_are_the_same() -> None:
    plain, captured = loader(epoch_windows=20), loader(epoch_windows=20)
    for epoch, index in ((0, 0), (3, 2), (5, 1)):
        captured.seek(epoch, index)
        inputs, targets = captured.batch(torch.tensor(epoch), torch.tensor(index))
        expected = plain.batch(epoch, index)
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])
        assert torch.equal(inputs + 1, targets)


def test_a_short_epoch_continues_the_pass_of_the_one_before() -> None:
    short, whole = loader(epoch_windows=15), loader()
    assert short.num_batches == 3
    assert torch.equal(short.batch(2, 1)[0], whole.batch(0, 7)[0])
    assert torch.equal(short.batch(3, 1)[0], whole.batch(1, 1)[0])


def test_streamed_tokens_give_the_same_batches() -> None:
    plain, streamed = loader(), loader(split(list(range(40)), is_streamed=True))
    for epoch, index in ((0, 0), (0, 1), (1, 0), (0, 1)):
        for mine, theirs in zip(streamed.batch(epoch, index), plain.batch(epoch, index), strict=True):
            assert torch.equal(mine, theirs)
    before = streamed.batch(0, 3)[0].clone()
    first = list(streamed.first_batches(1, 2))
    assert torch.equal(first[1], plain.batch(1, 1)[0])
    streamed.seek(0, 3)
    assert torch.equal(streamed.batch(torch.tensor(0), torch.tensor(3))[0], before)


def test_the_rows_of_all_ranks_make_up_the_whole_batch() -> None:
    parts = [loader(rows=rows).batch(1, 2)[0] for rows in (slice(0, 3), slice(3, 5))]
    assert torch.equal(torch.cat(parts), loader().batch(1, 2)[0])


def test_a_large_group_is_not_drawn_for_a_small_share() -> None:
    sizes = [1000, *[10] * 100]
    for seed in range(5):
        drawn, rest = draw_groups(sizes, 0.1, torch.Generator().manual_seed(seed))
        assert 0 not in drawn
        assert sum(sizes[group] for group in drawn) == 200
        assert sorted([*drawn, *rest]) == list(range(101))


# --- sources ----------------------------------------------------------------------------------------------------------


def folder_of_texts(folder: Path, *, num: int = 40, size: int = 300) -> Path:
    for i in range(num):
        file = folder / f"part{i % 4}" / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{i:02} " * (size // 3))
    return folder


def load(place: Path, cache_dir: Path | None = None, *, rng_seed: int = 0, **changes: Any) -> Any:
    settings = {"name": "text", "data_dir": str(place), "context": 16, "batch_size": 4, "val_split": 0.3} | changes
    return load_splits(DatasetConfig(**settings), rng_seed=rng_seed, cache_dir=cache_dir)


def words(tokens: TokenSet) -> set[str]:
    text = bytes(tokens.read(torch.tensor([0]), tokens.num_tokens)[0].tolist())
    return {document[:2].decode() for document in text.split(b"\0")[:-1]}


SPLITS = ("train", "controller", "judge", "test")


def test_each_document_is_in_one_split_and_the_test_split_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    first, second = (load(folder_of_texts(tmp_path), rng_seed=seed) for seed in (0, 1))
    parts = [words(getattr(first, name)) for name in SPLITS]
    assert set.union(*parts) == {f"{i:02}" for i in range(40)}
    assert sum(map(len, parts)) == 40
    assert [len(part) for part in parts] == [26, 5, 5, 4]
    assert words(second.test) == parts[3]
    assert words(second.train) != parts[0]
    assert first.spec.inputs == (16,)
    assert (first.spec.dtype, first.spec.num_outputs) == (torch.int64, 256)


def test_split_by_folder_keeps_folders_together(tmp_path: Path) -> None:
    splits = load(folder_of_texts(tmp_path), split_by="folder", val_split=0.7, test_split=0.25)
    assert [len({int(word) % 4 for word in words(getattr(splits, name))}) for name in SPLITS] == [1, 1, 1, 1]


def given_splits(place: Path) -> Path:
    for name, numbers in (("train", range(24)), ("val", range(30, 38)), ("test", range(50, 54))):
        (place / name / "package").mkdir(parents=True)
        for number in numbers:
            (place / name / "package" / f"{number:02}.txt").write_text(f"{number:02}" * 150)
    (place / "README").write_text("in no split")
    return place


def test_folders_of_the_names_of_splits_are_the_splits(tmp_path: Path) -> None:
    first, second = (load(given_splits(tmp_path / str(i)), split_by="given", rng_seed=i) for i in (0, 1))
    for splits in (first, second):
        assert words(splits.train) == {f"{i:02}" for i in range(24)}
        assert words(splits.test) == {f"{i:02}" for i in range(50, 54)}
        halves = [words(splits.controller), words(splits.judge)]
        assert [len(half) for half in halves] == [4, 4]
        assert set.union(*halves) == {f"{i:02}" for i in range(30, 38)}
    assert words(first.judge) != words(second.judge)


def test_a_split_that_is_not_given_is_named(tmp_path: Path) -> None:
    place = given_splits(tmp_path)
    (place / "val").rename(place / "valid")
    with pytest.raises(DataError, match=r"split_by=given: .*/val is no folder with a file .* folders train, val, test"):
        load(place, split_by="given")


def test_a_file_is_split_at_its_separators(tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>".join(f"{i:02}" * 100 for i in range(30)))
    splits = load(file)
    assert len(set.union(*(words(getattr(splits, name)) for name in SPLITS))) == 30
    assert splits.notices == ()


def test_a_file_of_one_document_is_cut_at_ends_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("".join(f"line {i} of the book\n" for i in range(2000)))
    splits = load(file)
    assert "cut at ends of lines into" in splits.notices[0]
    text = b"".join(
        bytes(tokens.read(torch.tensor([0]), tokens.num_tokens)[0].tolist())
        for tokens in (getattr(splits, name) for name in SPLITS)
    )
    assert text.count(b"\0") == 1
    lines = text.replace(b"\0", b"").decode().splitlines()
    assert sorted(lines) == sorted(f"line {i} of the book" for i in range(2000))


@pytest.mark.parametrize(
    "text", ["one word and another " * 2000, "läßt" * 3000, "a\n" * 9000 + "without an end " * 1500]
)
def test_text_without_ends_of_lines_is_cut_between_words_or_characters(tmp_path: Path, text: str) -> None:
    file = tmp_path / "long.txt"
    file.write_text(text)
    corpus = read_corpus([str(file)], load_tokenizer(None), separator="", contents="", cache_dir=None)
    pieces = [bytes(corpus.tokens[a:b].tolist()) for a, b in itertools.pairwise(corpus.starts.tolist())]
    assert b"".join(pieces).rstrip(b"\0").decode() == text
    assert 100 < len(pieces) <= 200
    assert all(piece.decode().endswith((" ", "\n", "t", "\0")) for piece in pieces if " " in text)
    assert all(piece.decode() for piece in pieces)  # characters are whole
    assert len(load(file).train) > 20


def test_the_cache_is_used_and_made_anew_when_a_file_changes(tmp_path: Path) -> None:
    folder, cache = folder_of_texts(tmp_path / "texts"), tmp_path / "cache"
    first = load(folder, cache)
    written = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert torch.equal(load(folder, cache).train.tokens, first.train.tokens)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == written
    (folder / "part0" / "00.txt").write_text("xx " * 100)
    changed = load(folder, cache)
    assert len(list(cache.iterdir())) == 2 * len(written) == 4
    assert changed.fingerprint.changes(first.fingerprint) == ["text: other contents"]


@pytest.mark.parametrize("suffix", [".tokens", ".safetensors"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, suffix: str) -> None:
    folder, cache = folder_of_texts(tmp_path / "texts"), tmp_path / "cache"
    expected = load(folder, cache).train.tokens.clone()  # a copy: the file below is memory-mapped
    (file,) = cache.glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(load(folder, cache).train.tokens, expected)


def test_other_settings_say_which_documents_they_would_train_on(tmp_path: Path) -> None:
    folder = folder_of_texts(tmp_path)
    splits, others = load(folder, rng_seed=0), load(folder, rng_seed=5, val_split=0.4)
    same = splits.train_indices(num_examples=None, val_split=0.4, split_seed=5)
    assert torch.equal(same, others.train_indices(num_examples=None, val_split=0.4, split_seed=5))
    assert not torch.isin(others.held_out, same).any()
    assert torch.equal(load(folder, rng_seed=0, split_seed=5, val_split=0.4).held_out, others.held_out)
    few = load(folder, num_examples=200)
    used = sum(getattr(few, name).num_tokens for name in SPLITS[:3])
    assert 180 * 16 <= used <= 200 * 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("nothing", r"no such file or folder; give one that holds text"),
        ("binary", r"00\.txt: not a text, as it contains zero bytes; remove it, or choose files by"),
        ("no match", r"no file that is not empty matches dataset\.file_pattern='\*\.md'"),
        ("separators", r"book\.txt: holds nothing but dataset\.document_separator='<\|endoftext\|>'; give some text"),
        ("too little", r"the judge split has 0 tokens of 4 folders, and needs 32; use more text"),
    ],
)
def test_text_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, make: str, message: str) -> None:
    place, changes = tmp_path / "texts", {}
    if make != "nothing":
        folder_of_texts(place, num=4 if make == "too little" else 40, size=60 if make == "too little" else 300)
    if make == "binary":
        (place / "part0" / "00.txt").write_bytes(b"abc\0" * 100)
    if make == "separators":
        place = tmp_path / "book.txt"
        place.write_text("<|endoftext|>" * 30)
    if make == "no match":
        changes["file_pattern"] = "*.md"
    if make == "too little":
        changes["split_by"] = "folder"
    with pytest.raises(DataError, match=rf"^[^\n]*{message}[^\n]*$"):
        load(place, **changes)


@pytest.mark.parametrize("text", ["h", "hi\n", "one line\nand one more\n", "a b c d e f"])
def test_a_text_that_is_too_short_for_the_splits_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(DataError, match=r"^[^\n]*the train split has \d+ tokens of \d+ documents, and needs 80; "):
        load(tmp_path / "short.txt")


def test_the_sources_of_python_are_split_by_package() -> None:
    config = DatasetConfig(name="python_source")
    splits = load_splits(config, rng_seed=0, cache_dir=None)
    sizes = [getattr(splits, name).num_tokens for name in SPLITS]
    assert sum(sizes) == len(splits.train.tokens) > 5_000_000
    assert 0.08 < sizes[3] / sum(sizes) <= 0.1
    assert 0.03 < sizes[1] / sum(sizes) < 0.06
