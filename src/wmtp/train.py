"""Training, in order: one function that reads from top to bottom.

``assembled`` (in ``job.py``) builds what the settings ask for and checks it. ``train`` puts a
checkpoint's state into it if there is one, has the value head trained first if the weighting needs
one, and then steps: draw micro-batches, run the heads, weigh and learn their targets, move the
parameters, and now and then log, evaluate and save.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wmtp.average import AVERAGE_NAME, average_checkpoints, newest_good_checkpoints
from wmtp.data.batches import Batch
from wmtp.errors import CheckpointError, DivergedError
from wmtp.evaluation.held_out import measure_heads
from wmtp.evaluation.window import Window
from wmtp.job import Job
from wmtp.loss import LossOutput, fused_mtp_loss
from wmtp.optim import (
    build_optimizers,
    clip_gradients,
    head_scale_at,
    learning_rate,
    note_first_bad,
    set_learning_rate,
    step_optimizers,
)
from wmtp.runtime.checkpoint import require_space, set_aside_after, write_folder
from wmtp.runtime.console import Console
from wmtp.runtime.metrics import BEFORE_ALL, MetricsLog, cut_back
from wmtp.runtime.mlflow_destination import MlflowDestination
from wmtp.runtime.run_folder import RunFolder
from wmtp.runtime.saving import Saver, naming_last_good
from wmtp.runtime.stopping import StopRequest
from wmtp.runtime.tensorboard_destination import TensorboardDestination
from wmtp.runtime.tracking import Destination, Trackers
from wmtp.runtime.uploads import Uploads
from wmtp.stage1.loop import prepare_value_head
from wmtp.state import (
    Moving,
    Progress,
    checkpoint_bytes,
    load_checkpoint,
    model_bytes,
    named_parameters,
    save_model_directory,
    take_snapshot,
)
from wmtp.weighting import Signals, find_critic, observe, weigh_chunk

SMALLEST_LOSS_SCALE = 2.0**-20
"""fp16's loss scale starts at 2^16 and halves at each bad step; no good one needs it this low."""


def train(
    job: Job,
    folder: RunFolder,
    console: Console,
    checkpoint: Path | None = None,
    uploads: Uploads | None = None,
) -> int:
    """Train until the recipe's end, an early stop or a signal.

    Args:
        job: what to train on what; its model was loaded from ``checkpoint`` if there is one.
        folder: where the run keeps what it makes; its lock is held by the caller.
        console: what the user sees.
        checkpoint: a verified checkpoint to go on from.
        uploads: copies what is saved to a store, if that is asked for.

    Returns:
        Exit code: 0 when done, 130 or 143 after a signal, once the checkpoint is safe.

    Raises:
        DivergedError: a loss or gradient was not finite; the parameters never took it.
        StorageError: the last checkpoint, or any while there was no older one, could not be
            written, or final/ or average/ could not.
    """
    config, recipe, device = job.settings.config, job.settings.recipe, job.device
    checkpoints = config.paths.checkpoints
    results = checkpoints.save_final + (recipe.train.average_last is not None)
    require_space(
        folder.checkpoints,
        checkpoint_bytes(job.model, job.value_head, recipe.optim.name),
        checkpoints.keep_last,
        results * model_bytes(job.model),
    )
    folder.write_settings(job.describe())
    if checkpoint is None:  # rows of a run that was killed before its first checkpoint
        cut_back(folder.metrics_file, BEFORE_ALL)
    if job.value_head is not None and checkpoint is None:
        stopped = prepare_value_head(job, job.value_head, folder, console)
        if stopped is not None:
            return stopped
    moving = set_in_motion(job)
    model, progress, window = moving.model, moving.progress, moving.window
    if checkpoint is not None:
        load_checkpoint(checkpoint, moving, device)
        # only now: a resume that is refused leaves the run as it was
        for moved in set_aside_after(folder.checkpoints, progress.step):
            console.warning(
                f"set aside as {moved.name}: it lies beyond the checkpoint that is resumed"
            )
        cut_back(folder.metrics_file, progress.step)
        if uploads is not None:
            uploads.set_aside_after(progress.step)

    with (
        StopRequest() as stop,
        MetricsLog(folder.metrics_file, console.warning) as metrics,
        Trackers(destinations(job, folder), folder, console) as trackers,
        Saver(
            folder.checkpoints,
            checkpoints.keep_last,
            console.warning,
            asynchronous=checkpoints.asynchronous,
            uploads=uploads,
        ) as saver,
        job.training_batches(start_row=progress.rows_read) as batches,
        console.progress(progress.step, job.max_steps) as bar,
    ):

        def evaluate_now() -> None:
            with window.clock_stopped():
                figures = evaluate_held_out(job)
            metrics.write({"step": progress.step, **figures})
            trackers.wake()
            bar.report(progress.step, figures)
            judge(progress, figures, job)

        model.train()
        if progress.step == 0 and job.eval_rows and recipe.train.eval_interval:
            evaluate_now()
        window.start_clock()
        ending = progress.step >= job.max_steps or progress.stopped_early
        if ending:
            console.line(f"nothing left to do: the run ended after step {progress.step}")
        # a signal is looked at after a step and its save only: there is always something to resume
        while not ending:
            lr = rate_at(job, progress.step)
            set_learning_rate(moving.optimizers, lr)
            step_batches = [next(batches) for _ in range(recipe.train.gradient_accumulation)]
            share = share_of(job, moving, step_batches)

            for batch in step_batches:
                learn(job, moving, batch.to(device.torch_device), share)

            norm = update(moving, recipe.optim.grad_clip)
            progress.advance(job.rows_per_step, recipe.data.train.max_length)
            window.end_step(norm, job.rows_per_step * recipe.data.train.max_length)
            bar.advance(progress.step)

            last = progress.step >= job.max_steps
            if last or stop.requested or progress.step % config.log_interval == 0:
                raise_if_diverged(moving, folder)
            if last or progress.step % config.log_interval == 0:
                row = {
                    "learning_rate": lr,
                    "tokens_seen": progress.tokens_seen,
                    **window.close(),
                }
                row |= utilization(job, row["tokens_per_second"])
                metrics.write({"step": progress.step, **row})
                trackers.wake()
                bar.update(progress.step, row)

            if job.eval_rows and (last or is_due(progress.step, recipe.train.eval_interval)):
                evaluate_now()

            ending = last or progress.stopped_early or stop.requested
            if ending or is_due(progress.step, checkpoints.save_interval):
                raise_if_diverged(moving, folder)
                metrics.sync()
                with window.clock_stopped():
                    saver.wait()  # before the copy is taken: two would be in memory
                    saver.save(
                        progress.step,
                        take_snapshot(
                            moving, job.tokenizer, device, copied=checkpoints.asynchronous
                        ).write,
                        last=ending,
                    )
            saver.look()

        if stop.requested:
            trackers.status = "KILLED"

    if stop.requested and progress.step < job.max_steps:
        console.line(
            f"stopped by {stop.signal_name} after step {progress.step}; go on with --resume"
        )
        return stop.exit_code
    if progress.stopped_early:
        console.line(f"stopped early after step {progress.step}: no gain for a while")
    if checkpoints.save_final:
        with naming_last_good(folder.checkpoints):
            write_folder(
                folder.final,
                progress.step,
                lambda path: save_model_directory(model, job.tokenizer, path),
            )
        console.line(f"the model is in {folder.final}")
    if recipe.train.average_last is not None:
        write_average(folder, recipe.train.average_last, console)
    return 0


