"""From what a user has (files, images, arrays, text) to what a network was trained on."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esper.data.interface import Interface
from esper.data.tokenizer import Tokenizer
from esper.errors import DataError, one_line
from esper.images.decode import decode_chunk, decode_image, decode_whole

__all__ = ["read_example", "split_examples"]


def split_examples(given: Any, interface: Interface) -> tuple[list[Any], bool]:
    """One example or many, as a list; and whether they were many.

    Many are a list or tuple, or an array with one dimension more than an example has.
    """
    if isinstance(given, list | tuple):
        is_row = bool(given) and all(isinstance(value, Real) for value in given)
        return ([given], False) if is_row else (list(given), True)
    num_dims = getattr(given, "ndim", None)
    is_batch = num_dims is not None and num_dims == len(interface.inputs) + 1
    return (list(given), True) if is_batch else ([given], False)


def read_example(example: Any, interface: Interface, tokenizer: Tokenizer | None) -> Tensor:
    """One example, as the training data had it: uint8 or float32 of the shape `inputs`, or token ids int64 (T,).

    An array of that shape is taken as it is; other uint8 arrays (H, W) or (H, W, C) are images, which are resized and
    cropped like files.

    Raises:
        DataError: it does not suit the network.
    """
    if tokenizer is not None:
        return _read_text(example, interface, tokenizer)
    if isinstance(example, str | Path):
        return _read_file(Path(example), interface)
    if isinstance(example, Image.Image):
        return _in_mode(_of_image(example, interface), interface)
    try:
        array = example if isinstance(example, Tensor) else torch.from_numpy(np.array(example))
    except (TypeError, ValueError) as error:
        kind = type(example).__name__
        raise DataError(f"{kind}: cannot be read as an example ({one_line(error)}); {_allowed(interface)}") from None
    return _read_array(array, interface)


def _read_text(example: Any, interface: Interface, tokenizer: Tokenizer) -> Tensor:
    if not isinstance(example, str):
        raise DataError(f"{type(example).__name__}: the network reads text; give a str")
    (ids,) = tokenizer.encode([example.encode()])
    ids = ids[-interface.inputs[0] :]
    if len(ids) == 0:
        raise DataError("the text is empty; give at least a character")
    return torch.from_numpy(ids.astype(np.int64))


def _read_file(path: Path, interface: Interface) -> Tensor:
    image = interface.image
    if image is None:
        raise DataError(f"{path}: the network does not read image files; {_allowed(interface)}")
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(f"{path}: {what}")
    if image.is_streamed:
        pixels = decode_chunk([str(path)], image.resize).images[0].transpose(2, 0, 1)
    else:
        pixels = decode_whole(str(path), image.size)
    return _in_mode(torch.from_numpy(pixels), interface)


def _of_image(image: Image.Image, interface: Interface) -> Tensor:
    reading = interface.image
    if reading is None:
        raise DataError(f"the network does not read images; {_allowed(interface)}")
    return torch.from_numpy(decode_image(image, reading.resize, is_streamed=reading.is_streamed))


def _in_mode(pixels: Tensor, interface: Interface) -> Tensor:
    """Turn RGB (3, S, S) into grey (1, S, S) if the network reads that."""
    assert interface.image is not None
    if interface.image.mode == "RGB":
        return pixels
    grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
    return torch.from_numpy(np.array(grey))[None]


def _read_array(array: Tensor, interface: Interface) -> Tensor:
    array = array.detach().cpu()
    if tuple(array.shape) == interface.inputs:
        if interface.values == "uint8" and array.dtype != torch.uint8:
            raise DataError(
                f"array of {array.dtype}: the network was trained on whole numbers from 0 to 255; give these as uint8"
            )
        return array if interface.values == "uint8" else array.float()
    is_image = interface.image is not None and array.dtype == torch.uint8
    if is_image and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        pixels = array.numpy()[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array.numpy()
        return _in_mode(_of_image(Image.fromarray(pixels), interface), interface)
    raise DataError(f"array {tuple(array.shape)} of {array.dtype}: {_allowed(interface)}")


def _allowed(interface: Interface) -> str:
    shape = "x".join(map(str, interface.inputs))
    if interface.image is None:
        return f"give an array {shape} of {interface.values}"
    return f"give an image, its path, or an array (height, width, 3) or {shape} of uint8"
