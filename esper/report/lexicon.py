"""The words of the pages, as `docs/glossary.md` defines them."""

from __future__ import annotations

import re

__all__ = ["LEXICON", "words_in"]

LEXICON = {
    "host": "the base network before anything has grown in it, such as a ResNet-18",
    "site": "a place where a module may grow, such as `layer1.0:beside`; kinds: `beside`, `after`, `parallel`, `width`",
    "seed": "what lives in a slot. A *dormant* seed is not part of the forward pass",
    "blueprint": "the recipe for a module that can grow, such as `basic_block`; built in or from the library",
    "copy": "a kernel made of trained copies of the host's blocks, behind the block that they continue",
    "germinate": "build a kernel, check it on a real batch, and attach it with alpha 0",
    "incubation": "optional training of a kernel before it joins the forward pass (`fit`, `shadow`)",
    "blending": "raising alpha from 0 to 1, at once or over `blending_steps`",
    "holding": "alpha is 1; the kernel waits for its verdict",
    "cull": "remove a kernel; host weights and optimizer state stay bit-identical",
    "embargo": "the epochs after a cull in which nothing grows at that site",
    "score": "first-order gain, in loss, of growing at a site, beyond what the module that is there can reach itself",
    "health": "`min(1, median score of the other sites of its kind / own score)`: low where a site stands out",
    "Tamiyo": "the controller. She is *consulted* at the end of an epoch and answers with a *decision*",
    "fork": "a short trial from the current state, undone afterwards, that decides between two sites",
    "judge": "compares the losses with and without a kernel on the judge split; its answer is the *verdict*",
    "judge split": "held-out training examples for verdicts only",
    "MACs": "multiply-accumulates; FLOPs are twice that. A training step costs three forward passes",
    "kernel": "a blueprint built for one site (not a CUDA kernel and not a convolution's)",
    "arm": "one side of a comparison: runs that differ only in `rng_seed`",
    "size in between": "a static network larger than the host and smaller than the grown one: half of what grew",
    "best static arm": "of host, size in between and final size at equal compute, the best in validation",
    "crossing": "the compute at which the host, trained longer, and the final size from scratch are equally good",
    "transfer, rho": "the share of the steps before growth that the grown network need not be trained again",
    "`rng_seed`": 'the random seed; never called just "seed"',
}
"""Word to meaning, in the glossary's Markdown."""


def words_in(text: str) -> list[tuple[str, str]]:
    """Word and meaning, as plain text, of each word that a text uses."""
    found = []
    for word, meaning in LEXICON.items():
        if re.search(rf"\b{re.escape(word.partition(',')[0].strip('`'))}", text, flags=re.IGNORECASE):
            found.append((re.sub("[`*]", "", word), re.sub("[`*]", "", meaning)))
            text += meaning  # whose words are explained too, if they follow
    return found
