"""Export the network of a run's checkpoint, with its kernels folded into the host where possible.

    model.safetensors     parameters and buffers, with torchvision's names if everything could be folded
    model.json            what the network reads and gives, how to build it, growth recipe, what could not be folded
    tokenizer.json        of a language model that does not read bytes
    model.onnx, …         other formats, if asked for

In eval mode, the exported network computes the same as the run's, which is checked before the folder gets its name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from esper import __version__
from esper.data import DecodePool, evaluation_batches
from esper.errors import ConfigError, DataError, RunError
from esper.files import as_umask_says, require_writable, sha256, write_atomically
from esper.inference.formats import greatest_difference, write_format
from esper.inference.loading import (
    DESCRIPTION,
    SCHEMA,
    TOKENIZER,
    WEIGHTS,
    Trained,
    load,
    own_splits,
    trained,
)
from esper.inference.network import Network
from esper.inference.sources import check_examples
from esper.kasmina import SeedSlot
from esper.models import host_family

__all__ = ["export"]

_NUM_CHECKED = 16
"""Examples on which outputs are compared."""


def export(
    run_dir: Path,
    out: Path,
    *,
    best: bool = False,
    formats: Sequence[str] = (),
    check: str | None = None,
    license: str | None = None,
    model: Any = None,
) -> Path:
    """Write a run's network into a new or empty folder; returns the folder.

    Args:
        run_dir: folder of the run, finished or not.
        out: folder to write to.
        best: export the checkpoint with the lowest validation loss instead of the newest one.
        formats: others than safetensors, of `FORMATS`.
        check: folder of pictures, or table, on which outputs are compared; None: the run's validation data.
        license: of the weights, as `model.json` is to say.
        model: see `load`.

    Raises:
        RunError: `run_dir` is not a run, or `out` cannot be used.
        CheckpointError: there is no usable checkpoint, a module in it is neither kept nor culled yet, or what was
            written does not compute the same.
        DataError: formats are asked for, and there are no real inputs to check them on.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} already exists and is not an empty folder; choose another with --out, or remove it")
    found = trained(run_dir, best=best, model=model)
    require_writable(out, is_folder=True)
    network = found.folded()
    inputs, source = _inputs(found, run_dir, check, is_required=bool(formats))
    temporary = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_weights(found, network, temporary)
        description = _description(found, network, license=license, checksum=sha256(temporary / WEIGHTS))
        write_atomically(temporary / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        differences = {"safetensors": _check(found, load(temporary, model=model), inputs)}
        for name in dict.fromkeys(formats):
            differences[name] = write_format(name, network, inputs, description["interface"], temporary)
        description["checked"] = {"inputs": source, "greatest_difference": differences}
        write_atomically(temporary / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        temporary.replace(out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write in {out}: {error}; choose another folder with --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_weights(found: Trained, network: nn.Module, folder: Path) -> None:
    # Copies: safetensors refuses channels-last strides, and weights that layers share.
    layout = torch.contiguous_format
    save_file({name: t.clone(memory_format=layout) for name, t in network.state_dict().items()}, folder / WEIGHTS)
    as_umask_says(folder / WEIGHTS)
    if found.settings["dataset"]["tokenizer"] is not None:
        shutil.copyfile(found.settings["dataset"]["tokenizer"], folder / TOKENIZER)


@torch.no_grad()
def _check(found: Trained, exported: Network, inputs: Tensor) -> float:
    """Compare what was written with the network as it was trained; returns the greatest difference."""
    return greatest_difference(found.model.eval()(inputs), exported(inputs), what=WEIGHTS)


def _inputs(found: Trained, run_dir: Path, check: str | None, *, is_required: bool) -> tuple[Tensor, str]:
    """Prepared inputs, and what they are."""
    network = Network(found.model, found.interface, channels_last=found.channels_last)
    if check is not None:
        values = check_examples(network, check, num=_NUM_CHECKED)
        if len(values) < 3:
            raise DataError(f"--check {check}: holds {len(values)} examples; give at least 3")
        return network.prepare(torch.stack(values)), f"{len(values)} given examples"
    try:
        split = own_splits(run_dir, found.settings).controller
    except (ConfigError, DataError) as error:
        if is_required:
            raise DataError(
                f"--format: what is written is checked on real inputs, but the run's data is not there ({error}); "
                "give a folder of pictures: --check FOLDER"
            ) from None
        return _generated(network), f"{_NUM_CHECKED} random inputs, as the data was not there"
    few = split[torch.arange(min(_NUM_CHECKED, len(split)))]
    pool = DecodePool(0)
    batches = evaluation_batches(
        few, found.interface.spec, prepare=network.preprocess(), pool=pool, device=torch.device("cpu")
    )
    inputs, _ = next(iter(batches))
    return inputs, f"{len(inputs)} validation examples"


def _generated(network: Network) -> Tensor:
    interface, generator = network.interface, torch.Generator().manual_seed(0)
    shape = (_NUM_CHECKED, *interface.inputs)
    if interface.values == "int64":
        return torch.randint(0, interface.outputs, shape, generator=generator)
    if interface.values == "uint8":
        return network.prepare(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    return torch.randn(shape, generator=generator)


def _description(found: Trained, network: nn.Module, *, license: str | None, checksum: str) -> dict[str, Any]:
    config, interface = found.config, found.interface
    not_folded = [graft for slot in network.modules() if isinstance(slot, SeedSlot) for graft in slot.grafts]
    # What says where the run began and how it trained does not describe the network.
    host = dataclasses.replace(config, init_from=None, init_digest=None, pretrained=False, freeze=[])
    return {
        "schema": SCHEMA,
        "source": config.source,
        "host": config.name,
        **host_family(config).describe(config, interface.spec, network),
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "step": found.saved.step,
        "interface": interface.entry(),
        "license": license,
        "versions": {
            "esper": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "sha256": checksum,
        "channels_last": found.channels_last,
        "model": dataclasses.asdict(host),
        "plugins": list(found.settings["plugins"]),
        "recipe": [graft.entry() for graft in found.saved.recipe],
        "not_folded": [graft.entry() for graft in sorted(not_folded, key=lambda graft: graft.graft_id)],
    }
