"""One optimizer step: micro-batches in, parameters moved.

``take_step`` draws a rank's share of the step, runs the heads, weighs and learns their targets
and moves the parameters. It starts the step again in smaller micro-batches where memory runs out,
and holds the update back where a gradient is not a number, without ever waiting for the device.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self, final

import torch
from torch import Tensor, nn

from wmtp.data.batches import Batch
from wmtp.data.share import StepShare
from wmtp.distributed.sharding import has_slices, is_sliced, let_go, send_gradients
from wmtp.errors import DeviceError
from wmtp.evaluation.window import Window
from wmtp.job import Job
from wmtp.loss import LossOutput, fused_mtp_loss
from wmtp.optim import (
    build_optimizers,
    clip_gradients,
    head_scale_at,
    note_first_bad,
    step_optimizers,
)
from wmtp.runtime.device import Device
from wmtp.state import Moving, Progress, named_parameters
from wmtp.weighting import Signals, find_critic, observe, remember, weigh_chunk

SMALLEST_LOSS_SCALE: Final = 2.0**-20
"""fp16's loss scale starts at 2^16 and halves at each bad step; no good one needs it this low."""

EMPTY_CACHE_ABOVE: Final = 0.85
HALVE_ABOVE: Final = 0.95
"""Shares of the recommended memory; beyond it a Mac swaps instead of failing."""

STEPS_BETWEEN_WAITS: Final = 50
"""Without a logged row in between, a Mac's scratch memory would only grow."""


@final
class Feed:
    """The micro-batches of this rank, step by step; they get smaller where memory runs out.

    Args:
        job: what is trained on what.
        progress: where to begin; it notes how many rows fit.
    """

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        share = job.share
        largest = progress.largest_micro_batch
        self.share = share if largest is None else share.cut(largest)
        self._open = ExitStack()

    def next_step(self) -> list[Batch]:
        """The micro-batches of the next step, on the CPU."""
        return [next(self._batches) for _ in self.share.sizes]

    def make_smaller(self) -> bool:
        """Begin the last step again in micro-batches of half the size; False if they are rows."""
        smaller = self.share.halved()
        if smaller is None:
            return False
        self._open.close()
        self.share = smaller
        self._progress.largest_micro_batch = max(smaller.sizes)
        self._begin()
        return True

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def _begin(self) -> None:
        opened = self._job.training_batches(self._progress.rows_read, self.share)
        self._batches: Iterator[Batch] = self._open.enter_context(opened)


def relieve_pressure(device: Device, feed: Feed) -> str | None:
    """Act, between two steps, on how much memory the device's driver holds.

    Above ``EMPTY_CACHE_ABOVE`` what is held and not used is given back; above ``HALVE_ABOVE``
    micro-batches get half the size as well. Steps learn from the same rows in either case.

    Returns:
        What was done, for the log; None if nothing was.
    """
    pressure = device.memory_pressure()
    if pressure is None or pressure <= EMPTY_CACHE_ABOVE:
        return None
    device.empty_cache()
    held = f"the driver holds {pressure:.0%} of the memory that is recommended"
    if pressure <= HALVE_ABOVE:
        return f"{held}: what it does not use was given back"
    if not feed.make_smaller():
        return (
            f"{held}, with a single row in a micro-batch. Set train.gradient_checkpointing: true "
            "or lower data.train.max_length"
        )
    return (
        f"{held}: a micro-batch has {max(feed.share.sizes)} rows from now on, and a step "
        f"{len(feed.share.sizes)} of them; steps learn from the same rows as before"
    )


def set_in_motion(job: Job) -> Moving:
    """Build what a step changes, as it is before the first step."""
    optim, device = job.settings.recipe.optim, job.device
    let_go(job.model)  # after stage 1 some parameters are still gathered: not what is to be moved
    optimizers = build_optimizers(
        named_parameters(job.model, job.value_head),
        name=optim.name,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=device.fused_adamw,
        value_lr=optim.value_lr,
    )
    scaler = device.grad_scaler()
    scaler.scale(torch.zeros((), device=device.torch_device))  # it builds its state on first use
    weighting, place = job.settings.recipe.weighting, device.torch_device
    return Moving(
        model=job.model,
        value_head=job.value_head,
        optimizers=optimizers,
        scaler=scaler,
        window=Window(job.model.horizon, device),
        progress=Progress(),
        memory={name: value.to(place) for name, value in weighting.start_memory().items()},
        sums={name: value.to(place) for name, value in weighting.start_sums().items()},
        first_bad_step=torch.full((), torch.inf, device=place),
        skipped=torch.zeros((), device=place),
    )


@dataclass(frozen=True)
class Share:
    """What the micro-batches of one step have in common, on every rank.

    Attributes:
        head_scale: ``c``, one factor per head, of this step.
        valid_count: ``N``, the valid targets of the step, each counted with its head's scale.
        value_count: positions from which the value head learns, by which its loss is divided.
        loss_scale: factor on the gradients, for fp16.
    """

    head_scale: tuple[float, ...]
    valid_count: float
    value_count: float
    loss_scale: float


