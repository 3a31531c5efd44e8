"""Let a trained language model continue a text: `esper sample`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.data.tokenizer import Tokenizer, load_tokenizer
from esper.errors import CheckpointError, ConfigError, RunError, one_line
from esper.files import decoder, json_object, read_json
from esper.kasmina.modes import evaluating
from esper.models.gpt import GPT
from esper.tolaria.checkpoints.export import DESCRIPTION, TOKENIZER, WEIGHTS, folded_network
from esper.tolaria.run_folder import recorded_config

__all__ = ["LanguageModel", "continuation", "load_language_model"]

_SIZES: dict[str, Any] = {
    "vocab_size": int,
    "context": int,
    "width": int,
    "heads": int,
    "mlp_widths": list[int],
    "positions": str,
}
_DESCRIPTION = decoder(json_object("GPT", {"host": Literal["gpt"], **_SIZES, "not_folded": list[Any]}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A network for text.

    Attributes:
        network: ids (N, T) to logits (N, T, V).
        tokenizer: from text to ids and back.
        context: tokens that the network reads at once.
    """

    network: nn.Module
    tokenizer: Tokenizer
    context: int


def load_language_model(folder: Path, *, best: bool = False) -> LanguageModel:
    """Load the network of a run, or what `esper export` wrote.

    Args:
        folder: folder of the run or export.
        best: of a run, the checkpoint with the lowest validation loss instead of the newest one.

    Raises:
        RunError: it is neither, or no language model.
        CheckpointError: there is no usable checkpoint.
        ConfigError: its tokenizer cannot be used.
    """
    if (folder / DESCRIPTION).is_file():
        return _exported(folder)
    if recorded_config(folder) is None:
        raise RunError(f"{folder} is neither a run folder (it has no config.yaml) nor what esper export wrote")
    network, _, settings = folded_network(folder, best=best)
    if settings["task"]["name"] != "language_model":
        raise RunError(f"{folder}: a network of task={settings['task']['name']} cannot write text")
    dataset = settings["dataset"]
    return LanguageModel(network=network, tokenizer=load_tokenizer(dataset["tokenizer"]), context=dataset["context"])


def _exported(folder: Path) -> LanguageModel:
    try:
        description = read_json(folder / DESCRIPTION, _DESCRIPTION)
    except RunError as error:
        raise RunError(f"{folder} is no export of model=gpt ({error}); give the folder of the run") from None
    if description["not_folded"]:
        raise RunError(f"{folder} has modules that could not be folded into the host; give the folder of the run")
    network = GPT(**{name: description[name] for name in _SIZES})
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged: {one_line(error)}; export the run again") from None
    tokenizer = folder / TOKENIZER
    return LanguageModel(
        network=network,
        tokenizer=load_tokenizer(str(tokenizer) if tokenizer.exists() else None),
        context=network.context,
    )


@torch.no_grad()
def continuation(
    model: LanguageModel,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float,
    top_k: int | None,
    rng_seed: int,
    device: torch.device,
) -> str:
    """Continue a text until the end of a document, or for `num_tokens` tokens.

    Args:
        model: the language model.
        prompt: the text; empty: a new document begins, if the tokenizer marks where documents end.
        num_tokens: most tokens to write.
        temperature: divides the logits before a token is drawn; 0: the most probable one is taken.
        top_k: draw among so many most probable tokens; None: all.
        rng_seed: random seed of the draws.
        device: where to compute.

    Raises:
        ConfigError: the prompt is empty.
        DataError: it cannot be tokenized.
    """
    tokenizer, network = model.tokenizer, model.network.to(device)
    (encoded,) = tokenizer.encode([prompt.encode()])
    ids = encoded.tolist() or ([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])
    if not ids:
        raise ConfigError("--prompt: is empty, and this tokenizer marks no beginnings of documents; give some text")
    generator = torch.Generator().manual_seed(rng_seed)
    written: list[int] = []
    with evaluating(network):
        while len(written) < num_tokens:
            window = torch.tensor([(ids + written)[-model.context :]], device=device)
            logits = network(window)[0, -1].double().cpu()
            token = _draw(logits, temperature=temperature, top_k=top_k, generator=generator)
            if token == tokenizer.end_of_text:
                break
            written.append(token)
    return tokenizer.decode(written)


def _draw(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))
