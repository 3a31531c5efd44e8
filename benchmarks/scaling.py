"""How much faster do N processes train one network than one does? Images per second, and the share of N times one.

Strong scaling: the same batch is divided among the processes. Weak scaling: each has as many images as one process
alone has, so the batch is N times as large. All three runs are open in the same processes and take turns in blocks of
steps, in another order every round; while one process trains alone, the others wait. What is trained is the host, which
has batch norms, without growth, as the trainer does it: on CUDA as one captured graph, gradients through NCCL.

    python benchmarks/scaling.py --out scaling.json [--ranks 2] [--model resnet18] [--batch-sizes 128,512]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measuring import median_and_range, paired_ratio, table, write_json
from benchmarks.stepping import configuration, opened, own_stream, timed_steps, train_steps
from esper.configs import MorphogeneticConfig
from esper.tolaria.ranks import Ranks, joined
from esper.tolaria.run import Run

_WARMUP_STEPS = 20
_MIN_BATCHES = 4  # in an epoch


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the processes; in each of them, measure; the first prints the table and writes the JSON file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options().parse_args(arguments)
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        raise SystemExit(subprocess.run([*command, __file__, *arguments], check=False).returncode)
    ranks = joined()
    ranks.device(options.device)
    if options.device != "cpu":
        own_stream()
    rows = [_measured(options, ranks, batch_size=batch_size) for batch_size in options.batch_sizes]
    if ranks.is_first:
        print(table([_shown(row) for row in rows]))
        write_json(options.out, {"settings": vars(options) | {"out": None}, "rows": rows})


def _measured(options: argparse.Namespace, ranks: Ranks, *, batch_size: int) -> dict[str, Any]:
    """Speeds of the three runs, in images per second, round by round."""
    speeds: dict[str, list[float]] = {"alone": [], "strong": [], "weak": []}
    sizes = {"alone": batch_size, "strong": batch_size, "weak": batch_size * ranks.size}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        runs: dict[str, Run] = {}
        for name, size in sizes.items():
            if name != "alone" or ranks.is_first:
                runs[name] = stack.enter_context(
                    _opened(options, folder / name, size, None if name == "alone" else ranks)
                )
                train_steps(runs[name], _WARMUP_STEPS)
        for number in range(options.rounds):
            names = list(speeds)[number % 3 :] + list(speeds)[: number % 3]
            for name in names:
                ranks.wait()
                if name in runs:
                    seconds = timed_steps(runs[name], options.steps)
                    speeds[name].append(options.steps * sizes[name] / seconds)
    return {"batch_size": batch_size, "ranks": ranks.size, "images_per_s": speeds}


def _opened(
    options: argparse.Namespace, run_dir: Path, batch_size: int, ranks: Ranks | None
) -> contextlib.AbstractContextManager[Run]:
    config = configuration(
        model=options.model,
        batch_size=batch_size,
        num_examples=max(options.num_examples, 2 * _MIN_BATCHES * batch_size),
        image_size=options.image_size,
        device=options.device,
        morphogenetic=MorphogeneticConfig(enable_tamiyo=False),
    )
    return opened(config, run_dir, ranks=ranks)


def _shown(row: dict[str, Any]) -> dict[str, object]:
    """A line of the table: medians, and the geometric mean of the rounds' shares with its 95 % confidence interval."""
    speeds, num = row["images_per_s"], row["ranks"]

    def share(name: str) -> str:
        ratio = paired_ratio(speeds[name], speeds["alone"])
        between = (
            "" if ratio.low is None or ratio.high is None else f" ({ratio.low / num:.3f} to {ratio.high / num:.3f})"
        )
        return f"{ratio.mean / num:.3f}{between}"

    return {
        "batch": row["batch_size"],
        "1 process, images/s": median_and_range(speeds["alone"], "{:,.0f}"),
        f"{num} processes, same batch": median_and_range(speeds["strong"], "{:,.0f}"),
        f"of {num} times one": share("strong"),
        f"{num} processes, batch times {num}": f"{statistics.median(speeds['weak']):,.0f}",
        f"of {num} times one ": share("weak"),
    }


def _options() -> argparse.ArgumentParser:
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Images per second of one process and of several.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--ranks", type=int, default=2, help="processes, each with a GPU of its own on CUDA")
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="resnet18" if on_cuda else "resnet_small")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--num-examples", type=int, default=20_000 if on_cuda else 512)
    parser.add_argument(
        "--batch-sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[128, 512] if on_cuda else [32],
    )
    parser.add_argument("--rounds", type=int, default=9, help="blocks of steps of each run")
    parser.add_argument("--steps", type=int, default=100 if on_cuda else 5, help="steps in a block")
    return parser


if __name__ == "__main__":
    main()