def write_average(folder: RunFolder, count: int, console: Console) -> None:
    """Write the mean of the last checkpoints; a run that made too few keeps all else it made."""
    try:
        last_ones, _ = newest_good_checkpoints(folder.checkpoints, count)
    except CheckpointError as error:
        console.warning(f"{AVERAGE_NAME}/ was not written: {error}")
        return
    with naming_last_good(folder.checkpoints):
        average_checkpoints(last_ones, folder.root / AVERAGE_NAME)
    console.line(f"the mean of the last {count} checkpoints is in {folder.root / AVERAGE_NAME}")


def set_in_motion(job: Job) -> Moving:
    """Build what a step changes, as it is before the first step."""
    optim, device = job.settings.recipe.optim, job.device
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
    memory = job.settings.recipe.weighting.start_memory()
    return Moving(
        model=job.model,
        value_head=job.value_head,
        optimizers=optimizers,
        scaler=scaler,
        window=Window(job.model.horizon, device),
        progress=Progress(),
        memory={name: value.to(device.torch_device) for name, value in memory.items()},
        first_bad_step=torch.full((), torch.inf, device=device.torch_device),
    )


def destinations(job: Job, folder: RunFolder) -> list[Destination]:
    """The trackers that the config asks for."""
    config, run = job.settings.config, job.settings.recipe.run
    chosen: list[Destination] = []
    if config.mlflow.enabled:
        chosen.append(
            MlflowDestination(
                folder,
                tracking_uri=config.mlflow.tracking_uri,
                experiment=config.mlflow.experiment,
                settings=job.describe(),
                tags=dict.fromkeys(run.tags, "true") | {"algorithm": job.settings.algorithm},
            )
        )
    if config.tensorboard.enabled:
        chosen.append(TensorboardDestination(folder))
    return chosen


@dataclass(frozen=True)
class Share:
    """What the micro-batches of one step have in common.

    Attributes:
        head_scale: ``c``, one factor per head, of this step.
        valid_count: ``N``, the valid targets of the step, each counted with its head's scale.
        value_count: positions from which the value head learns, by which its loss is divided.
        loss_scale: factor on the gradients, for fp16.
    """

    head_scale: tuple[float, ...]
    valid_count: float
    value_count: int
    loss_scale: float


