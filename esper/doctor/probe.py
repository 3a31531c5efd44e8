"""What it takes torch to find out, in a process of its own: where torch crashes, `esper doctor` does not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the versions may be such that it cannot be imported
    from esper.configs import TolariaConfig

from esper.doctor.finding import Finding, failed
from esper.doctor.reach import look_into_library

__all__ = ["probe"]

_TIMEOUT_S = 60


def probe(config: TolariaConfig, *, outputs_dir: Path) -> dict[str, Any]:
    """Versions, threads, the GPU and the library that a run would use, as far as they could be found out.

    The keys are there as far as things work: torch, cuda, num_threads, gpu, num_gpus, free_bytes, total_bytes,
    torchvision, library (a `Finding`); instead of them torch_error, gpu_error, torchvision_error.
    """
    asked = {
        "database": dataclasses.asdict(config.database),
        "outputs_dir": str(outputs_dir),
        "needs_library": bool(config.morphogenetic.library),
    }
    command = [sys.executable, "-m", "esper.doctor.probe"]
    try:
        done = subprocess.run(
            command,
            check=False,
            timeout=_TIMEOUT_S,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"torch_error": f"its import takes longer than {_TIMEOUT_S} s"}
    lines = done.stdout.splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        told = done.stderr.strip().splitlines() or [""]
        return {"torch_error": f"its import ended Python with {done.returncode}: {told[-1]}"}
    return found


def _look(asked: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        return {"torch_error": _line(error)}
    found |= {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "num_threads": torch.get_num_threads(),
    }
    try:
        if torch.cuda.is_available():
            found |= {"gpu": torch.cuda.get_device_name(), "num_gpus": torch.cuda.device_count()}
            found["free_bytes"], found["total_bytes"] = torch.cuda.mem_get_info()
            torch.ones(1, device="cuda").add_(1).item()  # it may be too old, or too new, for what torch was built for
        elif found["cuda"]:
            torch.zeros(1, device="cuda")  # raises, and says why
    except Exception as error:
        found["gpu_error"] = _line(error)
    try:
        import torchvision

        found["torchvision"] = torchvision.__version__
    except Exception as error:
        found["torchvision_error"] = _line(error)
    return found | {"library": dataclasses.asdict(_library(asked))}


def _library(asked: dict[str, Any]) -> Finding:
    from esper.configs import DatabaseConfig
    from esper.errors import EsperError

    config, outputs_dir = DatabaseConfig(**asked["database"]), Path(asked["outputs_dir"])
    try:
        return look_into_library(config, outputs_dir=outputs_dir, is_needed=asked["needs_library"])
    except EsperError as error:
        found, _, remedy = str(error).rpartition("; ")
        return failed(found, remedy)
    except Exception as error:  # as it imports torch and torchvision, whatever these raise
        return failed(f"cannot be looked at: {_line(error)}", "see what it says")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(_look(json.load(sys.stdin))))  # noqa: T201
