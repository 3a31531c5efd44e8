"""Probes torch, the GPU and the library in a subprocess, so that `esper doctor` survives a torch that crashes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its import may fail with the installed package versions
    from esper.configs import TolariaConfig

from esper.doctor.finding import Finding, failed, failed_with
from esper.doctor.servers import check_library

__all__ = ["probe"]

_TIMEOUT_S = 60


def probe(config: TolariaConfig, *, outputs_dir: Path) -> dict[str, Any]:
    """Versions, threads, and the GPU and library that a run would use.

    Keys: torch, cuda, mps, num_threads, gpu, num_gpus, free_bytes, total_bytes, torchvision, library (the fields of a
    `Finding`). What fails is missing; torch_error, gpu_error and torchvision_error give the reason.
    """
    request = {
        "gpu": int(config.device.partition(":")[2] or 0),
        "database": dataclasses.asdict(config.database),
        "outputs_dir": str(outputs_dir),
        "needs_library": bool(config.morphogenetic.library),
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", "esper.doctor.probe"],
            check=False,
            timeout=_TIMEOUT_S,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"torch_error": f"the import takes longer than {_TIMEOUT_S} s"}
    try:
        result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last_line = (process.stderr.strip().splitlines() or [""])[-1]
        return {"torch_error": f"the import ended Python with exit code {process.returncode}: {last_line}"}
    return result


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return {"torch_error": _line(error)}
    result |= {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "mps": torch.backends.mps.is_available(),
        "num_threads": torch.get_num_threads(),
    }
    try:
        if torch.cuda.is_available():
            num_gpus = torch.cuda.device_count()
            torch.cuda.set_device(min(request["gpu"], num_gpus - 1))
            result |= {"gpu": torch.cuda.get_device_name(), "num_gpus": num_gpus}
            result["free_bytes"], result["total_bytes"] = torch.cuda.mem_get_info()
            torch.ones(1, device="cuda").add_(1).item()  # fails on a GPU that this build does not support
        elif result["cuda"]:
            torch.zeros(1, device="cuda")  # raises with the reason
    except Exception as error:
        result["gpu_error"] = _line(error)
    try:
        import torchvision

        result["torchvision"] = torchvision.__version__
    except Exception as error:
        result["torchvision_error"] = _line(error)
    return result | {"library": dataclasses.asdict(_library(request))}


def _library(request: dict[str, Any]) -> Finding:
    from esper.configs import DatabaseConfig
    from esper.errors import EsperError

    config, outputs_dir = DatabaseConfig(**request["database"]), Path(request["outputs_dir"])
    try:
        return check_library(config, outputs_dir=outputs_dir, is_needed=request["needs_library"])
    except EsperError as error:
        return failed_with(str(error))
    except Exception as error:  # it imports torch and torchvision, which may raise anything
        return failed(f"cannot be checked: {_line(error)}", "see the message")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(_probe(json.load(sys.stdin))))  # noqa: T201
