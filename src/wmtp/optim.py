"""Which parameters move, by which rule, and how fast at which step."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Scheduler = Literal["constant", "cosine", "wsd"]


def learning_rate(
    step: int,
    *,
    peak: float,
    scheduler: Scheduler,
    warmup_steps: int,
    max_steps: int,
    decay_fraction: float = 0.2,
    minimum: float = 0.0,
) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0).

    Linear warmup to ``peak`` over ``warmup_steps``; then ``constant``; or ``cosine`` down to
    ``minimum`` at ``max_steps``; or ``wsd`` (warmup, stable, decay): ``peak`` until the last
    ``decay_fraction`` of all steps, then linearly down to ``minimum``.

    Source:
        cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983); wsd: Hu et al. 2024
        (arXiv:2404.06395).

    Example:
        >>> def rate(step):
        ...     return learning_rate(
        ...         step, peak=1.0, scheduler="wsd", warmup_steps=2, max_steps=10
        ...     )
        >>> [rate(step) for step in (0, 1, 7, 8, 9)]
        [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if scheduler == "constant":
        return peak
    if scheduler == "cosine":
        start = warmup_steps
        shape = 0.5 * (1 + math.cos(math.pi * _progress(step, start, max_steps)))
    else:
        start = max(warmup_steps, round(max_steps * (1 - decay_fraction)))
        shape = 1 - _progress(step, start, max_steps)
    return minimum + (peak - minimum) * shape


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def build_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over the parameters that want gradients; weight decay on matrices only.

    Gains of norms are vectors and are not decayed. The learning rate is a number set before each
    step, not a tensor, so that the schedule needs no state of its own.

    Source:
        Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    matrices = [p for _, p in trained if p.dim() >= 2]
    vectors = [p for _, p in trained if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this rate in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: list[nn.Parameter], largest_norm: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most ``largest_norm``.

    Returns:
        The norm before clipping, a scalar on the device; not finite if any gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter name>.<state name>`` tensors, for a checkpoint."""
    tensors = {}
    for name, parameter in named_parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: dict[str, Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Raises:
        KeyError: a state belongs to no parameter that is trained, or one that is has none.
    """
    known = {name: p for name, p in named_parameters if p.requires_grad}
    without = known.keys() - {full_name.rpartition(".")[0] for full_name in tensors}
    if tensors and without:  # none at all: before the first update
        raise KeyError(min(without))
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = known[name]
        # the step count stays where the optimizer wants it: beside the parameter only if fused
        fused = bool(optimizer.defaults.get("fused"))
        device = parameter.device if key != "step" or fused else value.device
        optimizer.state[parameter][key] = value.to(device)
