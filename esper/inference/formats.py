"""Formats for other programs. What is written is read back and compared with the network before it counts as done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import CheckpointError, ConfigError, one_line

__all__ = ["FORMATS", "greatest_difference", "write_format"]

_TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output: single precision, added up in another order."""
_BATCH_SIZES = (1, 3)
"""Batches that are compared besides the whole one: the number of examples must not be fixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        file: name of the file.
        write: from network, a batch of inputs and metadata to the file.
        read: a function from inputs to outputs that runs the file.
        packages: what both need; the extra of the format's name installs them.
    """

    file: str
    write: Callable[[nn.Module, Tensor, Mapping[str, Any], Path], None]
    read: Callable[[Path], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()


def write_format(name: str, network: nn.Module, inputs: Tensor, metadata: Mapping[str, Any], folder: Path) -> float:
    """Write a network in a format of `FORMATS`, and compare the file's outputs; returns the greatest difference.

    Args:
        name: of the format.
        network: in eval mode, on the CPU.
        inputs: real ones, at least three.
        metadata: JSON data that the file can carry, if the format allows it.
        folder: where to write.

    Raises:
        ConfigError: what it needs is not installed.
        CheckpointError: the network cannot be written so, or the file computes something else.
    """
    form = FORMATS[name]
    if missing := [package for package in form.packages if find_spec(package) is None]:
        raise ConfigError(f"--format {name}: needs {', '.join(missing)}; pip install 'esper-train[{name}]'")
    file = folder / form.file
    try:
        with torch.no_grad(), _quiet():
            form.write(network, inputs[:2], metadata, file)
            run = form.read(file)
            batches = [inputs, *(inputs[:size] for size in _BATCH_SIZES)]
            return max(greatest_difference(network(batch), run(batch), what=form.file) for batch in batches)
    except CheckpointError:
        raise
    except Exception as error:  # exporters raise anything
        reason = one_line(error, max_length=300)
        raise CheckpointError(f"--format {name}: the network cannot be written so: {reason}") from None


def greatest_difference(expected: Tensor, found: Tensor, *, what: str) -> float:
    """How much two outputs differ at most.

    Raises:
        CheckpointError: by more than rounding.
    """
    if expected.shape != found.shape:
        raise CheckpointError(f"{what}: gives outputs {tuple(found.shape)}, the network {tuple(expected.shape)}")
    difference = float((expected.float() - found.float()).abs().max())
    limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise CheckpointError(
            f"{what}: computes something else than the network: outputs differ by up to {difference:.2g}, allowed is "
            f"{limit:.2g}; nothing was exported"
        )
    return difference


def _write_torchscript(network: nn.Module, inputs: Tensor, _: Mapping[str, Any], file: Path) -> None:
    torch.jit.save(torch.jit.trace(network, (inputs,)), file)  # type: ignore[no-untyped-call]


def _read_torchscript(file: Path) -> Callable[[Tensor], Tensor]:
    module: Callable[[Tensor], Tensor] = torch.jit.load(file)  # type: ignore[no-untyped-call]
    return module


def _write_exported(network: nn.Module, inputs: Tensor, _: Mapping[str, Any], file: Path) -> None:
    program = torch.export.export(network, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, file)


def _read_exported(file: Path) -> Callable[[Tensor], Tensor]:
    module: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return module


def _write_onnx(network: nn.Module, inputs: Tensor, metadata: Mapping[str, Any], file: Path) -> None:
    program = torch.onnx.export(
        network,
        (inputs,),
        dynamo=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["esper"] = json.dumps(metadata)
    program.save(file)


def _read_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager without the exporters' warnings, which are about their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMATS = {
    "onnx": Format(
        file="model.onnx", write=_write_onnx, read=_read_onnx, packages=("onnx", "onnxruntime", "onnxscript")
    ),
    "torchscript": Format(file="model.torchscript", write=_write_torchscript, read=_read_torchscript),
    "torch.export": Format(file="model.pt2", write=_write_exported, read=_read_exported),
}
"""By the name of `esper export --format`; `safetensors` is always written."""
