"""`esper evaluate`: the metrics of a network's task on its test split, or on other data."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from esper.configs import DatasetConfig, TaskConfig
from esper.configs.identity import with_defaults
from esper.console import Console
from esper.data import DecodePool, evaluation_batches
from esper.data.corpus import read_corpus
from esper.data.evaluation import batch_size
from esper.data.sources.text import find_texts
from esper.data.tokens import token_set
from esper.errors import DataError, RunError
from esper.images.listing import list_classes
from esper.inference.loading import own_splits
from esper.inference.network import Network
from esper.inference.predict import load_for_command
from esper.inference.sources import as_targets, find_pictures, is_table, read_pictures, read_table
from esper.tasks import Task, build_task
from esper.tolaria.evaluate import evaluate_in_detail
from esper.tolaria.run_folder import recorded_config
from esper.tracking import formatting
from esper.tracking.liveness import recorded_status

__all__ = ["main"]

Batches = Iterable[tuple[Tensor, Tensor]]
_MAX_SHOWN = 20
"""Most classes of which the terminal shows the confusion matrix."""
_NUM_CONFUSIONS = 10
"""Of more classes, the most frequent confusions."""


def main(run: Path, data: str | None, *, best: bool, device: str, modules: Sequence[str], as_json: bool) -> int:
    """Evaluate, and print; returns the exit code.

    Args:
        run: folder of a run, or of an export.
        data: pictures in a folder for each class, a table, or text; None: the run's own test split.
        best, device: as the command's options.
        modules: plugins to import.
        as_json: print JSON.

    Raises:
        RunError: the network cannot be loaded.
        DataError: the data cannot be used.
    """
    network = load_for_command(run, best=best, device=device, modules=modules)
    what, batches = _own_test(network, run) if data is None else _given(network, run, data)
    if data is None and not as_json:
        sys.stderr.write(
            f"evaluates on {what}: if this result decides between networks, test the chosen one on other data\n"
        )
    loss, figures, detail = evaluate_in_detail(network.network, batches, _task(network))
    if as_json:
        content = {"data": what, "loss": loss, **figures, **{k.removeprefix("test_"): v for k, v in detail.items()}}
        sys.stdout.write(f"{json.dumps(content, indent=1)}\n")
        return 0
    before = _recorded(run) if data is None and not best else {}
    _print(network, what, {"loss": loss, **figures}, detail, before)
    return 0


def _task(network: Network) -> Task:
    spec = network.interface.spec
    if network.tokenizer is not None:
        spec = dataclasses.replace(spec, token_bytes=network.tokenizer.token_bytes)
    return build_task(TaskConfig(name=network.task), spec, network.device)


# --- data -------------------------------------------------------------------------------------------------------------


def _own_test(network: Network, run: Path) -> tuple[str, Batches]:
    recorded = recorded_config(run)
    if recorded is None:
        raise RunError(f"{run}: an export does not say what is its test split; name data: esper evaluate {run} DATA")
    settings = with_defaults(recorded)
    splits = own_splits(run, settings).to(network.device)
    name, num = settings["dataset"]["name"], len(splits.test)
    pool = DecodePool(settings["dataset"]["num_workers"], timeout_s=settings["dataset"]["timeout_s"])
    return f"the test split of {name}, {num:,} {splits.example_noun}", _closing(
        evaluation_batches(
            splits.test, network.interface.spec, prepare=network.preprocess(), pool=pool, device=network.device
        ),
        pool,
    )


def _closing(batches: Batches, pool: DecodePool) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        yield from batches
    finally:
        pool.close()


def _given(network: Network, run: Path, data: str) -> tuple[str, Batches]:
    if network.tokenizer is not None:
        return _text(network, run, data)
    if is_table(data):
        values, targets = read_table(network, data)
        if targets is None:
            raise DataError(f"{data}: has no targets; give a table with the column or array that is to be predicted")
        compared = as_targets(network, targets, data, num=len(values))
        return f"{data}, {len(values):,} examples", _batches(network, values, compared)
    return _pictures(network, data)


def _batches(network: Network, values: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = batch_size(network.interface.spec)
    for part, target in zip(torch.split(values, size), torch.split(targets, size), strict=True):
        yield network.prepare(part), target.to(network.device)


def _pictures(network: Network, data: str) -> tuple[str, Batches]:
    folder, names = Path(data).expanduser(), network.interface.names
    if network.task in ("multilabel", "regression"):
        raise DataError(
            f"{data}: folders name a class for each picture, but the network's task is {network.task}; give an .npz of "
            "inputs and targets"
        )
    for split in ("test", "val"):
        if {*list_classes(folder / split)} & {*names}:
            folder = folder / split
            break
    classes = list_classes(folder)
    if not classes:
        raise DataError(f"{folder}: no folder with a subfolder for each class, and no .csv, .npz or .parquet")
    if unknown := next((name for name in classes if name not in names), None):
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise DataError(f"{folder / unknown}: not a class of the network, which are {shown}; rename or remove it")
    pictures, problems = find_pictures([str(folder)], names)
    pictures = [picture for picture in pictures if picture.true_class is not None]
    for problem in problems:
        sys.stderr.write(f"not read: {problem}\n")
    if not pictures:
        raise DataError(f"{folder}: holds no pictures")
    index = {name: i for i, name in enumerate(names)}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in read_pictures(network, pictures, batch_size=batch_size(network.interface.spec)):
            values = []
            for _, read in batch:
                if isinstance(read, DataError):
                    raise read
                values.append(read)
            labels = [index[picture.true_class or ""] for picture, _ in batch]
            yield network.prepare(torch.stack(values)), torch.tensor(labels, device=network.device)

    return f"{folder}, {len(pictures):,} pictures", batches()


def _text(network: Network, run: Path, data: str) -> tuple[str, Batches]:
    assert network.tokenizer is not None
    recorded = recorded_config(run)
    settings = with_defaults(recorded)["dataset"] if recorded is not None else {}
    known = {name: settings[name] for name in ("file_pattern", "document_separator") if name in settings}
    config = DatasetConfig(name="text", data_dir=data, **known)
    corpus = read_corpus(
        find_texts(config), network.tokenizer, separator=config.document_separator, contents="", cache_dir=None
    )
    context = network.interface.inputs[0]
    documents = torch.arange(len(corpus.files))
    tokens = token_set(corpus.tokens, documents, starts=corpus.starts, context=context, is_streamed=False)
    tokens = tokens.placed(corpus.tokens.to(network.device))
    if tokens.num_tokens < 2:
        raise DataError(f"{data}: has fewer than two tokens")
    return f"{data}, {tokens.num_tokens:,} tokens", tokens.batches(batch_size(network.interface.spec), network.device)


# --- output -----------------------------------------------------------------------------------------------------------


def _recorded(run: Path) -> Mapping[str, Any]:
    """Loss and metrics that the run recorded when it ended."""
    result = (recorded_status(run) or {}).get("result") or {}
    return {name.removeprefix("test_"): value for name, value in result.items() if name.startswith("test_")}


def _print(
    network: Network, what: str, figures: Mapping[str, float], detail: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    console = Console(highlight=False)
    console.print(what, markup=False)
    infos = {metric.name: metric.info for metric in _task(network).metrics}
    table = Table(box=None, pad_edge=False)
    for column in ("", "now", *(["when the run ended"] if before else [])):
        table.add_column(column, justify="right" if column else "left")
    for name, value in figures.items():
        shown = [
            formatting.metric(one, infos[name], decimals=2) if name in infos else formatting.loss(one)
            for one in (value, before.get(name))[: len(table.columns) - 1]
        ]
        table.add_row(infos[name].label if name in infos else name, *shown)
    console.print(table)
    confusion = detail.get("test_confusion")
    if confusion:
        _print_confusion(console, network.interface.names, confusion)


def _print_confusion(console: Console, names: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    if len(names) > _MAX_SHOWN:
        pairs = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j]
        console.print("\nmost frequent confusions (--json prints the matrix)")
        for num, i, j in sorted(pairs, reverse=True)[:_NUM_CONFUSIONS]:
            console.print(f"{num:6,}  {names[i]} predicted as {names[j]}", markup=False)
        return
    table = Table(box=None, pad_edge=False, title="confusion: rows are true classes", title_justify="left")
    for name in ("", *names, "right"):
        table.add_column(name, justify="right" if name else "left")
    for i, row in enumerate(confusion):
        share = formatting.percent(row[i] / sum(row) if sum(row) else None)
        table.add_row(names[i], *(str(cell or "·") for cell in row), share)
    console.print()
    console.print(table)
