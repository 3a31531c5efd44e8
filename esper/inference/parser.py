"""`esper predict`, `evaluate`, `export` and `sample` for argparse."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from esper.commands import add_command, add_device, add_json, named_path, positive

__all__ = ["add_use"]

_RUN = "folder of a run, or what esper export wrote"


def add_use(commands: Any) -> None:
    """Add the subcommands that use a trained network."""
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_sample(commands)


def _add_predict(commands: Any) -> None:
    predict = add_command(commands, "predict", _predict, "classify pictures, or predict rows of numbers")
    predict.add_argument("folder", type=Path, metavar="RUN", help=_RUN)
    predict.add_argument(
        "paths", nargs="+", type=named_path, metavar="PATH",
        help="picture, folder of pictures, .csv, .npz or .parquet; -: names of pictures on standard input",
    )  # fmt: skip
    predict.add_argument(
        "--out", default="predictions.csv", type=named_path, metavar="FILE",
        help="table to write, with a page of pictures beside it; -: standard output (default: predictions.csv)",
    )  # fmt: skip
    predict.add_argument("--top-k", type=positive, default=5, metavar="K", help="likeliest classes (default: 5)")
    predict.add_argument("--batch-size", type=positive, default=128, metavar="N", help="batch size (default: 128)")
    _add_best(predict)
    add_device(predict)
    _add_plugins(predict)


def _add_evaluate(commands: Any) -> None:
    evaluate = add_command(commands, "evaluate", _evaluate, "measure a network on its test split, or on other data")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help=_RUN)
    evaluate.add_argument(
        "data", nargs="?", type=named_path, metavar="DATA",
        help="folder with a subfolder of pictures for each class, .csv, .npz or .parquet, or text (default: the test "
        "split of the run)",
    )  # fmt: skip
    add_json(evaluate)
    _add_best(evaluate)
    add_device(evaluate)
    _add_plugins(evaluate)


def _add_export(commands: Any) -> None:
    export = add_command(
        commands, "export", _export, "export a run's network for inference, with grown modules folded into the host"
    )
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run")
    export.add_argument(
        "--out", type=Path, metavar="DIR", help="a new or empty folder (default: export/ in the run's folder)"
    )
    export.add_argument(
        "--format", action="append", default=[], choices=("safetensors", "onnx", "torchscript", "torch.export"),
        help="another format besides safetensors, which is always written; repeatable",
    )  # fmt: skip
    export.add_argument(
        "--check", type=named_path, metavar="PATH",
        help="pictures or table on which outputs are compared (default: validation data of the run)",
    )  # fmt: skip
    export.add_argument("--license", metavar="TEXT", help="license of the weights, for model.json")
    _add_best(export)
    _add_plugins(export)


def _add_sample(commands: Any) -> None:
    sample = add_command(commands, "sample", _sample, "let a trained language model continue a text")
    sample.add_argument("folder", type=Path, metavar="RUN", help=_RUN)
    sample.add_argument("--prompt", default="", metavar="TEXT", help="text to continue (default: begin a document)")
    sample.add_argument("--tokens", type=positive, default=300, metavar="N", help="tokens to write (default: 300)")
    sample.add_argument(
        "--temperature", type=_not_negative, default=0.8, metavar="T", help="0: always the likeliest (default: 0.8)"
    )
    sample.add_argument("--top-k", type=positive, metavar="K", help="draw among the K likeliest tokens (default: all)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the draws (default: 0)")
    _add_best(sample)
    add_device(sample)
    _add_plugins(sample)


def _add_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--best", action="store_true", help="the epoch with the lowest validation loss, not the last")


def _add_plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugins", action="append", default=[], metavar="MODULE", help="module of yours that registers the network"
    )


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: allowed is at least 0")
    return value


def _predict(options: argparse.Namespace) -> int:
    from esper.inference import predict

    given = {name: getattr(options, name) for name in ("out", "top_k", "batch_size", "best", "device")}
    return predict.main(options.folder, options.paths, modules=options.plugins, **given)


def _evaluate(options: argparse.Namespace) -> int:
    from esper.inference import evaluate

    given = {"best": options.best, "device": options.device, "modules": options.plugins, "as_json": options.json}
    return evaluate.main(options.folder, options.data, **given)


def _export(options: argparse.Namespace) -> int:
    from esper import plugins
    from esper.inference.export import export

    plugins.load(options.plugins)
    formats = [name for name in options.format if name != "safetensors"]
    given = {name: getattr(options, name) for name in ("best", "check", "license")}
    out = options.run_dir / "export" if options.out is None else options.out
    sys.stdout.write(f"{export(options.run_dir, out, formats=formats, **given)}\n")
    return 0


def _sample(options: argparse.Namespace) -> int:
    from esper.inference.predict import load_for_command
    from esper.inference.sample import continuation

    text = continuation(
        load_for_command(options.folder, best=options.best, device=options.device, modules=options.plugins),
        options.prompt,
        num_tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        rng_seed=options.seed,
    )
    sys.stdout.write(f"{options.prompt}{text}\n")
    return 0
