"""Optimizer, learning-rate schedule, and length of training."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["OptimizationConfig"]


@dataclass(kw_only=True)
class OptimizationConfig:
    """Group `optimization`."""

    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.1, "peak learning rate", above=0)
    weight_decay: float = setting(5e-4, "weight decay, not applied to norms, biases and output scales", low=0)
    momentum: float = setting(0.9, "sgd: momentum", low=0, below=1)
    nesterov: bool = setting(True, "sgd: Nesterov momentum")

    scheduler: str = setting(
        "wsd",
        "learning rate after the warm-up: constant; cosine or linear decay to zero; wsd (warm-up, stable, decay): "
        "constant, then linear decay to zero over the last decay_fraction",
        choices=("constant", "cosine", "linear", "wsd"),
    )
    warmup_epochs: float = setting(1.0, "epochs of linear warm-up from zero", low=0)
    decay_fraction: float = setting(0.3, "wsd: fraction of training in which the learning rate decays", above=0, high=1)

    max_epochs: int = setting(100, "epochs; with morphogenetic.schedule_by=compute those of the final network", low=1)
    max_macs: float | None = setting(
        None,
        "multiply-accumulates to spend instead of max_epochs, including all that growth costs; training may end within "
        "an epoch; null: max_epochs",
        above=0,
    )
    gradient_clip_norm: float | None = setting(
        None, "maximum norm of the gradient over all parameters; null: no clipping", above=0
    )

    ema_decay: float | None = setting(
        None,
        "decay of an exponential moving average (EMA) of the weights, such as 0.999; the EMA is validated, tested and "
        "exported, but growth uses the weights themselves; removing a module restarts it; null: no EMA",
        above=0,
        below=1,
    )

    patience: int | None = setting(
        None,
        "early stopping: epochs without improvement of the validation loss, counted anew after growth; null: never",
        low=1,
    )
    min_delta: float = setting(1e-4, "smallest drop of the validation loss that counts as an improvement", low=0)