def share_of(job: Job, moving: Moving, batches: list[Batch]) -> Share:
    """What is known of a step before its first micro-batch."""
    scale = scale_at(job, moving.progress.step)
    return Share(
        head_scale=scale,
        valid_count=scaled_count(batches, scale),
        value_count=max(1, value_targets(job, batches)),
        loss_scale=moving.scaler.get_scale(),
    )


def value_targets(job: Job, batches: list[Batch]) -> int:
    """Positions of a step from which the value head learns; counted before they go to a device."""
    critic = find_critic(job.settings.recipe.weighting)
    if critic is None:
        return 0
    signals = [Signals(b.valid_BSH, rewards=b.rewards_BSH, last=b.last_BSH) for b in batches]
    return sum(int(critic.taught(one).sum()) for one in signals)


def learn(job: Job, moving: Moving, batch: Batch, share: Share) -> LossOutput:
    """Forward, weigh and backward for one micro-batch; gradients add up in the parameters.

    Args:
        job: model, weighting and what they need.
        moving: what the weighting remembers, and the window that counts.
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


def update(moving: Moving, largest_norm: float | None) -> Tensor:
    """Move the parameters by what the step's micro-batches added up, and forget it.

    The value head is clipped by itself, so that its gradient does not shrink the model's.

    Returns:
        The norm of the model's gradient before clipping.
    """
    for optimizer in moving.optimizers:
        moving.scaler.unscale_(optimizer)
    norm = clip_gradients(trained(moving.model), largest_norm)
    finite = norm.isfinite()
    if moving.value_head is not None:
        value_norm = clip_gradients(trained(moving.value_head), largest_norm)
        finite = finite & value_norm.isfinite()
    # not the scaler's own step(): it judges each optimizer alone, and would move half a model
    step_optimizers(moving.optimizers, held_back(moving, finite))
    moving.scaler.update()
    for optimizer in moving.optimizers:
        optimizer.zero_grad(set_to_none=True)
    return norm


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that move."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def utilization(job: Job, tokens_per_second: float) -> dict[str, float]:
    """``mfu``, the share of the chip's peak that training uses; nothing where none is known."""
    peak = job.device.peak_flops()
    if peak is None:
        return {}
    length = job.settings.recipe.data.train.max_length
    return {"mfu": tokens_per_second * job.model.training_flops_per_token(length) / peak}


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """The parameter's gradient, made of zeros if there is none yet; None if it is frozen."""
    if not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


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


def rate_at(job: Job, step: int) -> float:
    """The recipe's learning rate of a step."""
    optim = job.settings.recipe.optim
    return learning_rate(
        step,
        peak=optim.lr,
        scheduler=optim.scheduler,
        warmup_steps=optim.warmup_steps,
        max_steps=job.max_steps,
        decay_fraction=optim.decay_fraction,
        minimum=optim.min_lr,
    )


def held_back(moving: Moving, finite: Tensor) -> Tensor:
    """Whether to pass over this update, as over all after the first gradient that was not finite.

    A flag on the device and not a look at it, so that no step waits. fp16's loss scale is meant to
    overflow now and then, and then only that step is passed over.
    """
    if moving.scaler.is_enabled():
        return ~finite
    return note_first_bad(moving.first_bad_step, finite, moving.progress.step + 1)


def raise_if_diverged(moving: Moving, folder: RunFolder) -> None:
    """Read the flag of ``held_back``, or the scale that fp16 has come down to.

    Raises:
        DivergedError: names the first bad step and where to go on from.
    """
    if moving.scaler.is_enabled() and moving.scaler.get_scale() < SMALLEST_LOSS_SCALE:
        raise DivergedError(
            f"no gradient was finite for many steps up to step {moving.progress.step}, whatever "
            f"the fp16 loss scale; no parameter took them. The last good checkpoint is in "
            f"{folder.checkpoints}. Lower optim.lr, or set devices.mixed_precision: bf16."
        )
    first_bad = moving.first_bad_step.item()
    if math.isfinite(first_bad):
        raise DivergedError(
            f"the gradient of step {first_bad:.0f} was not finite; no parameter took it. The last "
            f"good checkpoint is in {folder.checkpoints}. Lower optim.lr or optim.grad_clip, or "
            "look at the data of that step."
        )


def evaluate_held_out(job: Job) -> dict[str, float]:
    """Figures on the recipe's evaluation data, as ``eval/...``."""
    figures = measure_heads(
        job.model,
        job.evaluation_batches(),
        job.device,
        job.settings.recipe.head_scale,
        job.workspace,
    )
    return {f"eval/{name}": value for name, value in figures.items()}


def judge(progress: Progress, figures: dict[str, float], job: Job) -> None:
    """Let early stopping look at a held-out figure, if the recipe wants it."""
    stopping = job.settings.recipe.train.early_stopping
    if stopping.enabled and stopping.monitor in figures:
        progress.judge(
            figures[stopping.monitor], patience=stopping.patience, min_delta=stopping.min_delta
        )


def is_due(step: int, interval: int | None) -> bool:
    """True at every multiple of the interval."""
    return interval is not None and step % interval == 0
