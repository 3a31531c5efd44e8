"""Let a trained language model continue a text: `esper sample`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from esper.errors import ConfigError, RunError
from esper.inference.network import Network
from esper.kasmina.modes import evaluating

__all__ = ["continuation"]


@torch.no_grad()
def continuation(
    model: Network,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float,
    top_k: int | None,
    rng_seed: int,
) -> str:
    """Continue a text until the end of a document, or for `num_tokens` tokens.

    Args:
        model: a language model, on the device where it is to compute.
        prompt: the text; empty: a new document begins, if the tokenizer marks where documents end.
        num_tokens: most tokens to write.
        temperature: divides the logits before a token is drawn; 0: the most probable one is taken.
        top_k: draw among so many most probable tokens; None: all.
        rng_seed: random seed of the draws.

    Raises:
        RunError: it is no language model.
        ConfigError: the prompt is empty.
        DataError: it cannot be tokenized.
    """
    tokenizer, context = model.tokenizer, model.interface.inputs[0]
    if tokenizer is None:
        raise RunError(f"a network of task={model.task} cannot write text")
    # Bytes of the command line that are no UTF-8 stay what they are: each may be a token.
    (encoded,) = tokenizer.encode([prompt.encode(errors="surrogateescape")])
    ids = encoded.tolist() or ([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])
    if not ids:
        raise ConfigError("--prompt: is empty, and this tokenizer marks no beginnings of documents; give some text")
    generator = torch.Generator().manual_seed(rng_seed)
    written: list[int] = []
    with evaluating(model):
        while len(written) < num_tokens:
            window = torch.tensor([(ids + written)[-context:]], device=model.device)
            logits = model(window)[0, -1].cpu().double()
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
