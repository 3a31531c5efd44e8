"""The optimizer, the learning-rate schedule, and when training ends."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["OptimizationConfig"]


@dataclass(kw_only=True)
class OptimizationConfig:
    """Group `optimization`."""

    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.1, "peak learning rate", above=0)
    weight_decay: float = setting(5e-4, "weight decay of kernels; norms, biases and gains have none", low=0)
    momentum: float = setting(0.9, "sgd: momentum", low=0, below=1)
    nesterov: bool = setting(True, "sgd: Nesterov's form of momentum")

    scheduler: str = setting(
        "wsd",
        "learning rate after the warm-up: constant; cosine or linear to zero; wsd (warm-up, stable, decay: constant, "
        "then linear to zero over the last decay_fraction)",
        choices=("constant", "cosine", "linear", "wsd"),
    )
    warmup_epochs: float = setting(1.0, "epochs of linear warm-up from zero", low=0)
    decay_fraction: float = setting(0.3, "wsd: share of training over which the learning rate decays", above=0, high=1)

    max_epochs: int = setting(100, "epochs", low=1)
    gradient_clip_norm: float | None = setting(
        None, "clip the gradient's norm, over all parameters, to this; null: never", above=0
    )

    ema_decay: float | None = setting(
        None,
        "keep an exponential moving average of the weights with this decay (such as 0.999); it is what is validated, "
        "tested and exported, while growth goes by the weights themselves; it begins anew when a module is removed; "
        "null: no average",
        above=0,
        below=1,
    )

    patience: int | None = setting(
        None,
        "stop when the validation loss has not improved for this many epochs; restarts after growth; null: never",
        low=1,
    )
    min_delta: float = setting(1e-4, "smallest drop of the validation loss that counts as improvement", low=0)
