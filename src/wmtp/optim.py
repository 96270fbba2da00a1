"""Which parameters move, by which rule, and how fast at which step."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmtp.distributed.sharding import whole_tensor

Scheduler = Literal["constant", "cosine", "wsd"]
OptimizerName = Literal["adamw", "muon"]
Optimizers = Sequence[torch.optim.Optimizer]

VALUE_HEAD = "value_head."
STATE_NAMES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


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


def head_scale_at(
    step: int,
    *,
    start: tuple[float, ...],
    end: tuple[float, ...] | None,
    begin_step: int,
    end_step: int,
) -> tuple[float, ...]:
    """``c``, one factor per head, of optimizer step ``step`` (the first is 0).

    ``start`` up to ``begin_step``, linearly to ``end`` at ``end_step``, and ``end`` from there on;
    always ``start`` if there is no ``end``. ``N`` counts each target with its head's factor, so
    that the loss stays a weighted mean while the factors move.

    Raises:
        ValueError: the two have different lengths, or the end comes before the beginning.

    Example:
        >>> def scale(step):
        ...     return head_scale_at(
        ...         step, start=(1.0, 0.5), end=(1.0, 0.0), begin_step=10, end_step=20
        ...     )
        >>> [scale(step) for step in (0, 10, 15, 20, 99)]
        [(1.0, 0.5), (1.0, 0.5), (1.0, 0.25), (1.0, 0.0), (1.0, 0.0)]
    """
    if end is None:
        return start
    if len(start) != len(end) or end_step < begin_step:
        raise ValueError(
            f"head_scale goes from {start} at step {begin_step} to {end} at step {end_step}: it "
            "needs as many factors at both ends, and an end that is not before the beginning"
        )
    if step >= end_step:  # the numbers as they were given: a factor of 0 is 0
        return end
    done = _progress(step, begin_step, end_step)
    return tuple(a + (b - a) * done for a, b in zip(start, end, strict=True))


def build_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: OptimizerName,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fused: bool,
    value_lr: float | None = None,
) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers of the parameters that want gradients: AdamW, or Muon and AdamW.

    ``adamw`` moves everything. With ``muon`` the hidden matrices (``hidden_matrices``) go to Muon
    and all else to AdamW. Muon's steps are scaled to the size that AdamW's have, so that one
    learning rate and one weight decay serve both. Weight decay is on matrices only: gains of
    norms are vectors. Learning rates are numbers set before each step, not tensors, so that the
    schedule needs no state of its own.

    Args:
        named_parameters: all of the model, frozen ones too: their names and shapes tell which
            matrices are tables.
        name: the rule for hidden matrices.
        lr: peak learning rate.
        betas: AdamW's. Muon's momentum is 0.95, with Nesterov's correction.
        eps: AdamW's.
        weight_decay: of matrices.
        fused: AdamW in one kernel, which ``step_optimizers`` needs to hold an update back.
        value_lr: peak learning rate of the value head (``value_head.*``, which AdamW moves);
            ``lr`` if None. It follows the same schedule.

    Raises:
        ValueError: no parameter wants a gradient.

    Source:
        AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101). Muon: Jordan 2024
        (kellerjordan.github.io/posts/muon); its step size: Liu et al. 2025 (arXiv:2502.16982).
    """
    named = list(named_parameters)
    trained = {n: p for n, p in named if p.requires_grad}
    if not trained:
        raise ValueError("no parameter wants a gradient, so there is nothing to optimize")
    on_muon = hidden_matrices(named) & trained.keys() if name == "muon" else frozenset[str]()
    groups = _adamw_groups(
        {n: p for n, p in trained.items() if n not in on_muon},
        lr=lr,
        weight_decay=weight_decay,
        value_scale=1.0 if value_lr is None else value_lr / lr,
    )
    optimizers: list[torch.optim.Optimizer] = []
    if on_muon:
        hidden = {"params": [p for n, p in trained.items() if n in on_muon], "lr_scale": 1.0}
        optimizers.append(
            torch.optim.Muon(
                [hidden], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused))
    return tuple(optimizers)


def _adamw_groups(
    parameters: dict[str, nn.Parameter], *, lr: float, weight_decay: float, value_scale: float
) -> list[dict[str, Any]]:
    """Matrices and vectors, of the model and of the value head: up to four groups."""
    groups: list[dict[str, Any]] = []
    for of_value_head, scale in ((False, 1.0), (True, value_scale)):
        chosen = [p for n, p in parameters.items() if n.startswith(VALUE_HEAD) == of_value_head]
        matrices, vectors = [p for p in chosen if p.dim() >= 2], [p for p in chosen if p.dim() < 2]
        groups += [
            {"params": some, "weight_decay": decay, "lr": lr * scale, "lr_scale": scale}
            for some, decay in ((matrices, weight_decay), (vectors, 0.0))
            if some
        ]
    return groups


