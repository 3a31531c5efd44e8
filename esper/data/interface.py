"""What a network reads and gives: kept with runs and exports, so that using one needs no data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from esper.configs import DatasetConfig
from esper.data.images import FileSet
from esper.data.spec import DataSpec
from esper.data.splits import DataSplits
from esper.data.tokens import TokenSet
from esper.errors import RunError
from esper.files import as_json, decoder, read_json, write_atomically
from esper.images.decode import Resize

__all__ = ["INTERFACE", "Interface", "Reading", "interface_of", "read_interface", "write_interface"]

_FILE = "interface.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How an image file becomes an input.

    Attributes:
        mode: RGB, or L for grey.
        shorter_side: the image's shorter side is resized to this.
        size: side of the square that is cut from its centre.
        is_streamed: whether training decoded files when it needed them, large JPEGs at reduced scale.
    """

    mode: Literal["RGB", "L"]
    shorter_side: int
    size: int
    is_streamed: bool

    @property
    def resize(self) -> Resize:
        """The same for the decoder."""
        return Resize(side=self.shorter_side, crop=self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Inputs and outputs of a trained network.

    Attributes:
        task: as in the settings.
        inputs: shape of an example, see `DataSpec`.
        values: type of the values before they are standardised: uint8, float32, or int64 for token ids.
        outputs: classes, size of the vocabulary, or numbers.
        output_names: of classes or numbers; empty: unnamed.
        mean, std: of each channel or column: inputs are (value / 255 - mean) / std; empty for token ids.
        image: how an image file is read; None: inputs do not come from image files.
        target: in a table, the column that is predicted; None: the last one.
        input_names: of the columns of a table, in the order of the inputs; empty: unnamed, as of arrays.
    """

    task: str
    inputs: tuple[int, ...]
    values: Literal["uint8", "float32", "int64"]
    outputs: int
    output_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image: Reading | None = None
    target: str | None = None
    input_names: tuple[str, ...] = ()

    @property
    def spec(self) -> DataSpec:
        """What the network was built for."""
        return DataSpec(
            inputs=self.inputs,
            dtype=torch.int64 if self.values == "int64" else torch.float32,
            num_outputs=self.outputs,
            output_names=self.output_names,
        )

    @property
    def names(self) -> list[str]:
        """A name for every output; unnamed ones have their number."""
        return [*self.output_names, *map(str, range(len(self.output_names), self.outputs))]

    def entry(self) -> dict[str, Any]:
        """As JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def of_entry(cls, entry: dict[str, Any]) -> Interface:
        """From what `entry` gave; checked by `INTERFACE`."""
        fields = {field.name: entry[field.name] for field in dataclasses.fields(cls) if field.name in entry}
        as_tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        image = fields.get("image")
        return cls(**{**fields, **as_tuples, "image": image and Reading(**image)})


INTERFACE = as_json(Interface)
"""Schema of `Interface.entry`."""
_DECODER = decoder(INTERFACE)


def interface_of(splits: DataSplits, spec: DataSpec, config: DatasetConfig, *, task: str) -> Interface:
    """The interface of a network.

    Args:
        splits: what it is trained on.
        spec: what it was built for.
        config: how images are read and standardised.
        task: as in the settings.
    """
    train, mean, std, image = splits.train, splits.mean, splits.std, None
    values: Literal["uint8", "float32", "int64"] = "uint8"
    if isinstance(train, TokenSet):
        values = "int64"
    elif isinstance(train, FileSet):
        image = Reading(mode="RGB", shorter_side=train.canvas_size, size=train.image_size, is_streamed=True)
    elif train.stored.is_floating_point():
        values = "float32"
    else:
        channels, height, width = train.shape
        if height == width and channels in (1, 3):
            mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
            image = Reading(mode=mode, shorter_side=height, size=height, is_streamed=False)
    if values == "uint8" and not config.normalize:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return Interface(
        task=task,
        inputs=spec.inputs,
        values=values,
        outputs=spec.num_outputs,
        output_names=spec.output_names,
        mean=mean,
        std=std,
        image=image,
        target=config.target if splits.target_name is None else splits.target_name,
        input_names=splits.input_names,
    )


def write_interface(run_dir: Path, interface: Interface) -> None:
    """Write `interface.json` into the folder of a run."""
    write_atomically(run_dir / _FILE, json.dumps(interface.entry(), indent=1) + "\n")


def read_interface(run_dir: Path) -> Interface | None:
    """What the folder of a run says; None: nothing, as in version 0.1.0.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return Interface.of_entry(read_json(run_dir / _FILE, _DECODER))
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error}; remove it, and what it says is taken from the run's data") from None