def take_step(job: Job, moving: Moving, feed: Feed) -> int | None:
    """Learn the next step's rows and move the parameters.

    Returns:
        How many rows a micro-batch has from now on if memory ran out, else None.

    Raises:
        DeviceError: a single row does not fit into memory, or a rank ran out of it whose model is
            in slices: the others would wait for its part.
    """
    batches = feed.next_step()
    share = share_of(job, moving, batches)
    fits = None
    while not try_to_learn(job, moving, batches, share):
        if has_slices(job.model) or not feed.make_smaller():
            raise out_of_memory(job, feed.share)
        fits = max(feed.share.sizes)
        forget_gradients(moving)
        moving.window.forget_step()
        forget_sums(moving)
        job.device.empty_cache()
        batches = feed.next_step()
    job.ranks.sum_in_place(moving.sums.values())
    norm, skipped = update(job, moving)
    learn_from_sums(job, moving, skipped)
    length = job.settings.recipe.data.train.max_length
    moving.progress.advance(job.rows_per_step, length)
    moving.window.end_step(norm, job.rows_per_step * length, left_out=skipped)
    return fits


def learn_from_sums(job: Job, moving: Moving, skipped: Tensor | None) -> None:
    """Let the weighting remember the step's sums; of a step that was passed over, nothing."""
    if not moving.sums:
        return
    before = {} if skipped is None else {n: value.clone() for n, value in moving.memory.items()}
    remember(job.settings.recipe.weighting, moving.memory, moving.sums)
    if skipped is not None:
        for name, value in moving.memory.items():
            value.copy_(torch.where(skipped, before[name], value))
    forget_sums(moving)


def forget_sums(moving: Moving) -> None:
    """Begin the weighting's counts of a step again."""
    for value in moving.sums.values():
        value.zero_()


def try_to_learn(job: Job, moving: Moving, batches: list[Batch], share: Share) -> bool:
    """Learn the micro-batches of a step; False if memory ran out.

    Leaving this function lets go of what the failed pass held, which the traceback would keep.
    """
    job.model.begin_step(moving.progress.step)
    try:
        for number, batch in enumerate(batches, start=1):
            send_gradients(job.model, now=number == len(batches))
            learn(job, moving, batch.to(job.device.torch_device), share)
    except RuntimeError as error:
        if not job.device.is_out_of_memory(error):
            raise
        return False
    return True


def out_of_memory(job: Job, share: StepShare) -> DeviceError:
    """What to say when smaller micro-batches are no way out."""
    largest = max(share.sizes)
    if has_slices(job.model):
        return DeviceError(
            f"rank {job.ranks.index} ran out of memory with {largest} rows in a micro-batch. Halve "
            "data.train.batch_size and double train.gradient_accumulation, if you set it: the "
            "steps stay what they are. Then go on with --resume."
        )
    return DeviceError(
        "memory ran out with a single row in a micro-batch. Set train.gradient_checkpointing: "
        "true, lower data.train.max_length, or train a smaller model."
    )


def share_of(job: Job, moving: Moving, batches: list[Batch]) -> Share:
    """What is known of a step before its first micro-batch; ranks add up their counts."""
    scale = scale_at(job, moving.progress.step)
    valid_count, value_count = job.ranks.sum(
        [scaled_count(batches, scale), value_targets(job, batches)]
    )
    return Share(scale, valid_count, max(1.0, value_count), moving.scaler.get_scale())


def value_targets(job: Job, batches: list[Batch]) -> int:
    """Positions of a step from which the value head learns; counted before they go to a device."""
    critic = find_critic(job.settings.recipe.weighting)
    if critic is None:
        return 0
    signals = [Signals(b.valid_BSH, rewards=b.rewards_BSH, last=b.last_BSH) for b in batches]
    return sum(int(critic.taught(one).sum()) for one in signals)


def scaled_count(batches: list[Batch], head_scale: tuple[float, ...]) -> float:
    """``N`` of a step: its valid targets, each counted with its head's scale."""
    return math.fsum(
        scale * count
        for batch in batches
        for scale, count in zip(head_scale, batch.valid_counts_H, strict=True)
    )


def scale_at(job: Job, step: int) -> tuple[float, ...]:
    """The recipe's factors of the heads at a step."""
    anneal = job.settings.recipe.loss.anneal
    return head_scale_at(
        step,
        start=job.settings.recipe.head_scale,
        end=anneal.to,
        begin_step=round(anneal.begin * job.max_steps),
        end_step=round(anneal.end * job.max_steps),
    )


