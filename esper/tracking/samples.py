"""`samples.json` of a finished run: pictures of the validation split, and the classes that the network predicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from esper.errors import RunError
from esper.files import as_json, read_json, write_atomically

__all__ = ["Sample", "read_samples", "write_samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture as a PNG in Base64, its class, the class that the network predicts and its probability."""

    true_class: str
    predicted_class: str
    probability: float
    png: str


_SAMPLES: TypeAdapter[list[dict[str, str | float]]] = TypeAdapter(
    list[as_json(Sample, png=Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")])]  # type: ignore[arg-type, misc]
)


def write_samples(run_dir: Path, samples: Sequence[Sample]) -> None:
    """Write the file.

    Raises:
        WriteError: it cannot be written.
    """
    write_atomically(run_dir / "samples.json", json.dumps([dataclasses.asdict(sample) for sample in samples]) + "\n")


def read_samples(run_dir: Path) -> list[dict[str, str | float]]:
    """The entries of the file; empty without one.

    Raises:
        RunError: it is damaged.
    """
    try:
        return read_json(run_dir / "samples.json", _SAMPLES)
    except FileNotFoundError:
        return []
    except RunError as error:
        raise RunError(f"{error}; remove it, and the report does without its pictures") from None
