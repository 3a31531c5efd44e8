"""Freeze parameters of the host by patterns over their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from esper.configs.explain import nearest
from esper.errors import ConfigError

__all__ = ["freeze"]


def freeze(host: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters that match a pattern, such as `layer1.*`, from training.

    Raises:
        ConfigError: a pattern matches nothing, or they match everything.
    """
    named = dict(host.named_parameters())
    for pattern in patterns:
        matched = [p for name, p in named.items() if fnmatchcase(name, pattern)]
        if not matched:
            hint = nearest(pattern, [*named, *(f"{name}.*" for name, _ in host.named_modules() if name)])
            raise ConfigError(
                f"model.freeze={pattern}: matches no parameter, of which the first are {', '.join([*named][:3])}{hint}"
            )
        for p in matched:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise ConfigError(f"model.freeze={list(patterns)}: freezes every parameter; leave the classifier to train")
