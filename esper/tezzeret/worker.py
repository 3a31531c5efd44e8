"""The forge's worker process, which a job may crash: `python -m esper.tezzeret.worker DEVICE MEMORY_BYTES`.

It reads jobs and writes replies as lines of JSON, until its input ends. The first line is its device and torch version.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

import torch

from esper import stopping
from esper.devices import select_device
from esper.errors import ConfigError, EsperError, one_line
from esper.tezzeret.measure import Job, measure
from esper.tracking.environment import cpu_name

__all__ = ["main"]


def main(device_name: str, memory_bytes: int) -> None:
    """Run jobs until the input ends.

    Args:
        device_name: as the setting `device`.
        memory_bytes: limit on GPU memory; the parent process limits host memory.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # compilers print to stdout; keep it apart from replies
    stopping.exit_with_parent(os.getppid())
    try:
        device = select_device(device_name)
    except ConfigError as error:
        _reply(replies, refused=str(error))
        return
    _limit_memory(device, memory_bytes)
    _reply(replies, device=_device_name(device), torch_version=torch.__version__)
    for line in sys.stdin:
        fields = json.loads(line)
        job = Job(**{**fields, "in_shape": tuple(fields["in_shape"]), "out_shape": tuple(fields["out_shape"])})
        try:
            result = measure(job, device=device, begin=lambda phase: _reply(replies, phase=phase))
        except torch.OutOfMemoryError:
            result = {"status": "too_large", "reason": f"needs more than {memory_bytes / 2**20:,.0f} MiB of GPU memory"}
        except (EsperError, RuntimeError, ValueError) as error:
            result = {"status": "unsound", "reason": one_line(error, max_length=300)}
        _reply(replies, **result)


def _reply(replies: TextIO, **content: Any) -> None:
    replies.write(json.dumps(content) + "\n")


def _limit_memory(device: torch.device, memory_bytes: int) -> None:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), device.index)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name() or 'cpu'}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
