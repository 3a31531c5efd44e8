"""Text: a file, or the files of a folder and its subfolders, split by document, by folder, or as given.

Hidden files and folders, whose names begin with a dot, and empty files are left out. So are folders whose names are in
`_SKIPPED`, which hold nothing that people wrote.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from esper.configs import DatasetConfig, torch_seed
from esper.data.corpus import Corpus, read_corpus
from esper.data.spec import DataSpec
from esper.data.splits import DataSplits
from esper.data.tokenizer import load_tokenizer
from esper.data.tokens import draw_groups, token_set
from esper.errors import DataError
from esper.images.fingerprint import Fingerprint, fingerprint_files
from esper.images.listing import is_special, walk

__all__ = ["find_texts", "fingerprint", "fingerprint_text", "load", "load_text"]

MAX_DEVICE_BYTES = 8 * 2**30
"""With storage=auto, token ids that need more than this stay memory-mapped."""
_SKIPPED = ("__pycache__",)
_GIVEN = ("train", "val", "test")
"""With split_by=given, the folders in data_dir that are the splits."""


def load(config: DatasetConfig, *, split_seed: int, cache_dir: Path | None) -> DataSplits:
    """The text in `dataset.data_dir`; see `load_text`."""
    return load_text(config, find_texts(config), split_seed=split_seed, cache_dir=cache_dir)


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """What the files hold now.

    Raises:
        DataError: they are missing or unreadable.
    """
    return fingerprint_text(config, find_texts(config))


def fingerprint_text(config: DatasetConfig, files: Sequence[str]) -> Fingerprint:
    """The fingerprint of files, and of the tokenizer."""
    found = fingerprint_files({"text": files}, root=_root(files), test="")
    if config.tokenizer is None:
        return found
    content = hashlib.sha256(Path(config.tokenizer).read_bytes()).hexdigest()[:16]
    return Fingerprint({**found.parts, "tokenizer": (1, "", content)}, test="")


def load_text(config: DatasetConfig, files: Sequence[str], *, split_seed: int, cache_dir: Path | None) -> DataSplits:
    """Tokenize files and split them.

    The test split is drawn first, the same for every `split_seed`. With `split_by=given`, folders are the splits, and
    only the halves of the validation split are drawn.

    Args:
        config: tokenizer, context, and how to split.
        files: their paths, sorted; the first part of a path below the files' common folder says which belong together
            (`split_by=folder`), or to which split (given).
        split_seed: random seed of the split.
        cache_dir: where token ids are cached; None: nowhere.

    Raises:
        ConfigError: the tokenizer cannot be used.
        DataError: a file is no text, or a split would be too small.
    """
    found, tokenizer = fingerprint_text(config, files), load_tokenizer(config.tokenizer)
    corpus = read_corpus(
        files,
        tokenizer,
        separator=config.document_separator,
        contents=json.dumps(found.entry()),
        cache_dir=cache_dir,
    )
    documents = _Documents(corpus, files, config)
    train, controller, judge = documents.draw(
        num_examples=config.num_examples, val_split=config.val_split, split_seed=split_seed
    )
    num_bytes = corpus.tokens.numel() * corpus.tokens.element_size()
    is_streamed = config.storage == "stream" or (config.storage == "auto" and num_bytes > MAX_DEVICE_BYTES)
    make = functools.partial(
        token_set, corpus.tokens, starts=corpus.starts, context=config.context, is_streamed=is_streamed
    )
    splits = DataSplits(
        train=make(train),
        controller=make(controller),
        judge=make(judge),
        test=make(documents.test),
        spec=DataSpec(
            inputs=(config.context,),
            dtype=torch.int64,
            num_outputs=tokenizer.vocab_size,
            token_bytes=tokenizer.token_bytes,
        ),
        train_indices=lambda **settings: documents.draw(**settings)[0],
        held_out=torch.cat([controller, judge]).sort().values,
        fingerprint=found,
        notices=_notices(config, corpus),
        noun="documents",
    )
    _require_enough(config, splits, documents)
    return splits


class _Documents:
    """The documents of a corpus in groups that stay together when they are split.

    Args:
        corpus: the documents.
        files: paths of their files.
        config: what a group is, share of the test split, and context.

    Attributes:
        num_groups: how many groups there are.
        test: the documents of the test split.
    """

    def __init__(self, corpus: Corpus, files: Sequence[str], config: DatasetConfig) -> None:
        documents = torch.arange(len(corpus.files))
        self._group = _folders(files)[corpus.files] if config.split_by == "folder" else documents
        self._context = config.context
        self.num_groups = int(self._group.max()) + 1
        self._sizes = torch.zeros(self.num_groups, dtype=torch.int64).index_add_(0, self._group, corpus.starts.diff())
        self._validation: Tensor | None = None
        if config.split_by == "given":
            split = _given_splits(files)[corpus.files]
            self._rest, self._validation, test = (documents[split == number] for number in range(len(_GIVEN)))
        else:
            generator = torch.Generator().manual_seed(0)
            self._rest, test = self._hold_out(torch.arange(self.num_groups), config.test_split, generator)
        self.test = self._members(test)

    def draw(self, *, num_examples: int | None, val_split: float, split_seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The documents of the training, controller and judge splits, each int64, ascending."""
        generator, used = torch.Generator().manual_seed(torch_seed(split_seed)), self._rest
        if num_examples is not None:
            share = num_examples * self._context / max(1, int(self._sizes[used].sum()))
            used = self._hold_out(used, share, generator)[1] if share < 1 else used
        if self._validation is None:
            train, validation = self._hold_out(used, val_split, generator)
        else:
            train, validation = used, self._validation
        judge, controller = self._hold_out(validation, 0.5, generator)
        return self._members(train), self._members(controller), self._members(judge)

    def _hold_out(self, groups: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Groups that are left, and those drawn; see `draw_groups`."""
        drawn, rest = draw_groups(self._sizes[groups].tolist(), share, generator)
        return groups[rest], groups[drawn]

    def _members(self, groups: Tensor) -> Tensor:
        return torch.isin(self._group, groups).nonzero()[:, 0]


def _require_enough(config: DatasetConfig, splits: DataSplits, documents: _Documents) -> None:
    for name in ("train", "controller", "judge", "test"):
        num = getattr(splits, name).num_tokens
        needed = config.context * (config.batch_size + 1 if name == "train" else 2)
        if num < needed:
            kind = "folders" if config.split_by == "folder" else "documents"
            shares = f"other shares (dataset.val_split={config.val_split:g}, test_split={config.test_split:g})"
            raise DataError(
                f"dataset {config.name}: the {name} split has {num:,} tokens of {documents.num_groups:,} {kind}, and "
                f"needs {needed:,}; use more text, a smaller dataset.context (now {config.context}) or "
                f"dataset.batch_size ({config.batch_size})" + (f", or {shares}" if config.split_by != "given" else "")
            )


def _notices(config: DatasetConfig, corpus: Corpus) -> tuple[str, ...]:
    if not corpus.is_cut or config.split_by != "document":
        return ()
    return (
        f"dataset.data_dir={config.data_dir}: few documents, so that the text is cut at ends of lines into "
        f"{len(corpus.files)} pieces, which are split like documents",
    )


# --- files ------------------------------------------------------------------------------------------------------------


def find_texts(config: DatasetConfig) -> list[str]:
    """Paths of the files, sorted by their parts."""
    place = Path(config.data_dir).expanduser()
    if config.split_by == "given":
        return [file for name in sorted(_GIVEN) for file in _find_split(place, name, config.file_pattern)]
    if place.is_file():
        return [str(place)]
    if not place.is_dir():
        raise DataError(f"dataset.data_dir={place}: no such file or folder; give one that holds text")
    found = find_files(place, config.file_pattern)
    if not found:
        raise DataError(
            f"dataset.data_dir={place}: no file that is not empty matches dataset.file_pattern={config.file_pattern!r}"
        )
    return found


def _find_split(place: Path, name: str, pattern: str) -> list[str]:
    """Paths of the files of a split that has a folder of its own, sorted by their parts."""
    folder = place / name
    found = find_files(folder, pattern) if folder.is_dir() else []
    if not found:
        raise DataError(
            f"dataset.split_by=given: {folder} is no folder with a file that is not empty and matches "
            f"dataset.file_pattern={pattern!r}; put the text into the folders {', '.join(_GIVEN)} of dataset.data_dir, "
            "or use split_by=document"
        )
    return found


def find_files(folder: Path, pattern: str, *, skipped: Sequence[str] = _SKIPPED) -> list[str]:
    """Files that are not empty and whose names match a pattern, sorted by the parts of their paths.

    Args:
        folder: where to look, also in its subfolders.
        pattern: as in a shell.
        skipped: names or patterns of files and folders to leave out.
    """
    prefix = len(os.path.join(folder, ""))  # noqa: PTH118
    found = [
        entry.path
        for entry in walk(folder)
        if fnmatchcase(entry.name, pattern)
        and not is_special(entry)
        and not any(fnmatchcase(part, name) for part in entry.path[prefix:].split(os.sep) for name in skipped)  # noqa: PTH206
        and entry.stat().st_size > 0
    ]
    return sorted(found, key=lambda path: path.split(os.sep))  # noqa: PTH206


def _root(files: Sequence[str]) -> str:
    """The folder that all files are in."""
    return os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120


def _folders(files: Sequence[str]) -> Tensor:
    """For each file, the number of the folder or file below their common folder that it is or is in: int64 (F,)."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in _first_parts(files)])


def _given_splits(files: Sequence[str]) -> Tensor:
    """For each file, the number in `_GIVEN` of the split whose folder it is in: int64 (F,)."""
    return torch.tensor([_GIVEN.index(name) for name in _first_parts(files)])


def _first_parts(files: Sequence[str]) -> list[str]:
    """For each file, the name of the folder or file below their common folder that it is or is in."""
    prefix = len(os.path.join(_root(files), ""))  # noqa: PTH118
    return [file[prefix:].split(os.sep)[0] for file in files]  # noqa: PTH206