def learn(job: Job, moving: Moving, batch: Batch, share: Share) -> LossOutput:
    """Forward, weigh and backward for one micro-batch; gradients add up in the parameters.

    Args:
        job: model, weighting and what they need.
        moving: what the weighting remembers and counts, and the window of logged sums.
        batch: on the device.
        share: what the whole step has in common.
    """
    model, weighting = job.model, job.settings.recipe.weighting
    with job.device.autocast():
        hidden = model(batch.tokens_BS, batch.targets_BSH, batch.documents_BS)
    signals = Signals(
        batch.valid_BSH,
        reference_ce=job.reference_ce(batch),
        loss_weights=batch.loss_weights_BSH,
        rewards=batch.rewards_BSH,
        last=batch.last_BSH,
        memory=moving.memory,
        sums=moving.sums,
    )
    value_loss, critic = None, find_critic(weighting)
    if moving.value_head is not None and critic is not None:
        into_trunk = critic.auxiliary_into_trunk
        scores_BS = moving.value_head.scores(hidden[0] if into_trunk else hidden[0].detach())
        signals = replace(signals, values=moving.value_head.values(scores_BS.detach()))
        value_loss, _ = critic.value_head_loss(scores_BS, signals)
        value_loss = value_loss / share.value_count
    output = fused_mtp_loss(
        hidden,
        model.unembeddings,
        batch.targets_BSH,
        batch.valid_BSH,
        lambda ce, part: weigh_chunk(weighting, signals, ce, part),
        weighting.scope,
        valid_count=share.valid_count,
        head_scale=share.head_scale,
        unembedding_gradients=[gradient_of(matrix) for matrix in model.unembeddings],
        workspace=job.workspace,
        loss_scale=share.loss_scale,
        kept_fraction=weighting.kept_fraction,
        valid_targets=sum(batch.valid_counts_H),
        distill=job.settings.recipe.loss.distill,
        z_loss=job.settings.recipe.loss.z_loss,
    )
    total = output.loss
    if value_loss is not None and critic is not None:
        # added and not multiplied in: the fused loss must reach backward() with gradient 1
        total = total + critic.auxiliary_loss_coef * share.loss_scale * value_loss
    if total.requires_grad:  # not where only matrices of linear heads learn, which is done
        total.backward()  # type: ignore[no-untyped-call]
    moving.window.add(output, batch.valid_BSH, value_loss)
    measured = replace(signals, ce=output.ce_BSH, valid_BSH=output.measured_BSH)
    observe(weighting, measured)
    return output


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """The parameter's gradient, made of zeros if there is none yet; None if it is frozen."""
    if not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def update(job: Job, moving: Moving) -> tuple[Tensor, Tensor | None]:
    """Move the parameters by what the step's micro-batches added up, and forget it.

    The value head is clipped by itself, so that its gradient does not shrink the model's.

    Returns:
        The norm of the model's gradient before clipping; and, where such steps are skipped, a
        bool scalar on the device that says whether this one was.
    """
    largest_norm = job.settings.recipe.optim.grad_clip
    for optimizer in moving.optimizers:
        moving.scaler.unscale_(optimizer)
    for module in (moving.model, moving.value_head):
        job.ranks.sum_in_place(unsent_gradients(module))
    norm = clip_gradients(trained(moving.model), largest_norm)
    finite = norm.isfinite() & step_is_finite(job, moving)
    if moving.value_head is not None:
        value_norm = clip_gradients(trained(moving.value_head), largest_norm)
        finite = finite & value_norm.isfinite()
    skips = job.settings.recipe.train.on_nonfinite == "skip"
    # not the scaler's own step(): it judges each optimizer alone, and would move half a model
    step_optimizers(moving.optimizers, held_back(moving, finite, skips=skips))
    moving.scaler.update()
    forget_gradients(moving)
    return norm, ~finite if skips else None


def step_is_finite(job: Job, moving: Moving) -> Tensor:
    """Whether the losses of the step's micro-batches are, on every rank: a bool scalar."""
    finite = moving.window.step_is_finite()
    if job.ranks.count == 1:
        return finite
    bad = (~finite).float()
    job.ranks.sum_in_place([bad])
    return bad == 0


def unsent_gradients(module: nn.Module | None) -> Iterator[Tensor]:
    """Gradients that each rank still has to itself, because their parameters are not in slices.

    Found as they are asked for, which a single rank never does.
    """
    for parameter in [] if module is None else module.parameters():
        if parameter.grad is not None and not is_sliced(parameter.grad):
            yield parameter.grad


def forget_gradients(moving: Moving) -> None:
    """Let go of all gradients."""
    for optimizer in moving.optimizers:
        optimizer.zero_grad(set_to_none=True)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that move."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def held_back(moving: Moving, finite: Tensor, *, skips: bool) -> Tensor:
    """Whether to pass over this update, as over all after the first gradient that was not finite.

    A flag on the device and not a look at it, so that no step waits. fp16's loss scale is meant to
    overflow now and then, and then only that step is passed over, as where a recipe ``skips``.
    """
    if moving.scaler.is_enabled():
        return ~finite
    bad_so_far = note_first_bad(moving.first_bad_step, finite, moving.progress.step + 1)
    if not skips:
        return bad_so_far
    moving.skipped.add_(~finite)
    return ~finite