def hidden_matrices(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> frozenset[str]:
    """Names of the matrices that map one hidden vector to another: attention, MLP, joining maps.

    All matrices but the value head's and the tables. A table has a row for each token or
    position: a part of its name contains ``embed`` or is ``lm_head``, ``wte`` or ``wpe``; or it
    has the shape of a token table, as the matrix of a linear head has.
    """
    matrices = {n: p for n, p in named_parameters if p.dim() == 2 and not n.startswith(VALUE_HEAD)}
    tables = {n for n in matrices if any(map(_names_a_table, n.split(".")))}
    shapes = {matrices[n].shape for n in tables if "wpe" not in n and "position" not in n}
    return frozenset(n for n, p in matrices.items() if n not in tables and p.shape not in shapes)


def _names_a_table(part: str) -> bool:
    return "embed" in part or part in ("lm_head", "wte", "wpe")


def set_learning_rate(optimizers: Optimizers, lr: float) -> None:
    """Use this rate in the next step, times the ``lr_scale`` of each group of parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]


def note_first_bad(first_bad: Tensor, finite: Tensor, step: int) -> Tensor:
    """Note the first step whose gradient was not finite, in place and without looking at it.

    Args:
        first_bad: float scalar on the device, infinite while every gradient was finite.
        finite: bool scalar, whether this step's gradient is.
        step: its number.

    Returns:
        bool scalar, whether this update and all later ones are to be held back.

    Example:
        >>> first_bad, bad = torch.tensor(torch.inf), torch.tensor(False)
        >>> [note_first_bad(first_bad, finite, s).item() for s, finite in ((1, ~bad), (2, bad))]
        [False, True]
        >>> note_first_bad(first_bad, ~bad, 3), first_bad
        (tensor(True), tensor(2.))
    """
    this_step = torch.full_like(first_bad, step)
    first_bad.copy_(torch.where(finite, first_bad, torch.minimum(first_bad, this_step)))
    return first_bad.isfinite()


def step_optimizers(optimizers: Optimizers, held_back: Tensor | None = None) -> None:
    """Move the parameters, unless ``held_back`` says not to.

    The flag is read on the device: no step waits for it. Where it is True no parameter and no
    state changes by a bit, weight decay included, whatever the gradients hold; they are used up
    either way.

    Args:
        optimizers: from ``build_optimizers``.
        held_back: bool scalar on the parameters' device; None moves in any case.

    Raises:
        ValueError: an update is to be held back by an AdamW that is not fused, which cannot.
    """
    for optimizer in optimizers:
        if held_back is None:
            optimizer.step()
        elif isinstance(optimizer, torch.optim.Muon):
            _step_muon(optimizer, held_back)
        else:
            _step_fused(optimizer, held_back)


def _step_fused(optimizer: torch.optim.Optimizer, held_back: Tensor) -> None:
    if not optimizer.defaults.get("fused"):
        raise ValueError(f"{type(optimizer).__name__} holds no update back unless it is fused")
    optimizer.found_inf = held_back.float()  # type: ignore[attr-defined]  # its kernel reads it
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def _step_muon(optimizer: torch.optim.Muon, held_back: Tensor) -> None:
    """A step of Muon, whose settings are exact no-ops where it is held back.

    The momentum as its own gradient stays as it is. Its orthogonal factor is 0 where ``eps``,
    the least norm that it is divided by, is infinite; and nothing decays where the decay is 0.

    A matrix whose gradient is 0 everywhere, as in a head whose factor has come to 0, forgets its
    momentum: however little is left of it, the orthogonal factor is of full size, and would carry
    the matrix on for hundreds of steps.
    """
    asked = [(group["eps"], group["weight_decay"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"]
            momentum.mul_(held_back | parameter.grad.any())
            parameter.grad.copy_(torch.where(held_back, momentum, parameter.grad))
        # bfloat16: Muon divides in it
        group["eps"] = torch.where(held_back, torch.inf, group["eps"]).bfloat16()
        group["weight_decay"] = torch.where(held_back, 0.0, group["weight_decay"])
    optimizer.step()  # type: ignore[no-untyped-call]
    for group, (eps, weight_decay) in zip(optimizer.param_groups, asked, strict=True):
        group["eps"], group["weight_decay"] = eps, weight_decay


def clip_gradients(parameters: list[nn.Parameter], largest_norm: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most ``largest_norm``.

    Returns:
        The norm before clipping, a scalar on the device; not finite if any gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole_tensor(torch.nn.utils.get_total_norm(gradients))
    if largest_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm


def optimizer_tensors(
    optimizers: Optimizers, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizers' state as ``<parameter name>.<state name>`` tensors, for a checkpoint."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in named_parameters
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizers: Optimizers,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: dict[str, Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Raises:
        KeyError: a state belongs to no parameter that is trained or to another optimizer, or a
            parameter that is trained lacks one.
    """
    if not tensors:  # saved before the first update
        return
    owners = _owners(optimizers)
    places = _places(owners, named_parameters)
    misplaced = places.keys() ^ tensors.keys()
    if misplaced:
        raise KeyError(min(misplaced))
    for full_name, (parameter, key) in places.items():
        optimizer, value = owners[parameter], tensors[full_name]
        # the step count stays where the optimizer wants it: beside the parameter only if fused
        beside = key != "step" or bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter][key] = value.to(parameter.device) if beside else value


def optimizer_places(
    optimizers: Optimizers, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """Tensors of zeros like those that ``optimizer_tensors`` gives, to read a checkpoint into."""
    places = _places(_owners(optimizers), named_parameters)
    return {
        full_name: torch.zeros(()) if key == "step" else torch.zeros_like(parameter.detach())
        for full_name, (parameter, key) in places.items()
    }


def _owners(optimizers: Optimizers) -> dict[nn.Parameter, torch.optim.Optimizer]:
    return {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _places(
    owners: dict[nn.Parameter, torch.optim.Optimizer],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> dict[str, tuple[nn.Parameter, str]]:
    """Whose state each name of a checkpoint is."""
    return {
        f"{name}.{key}": (parameter, key)
        for name, parameter in named_parameters
        if parameter in owners
        for key in STATE_NAMES[type(owners[parameter])]
    }
