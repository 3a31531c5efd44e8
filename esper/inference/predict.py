"""`esper predict`: a table of predictions, and a page of pictures."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from esper import plugins
from esper.errors import DataError, RunError, WriteError
from esper.files import require_writable
from esper.inference.loading import load
from esper.inference.network import Network, Prediction
from esper.inference.page import Gallery
from esper.inference.sources import Picture, find_pictures, is_table, read_pictures, read_table
from esper.redact import printable

__all__ = ["load_for_command", "main"]

_UNREADABLE = 1
"""Exit code if some of the inputs could not be read."""


def main(
    run: Path,
    given: Sequence[str],
    *,
    out: str,
    top_k: int,
    batch_size: int,
    best: bool,
    device: str,
    modules: Sequence[str],
) -> int:
    """Predict, and write the table and, of pictures, the page; returns the exit code.

    Args:
        run: folder of a run or of an export.
        given: pictures, folders of them, tables (.csv, .npz, .parquet), or `-` for names on standard input.
        out: the .csv to write, beside which a page has the same name; `-`: standard output, without a page.
        top_k: how many of the likeliest classes to name.
        batch_size: examples that the network gets at once.
        best, device: as the command's options.
        modules: plugins to import.

    Raises:
        RunError: the network cannot be loaded, or reads text.
        DataError: nothing could be read.
        WriteError: a file cannot be written.
    """
    if out != "-" and Path(out).suffix != ".csv":
        raise RunError(f"--out {out}: must be a .csv file, or - for standard output; a page is written beside it")
    if out != "-":
        require_writable(Path(out))
        require_writable(Path(out).with_suffix(".html"))
        if any(Path(path).resolve() == Path(out).resolve() for path in given):
            raise RunError(f"--out {out}: is what to predict; name another file")
    network = load_for_command(run, best=best, device=device, modules=modules)
    if network.tokenizer is not None:
        raise RunError(f"{run}: a language model; esper sample lets it write, esper evaluate measures it on a text")
    if any(map(is_table, given)):
        with _opened(out) as file:
            return _predict_tables(network, given, file, top_k=top_k, batch_size=batch_size)
    pictures, problems = find_pictures(given, network.interface.names)
    with _opened(out) as file:
        for problem in problems:
            _complain(problem)
        gallery = Gallery(network, run=run)
        num_unread = _predict_pictures(network, pictures, file, gallery, top_k=top_k, batch_size=batch_size)
    if num_unread == len(pictures):
        raise DataError(f"{' '.join(given)}: no picture could be read")
    if out != "-":
        page = Path(out).with_suffix(".html")
        gallery.write(page)
        sys.stdout.write(f"{gallery.summary()}\n{out}\n{page}\n")
    return _UNREADABLE if num_unread or problems else 0


def load_for_command(run: Path, *, best: bool, device: str, modules: Sequence[str]) -> Network:
    """Load a network as the options of a command say."""
    plugins.load(modules)
    return load(run, best=best, device=device)


def _predict_pictures(
    network: Network, pictures: Sequence[Picture], file: TextIO, gallery: Gallery, *, top_k: int, batch_size: int
) -> int:
    """Write a row for each picture; returns how many could not be read."""
    has_classes = any(picture.true_class is not None for picture in pictures)
    writer = csv.writer(file)
    writer.writerow(["path", *(["true_class"] if has_classes else []), *_columns(network, top_k)])
    num_unread = 0
    for batch in read_pictures(network, pictures, batch_size=batch_size):
        for _, error in batch:
            if isinstance(error, DataError):
                _complain(str(error))
                num_unread += 1
        read = [(picture, values) for picture, values in batch if isinstance(values, Tensor)]
        if not read:
            continue
        outputs = network.outputs(torch.stack([values for _, values in read]))
        for (picture, values), prediction in zip(read, network.describe(outputs, top_k=top_k), strict=True):
            true_class = [picture.true_class or ""] if has_classes else []
            writer.writerow([picture.path, *true_class, *_cells(network, prediction, top_k)])
            gallery.add(picture, values, prediction)
    return num_unread


def _predict_tables(network: Network, given: Sequence[str], file: TextIO, *, top_k: int, batch_size: int) -> int:
    writer = csv.writer(file)
    writer.writerow(["path", "row", *_columns(network, top_k)])
    num_unread = 0
    for path in given:
        try:
            values, _ = read_table(network, path)
        except DataError as error:
            _complain(str(error))
            num_unread += 1
            continue
        row = 0
        for part in torch.split(values, batch_size):
            for prediction in network.describe(network.outputs(part), top_k=top_k):
                writer.writerow([path, row, *_cells(network, prediction, top_k)])
                row += 1
    if num_unread == len(given):
        raise DataError(f"{' '.join(given)}: no table could be read")
    return _UNREADABLE if num_unread else 0


def _columns(network: Network, top_k: int) -> list[str]:
    names = network.interface.names
    if network.task == "classification":
        others = [f"{column}_{i}" for i in range(2, min(top_k, len(names)) + 1) for column in ("class", "probability")]
        return ["class", "probability", *others]
    if network.task == "multilabel":
        return ["labels", *(f"probability_of_{name}" for name in names)]
    return [f"value_{name}" for name in names] if len(names) > 1 else ["value"]


def _cells(network: Network, prediction: Prediction, top_k: int) -> list[Any]:
    if network.task == "classification":
        return [cell for name, share in prediction.top[:top_k] for cell in (name, f"{share:.6g}")]
    if network.task == "multilabel":
        assert prediction.probabilities is not None
        shares = [f"{share:.6g}" for share in prediction.probabilities.tolist()]
        return [" ".join(name for name, _ in prediction.top), *shares]
    return [f"{value:.9g}" for value in prediction.output.flatten().tolist()]


def _complain(message: str) -> None:
    sys.stderr.write(f"not read: {printable(message)}\n")


@contextlib.contextmanager
def _opened(out: str) -> Iterator[TextIO]:
    if out == "-":
        yield sys.stdout
        return
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with Path(out).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror or error}; choose another file with --out") from None
