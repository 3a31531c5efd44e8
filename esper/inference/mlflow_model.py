"""A trained network as a model of MLflow, which loads it with this module: no pickles.

    mlflow.pyfunc.load_model("models:/NAME/1").predict(images)

Inputs of `predict`:
    image files     uint8 (N, H, W, 3 or 1) of any size, or (N, C, H, W) of the training's size
    arrays          as the training had them, with a batch dimension
    rows            (N, D): an array, lists or a DataFrame; columns in the order of the training, or found by name where
                    DataFrame and network have names
    text            a list of str

Results: of a classification a DataFrame with `label`, `probability` and `probabilities` (of all classes); of multilabel
`labels` and `probabilities`; of a regression a column for each number; of a language model the continuation of each
text; of other tasks the outputs, float32 (N, …).
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from esper import plugins
from esper.data.interface import Interface
from esper.errors import CheckpointError, DataError
from esper.inference.loading import DESCRIPTION, load
from esper.inference.network import Network, Prediction
from esper.inference.sample import continuation

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

__all__ = ["Predictor", "save_model"]

_PACKAGES = ("esper-train", "torch", "torchvision")
_TEXT_OPTIONS = {"num_tokens": 100, "temperature": 0.8, "rng_seed": 0}
"""`params` of a language model's `predict`, as the options of `esper sample`."""


class Predictor:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict a batch; see above for inputs and results.

        Raises:
            DataError: an example does not suit the network.
        """
        network = self.network
        if network.tokenizer is not None:
            texts = model_input.iloc[:, 0] if isinstance(model_input, pd.DataFrame) else model_input
            options = {name: (params or {}).get(name, default) for name, default in _TEXT_OPTIONS.items()}
            return [continuation(network, str(text), top_k=None, **options) for text in texts]
        is_table = isinstance(model_input, pd.DataFrame)
        examples = _rows(model_input, network.interface.input_names) if is_table else np.asarray(model_input)
        predictions = network.predict(list(examples))
        assert isinstance(predictions, list)
        return _results(network, predictions)


def _rows(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray[Any, Any]:
    """The rows of a table (N, D); columns are found by name, unless they are numbered: so MLflow passes on arrays."""
    if not names or not all(isinstance(name, str) for name in table.columns):
        return np.asarray(table)
    if missing := [name for name in names if name not in table.columns]:
        raise DataError(
            f"the table lacks the column {missing[0]}, which the network reads; leave out those that it does not read: "
            f"MLflow passes on the first {len(names)}"
        )
    return np.asarray(table[list(names)])


def _results(network: Network, predictions: list[Prediction]) -> pd.DataFrame | np.ndarray[Any, Any]:
    probabilities = [found.probabilities.tolist() for found in predictions if found.probabilities is not None]
    if network.task == "classification":
        columns = {"label": [found.label for found in predictions]}
        return pd.DataFrame(
            columns | {"probability": [found.probability for found in predictions], "probabilities": probabilities}
        )
    if network.task == "multilabel":
        labels = [[label for label, _ in found.top] for found in predictions]
        return pd.DataFrame({"labels": labels, "probabilities": probabilities})
    if network.task == "regression":
        return pd.DataFrame([found.values for found in predictions], columns=network.interface.names)
    return np.stack([found.output.numpy() for found in predictions])


def _load_pyfunc(data_path: str) -> Predictor:
    """Called by MLflow with what `esper export` wrote; the code of plugins lies beside it."""
    plugins.load(json.loads(Path(data_path, DESCRIPTION).read_text(encoding="utf-8"))["plugins"])
    return Predictor(load(data_path))


def save_model(export: Path, path: Path, *, run_id: str, artifact_path: str) -> None:
    """Write what `esper export` wrote as a model of MLflow, and compare what MLflow reads with it.

    Signature and input example go along; the example is the mean of the training data, or a few words.

    Args:
        export: folder that `esper export` wrote.
        path: folder to write.
        run_id: of the run in MLflow.
        artifact_path: where the folder will lie among that run's artifacts.

    Raises:
        CheckpointError: what MLflow reads predicts something else.
        mlflow.exceptions.MlflowException: it cannot be written or read.
    """
    description = json.loads((export / DESCRIPTION).read_text(encoding="utf-8"))
    predictor = _load_pyfunc(str(export))
    example = _example(predictor.network)
    expected = predictor.predict(example)
    packages = [*_PACKAGES, *(["timm"] if description["source"] == "timm" else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of MLflow are about its own code
        import mlflow.pyfunc
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            path=str(path),
            loader_module=__name__,
            data_path=str(export),
            code_paths=_code(description["plugins"]) or None,
            mlflow_model=Model(run_id=run_id, artifact_path=artifact_path),
            signature=_signature(predictor.network, expected),
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in packages],
        )
        search_path = sys.path
        try:
            found = mlflow.pyfunc.load_model(str(path)).predict(example)
        finally:
            sys.path = search_path  # MLflow adds the code's folder, which is temporary
    if not _is_equal(found, expected):
        raise CheckpointError(f"what MLflow reads predicts {found}, the network {expected}; nothing was registered")


def _is_equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, pd.DataFrame):
        return bool(expected.equals(found))
    return bool(np.array_equal(found, expected))


def _code(modules: list[str]) -> list[str]:
    """Files, or folders of packages, of the user's modules."""
    found = []
    for top in dict.fromkeys(name.partition(".")[0] for name in modules):
        module = sys.modules[top]
        found += list(getattr(module, "__path__", [])) or [str(module.__file__)]
    return found


def _example(network: Network) -> Any:
    interface = network.interface
    if network.tokenizer is not None:
        return ["Once upon a time"]
    mean = 255 * np.array(interface.mean or 0.0)
    if _has_columns(interface):
        return np.broadcast_to(mean, (1, *interface.inputs)).copy()
    channels_last = np.broadcast_to(mean, (1, *interface.inputs[1:], interface.inputs[0]))
    values = channels_last if interface.image is not None else np.moveaxis(channels_last, -1, 1)
    return np.ascontiguousarray(values).astype(interface.values)


def _has_columns(interface: Interface) -> bool:
    return len(interface.inputs) == 1 and interface.values == "float32"


def _signature(network: Network, results: Any) -> ModelSignature:
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    interface, params = network.interface, None
    if network.tokenizer is not None:
        inputs = Schema([ColSpec("string")])
        types = {int: "long", float: "double"}
        params = ParamSchema([ParamSpec(name, types[type(value)], value) for name, value in _TEXT_OPTIONS.items()])
    elif _has_columns(interface):
        inputs = Schema([ColSpec("double")] * interface.inputs[0])
    else:
        shape = (-1,) * 4 if interface.image is not None else (-1, *interface.inputs)
        inputs = Schema([TensorSpec(np.dtype(interface.values), shape)])
    return ModelSignature(inputs=inputs, outputs=infer_signature(None, results).outputs, params=params)  # type: ignore[arg-type]
